"""project_exact in Triton: its certificate is true, and it is the CPU's."""

import pytest
import torch
from scenes import by_libjpeg, in_colours_of, pictures, scene, tables_of, tensor_of

from kernels import Subsampling, decode, descent, encode, exact
from kernels.certificate import find, is_wrong
from kernels.libjpeg import compress
from kernels.mcu import regions, to_tiles
from kernels.triton_ops import descent as triton_descent
from kernels.triton_ops import exact as triton_exact
from kernels.triton_ops.exact import project_exact
from kernels.triton_ops.launch import three

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


@pytest.fixture
def short_search(monkeypatch) -> None:
    """On both sides: the interpreter would take minutes over a stubborn MCU."""
    monkeypatch.setattr(exact, "PASSES", 12)  # more than the patience with whole MCUs
    monkeypatch.setitem(triton_exact.CONSTANTS, "PASSES", 12)
    shorten(monkeypatch, 2, (8, 11, 1))


def shorten(monkeypatch: pytest.MonkeyPatch, turns: int, *attempts: tuple[int, int, int]) -> None:
    for module in (descent, triton_descent):
        monkeypatch.setattr(module, "ATTEMPTS", attempts)
    monkeypatch.setattr(descent, "TURNS", turns)
    monkeypatch.setitem(triton_descent.CONSTANTS, "TURNS", turns)


@ALL
@pytest.mark.parametrize("size", [(18, 17), (16, 32)])
@pytest.mark.usefixtures("poisoned", "short_search")
def test_the_certificate_is_true_and_the_image_the_cpus(sampling, size, device, seed):
    x = 32 + 0.75 * pictures(3, sampling, size).clamp(0, 255)
    tables = torch.cat([tables_of(quality, sampling) for quality in (10, 30, 50)])
    c = encode(x, tables, sampling)
    restored = decode(c) + 3 * torch.randn(x.shape)
    expected, at_most = exact.project_exact(restored, c)
    image, mismatches = project_exact(restored.to(device), c.to(device))
    assert torch.equal(compress(image.cpu(), tables, sampling).mismatches(c), mismatches.cpu())
    assert bool((mismatches.cpu() <= at_most).all())
    assert float(((image.cpu().int() - expected.int()).abs() <= 1).float().mean()) >= 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("poisoned", "short_search")
def test_dtypes_and_layouts(dtype, layout, device, seed):
    sampling = Subsampling.S420
    tables = torch.cat([tables_of(10, sampling), tables_of(30, sampling)])
    c = encode(32 + 0.75 * pictures(2, sampling, (18, 17)).clamp(0, 255), tables, sampling)
    restored = (decode(c) + 3 * torch.randn(2, 3, 18, 17)).clamp(0, 255).to(dtype).contiguous(memory_format=layout)
    expected, at_most = exact.project_exact(restored, c)
    image, mismatches = project_exact(restored.to(device), c.to(device))
    assert torch.equal(compress(image.cpu(), tables, sampling).mismatches(c), mismatches.cpu())
    assert bool((mismatches.cpu() <= at_most).all())
    assert float(((image.cpu().int() - expected.int()).abs() <= 1).float().mean()) >= 0.99


@ALL
@pytest.mark.parametrize("step", [1, 255])
def test_the_finest_and_the_coarsest_steps_at_both_ends_of_the_gamut(sampling, step, device, seed, monkeypatch):
    """After a few passes: with steps of one, 8-bit rounding alone leaves many intervals, on the CPU too."""
    monkeypatch.setattr(exact, "PASSES", 3)
    monkeypatch.setitem(triton_exact.CONSTANTS, "PASSES", 3)
    shorten(monkeypatch, 1, (8, 0, 1))
    x = pictures(2, sampling, (17, 18)).clamp(0, 255)
    x[0, :, :9], x[0, :, 9:] = 0, 255
    tables = torch.full((2, sampling.components, 8, 8), step, dtype=torch.int32)
    c = encode(x, tables, sampling)
    restored = (x + 3 * torch.randn(x.shape)).clamp(0, 255)
    expected, at_most = exact.project_exact(restored, c)
    image, mismatches = project_exact(restored.to(device), c.to(device))
    assert torch.equal(compress(image.cpu(), tables, sampling).mismatches(c), mismatches.cpu())
    assert bool((mismatches.cpu() <= 1.02 * at_most + 2).all())  # the last bits of a sum may round a pixel otherwise
    assert float(((image.cpu().int() - expected.int()).abs() <= 1).float().mean()) >= 0.99


