"""The decode kernel gives torch_ops' pixels, but for the order of its sums."""

import pytest
import torch
from scenes import pick, pictures, random_tables, stack

from kernels import Coefficients, Subsampling, torch_ops
from kernels.triton_ops.decode import decode

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
NARROW = [(1, 1), (2, 3), (3, 2), (5, 4), (4, 5), (40, 3), (3, 40), (18, 5)]
SIZES = [*NARROW, (34, 50), (48, 64), (47, 33), (9, 130)]
GRAY_LEVELS = 1e-3


def real(images: int, sampling: Subsampling, size: tuple[int, int]) -> Coefficients:
    return torch_ops.encode(pictures(images, sampling, size), random_tables(images, sampling), sampling)


def wild(images: int, sampling: Subsampling, size: tuple[int, int]) -> Coefficients:
    """Random coefficients, the padding's too, that drive every plane far beyond both of its ends."""
    tables = torch.randint(1, 30, (images, sampling.components, 8, 8), dtype=torch.int32)
    grids = (sampling.plane_blocks(component, size) for component in range(sampling.components))
    planes = tuple(torch.randint(-12, 13, (images, *grid, 8, 8), dtype=torch.int16) for grid in grids)
    return Coefficients(planes, tables, sampling, size)


def check(c: Coefficients, device: torch.device) -> None:
    found, expected = decode(c.to(device)), torch_ops.decode(c)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found.shape == expected.shape
    assert float((found.cpu() - expected).abs().max()) <= GRAY_LEVELS


@ALL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("poisoned")
def test_pixels_are_those_of_torch_ops(sampling, size, device, seed):
    check(stack([real(2, sampling, size), wild(1, sampling, size)]), device)


@ALL
@pytest.mark.usefixtures("poisoned")
def test_one_image_of_many_programs(sampling, device, seed):
    check(wild(1, sampling, (33, 600)), device)


@ALL
def test_an_image_does_not_depend_on_what_is_beside_it(sampling, device, seed):
    c = stack([real(1, sampling, (21, 37)), wild(2, sampling, (21, 37))]).to(device)
    together = decode(c)
    for image in range(3):
        assert torch.equal(decode(pick(c, [image]))[0], together[image])


@ALL
def test_views_decode_like_copies(sampling, device, seed):
    c = wild(3, sampling, (21, 37)).to(device)
    mirrored = tuple(plane.flip(1).transpose(1, 2).contiguous().transpose(1, 2) for plane in c.planes)
    view = Coefficients(mirrored, c.tables[:1].expand_as(c.tables), c.sampling, c.size)
    copy = Coefficients(tuple(p.clone().contiguous() for p in view.planes), view.tables.clone(), c.sampling, c.size)
    assert torch.equal(decode(view), decode(copy))


@ALL
def test_planes_may_start_anywhere_in_memory(sampling, device, seed):
    c = wild(2, sampling, (21, 37)).to(device)
    shifted = tuple(torch.cat([p.new_zeros(1), p.flatten()])[1:].view(p.shape) for p in c.planes)
    assert torch.equal(decode(Coefficients(shifted, c.tables, c.sampling, c.size)), decode(c))


def test_the_operator_is_registered_in_full(device, seed):
    c = real(2, Subsampling.S420, (9, 10)).to(device)
    arguments = (list(c.planes), c.tables, c.sampling.label, *c.size)
    torch.library.opcheck(torch.ops.jpeg_posterior.decode, arguments)


def test_compilation_changes_nothing(device, seed):
    c = real(2, Subsampling.S420, (17, 20)).to(device)

    def darker(c: Coefficients) -> torch.Tensor:
        return decode(c) * 0.5

    assert torch.equal(torch.compile(darker, fullgraph=True, backend="eager")(c), darker(c))