def wrong_mcus(image: torch.Tensor, c) -> torch.Tensor:
    """[MCUs of all images] int32: wrong coefficients, in the order of the list that the kernels work on."""
    rows, columns = c.sampling.mcu_grid(c.size)
    wrong = torch.zeros(len(c), rows, columns, dtype=torch.int32)
    for region in (region for row in regions(c.sampling, c.size, len(c)) for region in row):
        centre, step = exact.intervals(c, region)
        errors = is_wrong(find(to_tiles(image, region).float(), region.mcu), centre, step, region.mcu)
        wrong[:, region.top : region.bottom, region.left : region.right] = errors.flatten(3).sum(3)
    return wrong.flatten()


@ALL
def test_moves_are_the_cpus_one_by_one(sampling, device, seed, monkeypatch):
    """A file's own image of a whole MCU and three cut ones, some values moved: after a few turns every pixel is what
    kernels/descent.py makes of it."""
    height, width = sampling.mcu
    pixels = in_colours_of(scene(height + 1, width + 4, seed), sampling)
    c = by_libjpeg(pixels, tables_of(90, sampling), sampling)
    shorten(monkeypatch, 1, (3, 4, 2), (11, 11, 2))
    with monkeypatch.context() as the_search_alone:
        the_search_alone.setattr(exact, "first_pass", search_from)
        the_search_alone.setattr(exact, "PASSES", 0)
        for _ in range(50):  # in a rare image no step helps
            start = tensor_of(pixels).clone()
            moved = torch.rand(start.shape) < 30 / start.numel()
            steps = torch.randint(-2, 3, (int(moved.sum()),))
            start[moved] = (start[moved].int() + steps).clamp(0, 255).to(torch.uint8)
            expected, left = exact.project_exact(start, c)
            if not torch.equal(expected, start):
                break
    assert not torch.equal(expected, start)
    wrong = wrong_mcus(start, c)
    listed = wrong.nonzero().flatten()[torch.randperm(int((wrong > 0).sum()))]
    count = torch.tensor([len(listed)], dtype=torch.int32)
    image, mismatches = start.clone().to(device), torch.zeros(1, dtype=torch.int32, device=device)
    file = (*three([plane.to(device) for plane in c.planes]), c.tables.to(device))
    unsettled, wrongs = (torch.cat([count, entries.int()]).to(device) for entries in (listed, wrong[listed]))
    triton_descent.descend(image, mismatches, unsettled, wrongs, file, sampling, c.size)
    assert torch.equal(image.cpu(), expected)
    assert torch.equal(mismatches.cpu(), left.int())


def search_from(x, c, region) -> tuple[exact.Search, torch.Tensor]:
    """The search as it stands before its last step, the image given being the best so far."""
    tiles = to_tiles(x, region).flatten(0, 2)
    centre, step = exact.intervals(c, region)
    centre, step = centre.flatten(0, 2), step.expand_as(centre).flatten(0, 2)
    wrong = is_wrong(find(tiles.float(), region.mcu), centre, step, region.mcu).flatten(1).sum(1)
    where = torch.arange(len(tiles))
    search = exact.Search(tiles.float(), centre, step, torch.zeros_like(centre), wrong, where, torch.zeros_like(where))
    return search, tiles


def test_it_is_a_custom_operator(device, seed):
    sampling = Subsampling.S420
    x = pictures(1, sampling, (16, 16)).clamp(0, 255)
    c = encode(x, tables_of(10, sampling), sampling).to(device)
    planes = [plane.contiguous() for plane in c.planes]
    x = x.to(device)
    torch.library.opcheck(torch.ops.jpeg_posterior.project_exact, (x, planes, c.tables, sampling.label, *c.size))
    compiled = torch.compile(project_exact, fullgraph=True, backend="eager")
    with torch.autocast(device.type, torch.bfloat16):
        for mine, theirs in zip(compiled(x, c), project_exact(x, c), strict=True):
            assert torch.equal(mine, theirs)
