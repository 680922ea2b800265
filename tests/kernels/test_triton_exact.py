"""project_exact in Triton gives the CPU's pixels and certificates, to the bit, and so does each part of its search."""

import subprocess
import sys
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from scenes import by_libjpeg, in_colours_of, pictures, scene, tables_of, tensor_of

from kernels import Coefficients, Subsampling, decode, encode, numba_ops
from kernels.exact import DEFAULT_SETTINGS, PAIRED, SearchSettings, edge_bases
from kernels.libjpeg import compress, integer_dct
from kernels.numba_ops import exact as numba_exact
from kernels.numba_ops import lines as numba_lines
from kernels.numba_ops import mcus as numba_mcus
from kernels.numba_ops import pixels as numba_pixels
from kernels.numba_ops import samples as numba_samples
from kernels.triton_ops import exact, lines, mcus, pixels, samples
from kernels.triton_ops.exact import project_exact
from kernels.triton_ops.launch import three

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


def limited(attempts: int) -> SearchSettings:
    """So many attempts on an MCU: the interpreter would take minutes over a stubborn one."""
    return replace(DEFAULT_SETTINGS, margins=DEFAULT_SETTINGS.margins[:attempts])


def check(
    x: torch.Tensor, c: Coefficients, device: torch.device, settings: SearchSettings = DEFAULT_SETTINGS
) -> torch.Tensor:
    """Asserts that both give the same, and a true certificate, which it returns."""
    expected, counts = numba_ops.project_exact(x, c, settings)
    image, mismatches = project_exact(x.to(device), c.to(device), settings)
    assert (image.dtype, mismatches.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(mismatches.cpu(), counts)
    assert torch.equal(image.cpu(), expected)
    assert torch.equal(compress(image.cpu(), c.tables, c.sampling).mismatches(c), counts)
    return counts


def restored(
    sampling: Subsampling, size: tuple[int, int], qualities: list[int], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, Coefficients]:
    x = pictures(len(qualities), sampling, size).clamp(0, 255)
    tables = torch.cat([tables_of(quality, sampling) for quality in qualities])
    c = encode(x, tables, sampling)
    return (decode(c) + 3 * torch.randn(x.shape)).clamp(-9, 264).to(dtype), c


def blurred(sampling: Subsampling, size: tuple[int, int], quality: int, seed: int) -> tuple[torch.Tensor, Coefficients]:
    """A scene blurred and its contrast raised, and the file of the scene."""
    pixels = in_colours_of(scene(*size, seed), sampling)
    x = tensor_of(pixels).float()
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    mean = torch.nn.functional.avg_pool2d(wide, 3, 1)
    return mean + 0.3 * (x - x.mean()), by_libjpeg(pixels, tables_of(quality, sampling), sampling)


@ALL
@pytest.mark.usefixtures("poisoned")
def test_whole_mcus_are_the_cpus(sampling, device, seed):
    check(*restored(sampling, sampling.mcu, [10, 75]), device, limited(1))


@ALL
@pytest.mark.usefixtures("poisoned")
def test_mcus_over_the_edge_are_the_cpus(sampling, device):
    """A whole MCU beside such as have one column, one row, and a single pixel."""
    torch.manual_seed({"gray": 25, "4:4:4": 5, "4:2:2": 5, "4:4:0": 7, "4:2:0": 4}[sampling.label])
    height, width = sampling.mcu
    check(
        *restored(sampling, (height + 1, width + 1), [10 if sampling is Subsampling.S422 else 30]), device, limited(1)
    )


@pytest.mark.parametrize(("sampling", "size", "seed"), [(Subsampling.S420, (5, 1), 2), (Subsampling.S444, (6, 1), 7)])
def test_lines_at_edges_are_the_cpus(sampling, size, seed, device):
    """Pictures with lines, at 4:2:0 of pairs, that are soon found but not by steps."""
    torch.manual_seed(seed)
    check(*restored(sampling, size, [90]), device, limited(1))


@pytest.mark.parametrize("sampling", [Subsampling.S444, Subsampling.S420], ids=lambda sampling: sampling.label)
def test_attempts_at_edges_take_turns_as_the_cpus(sampling, device):
    """Pictures right after two more attempts, each with another order of planes; at 4:2:0 with pairs."""
    x, c = blurred(sampling, (7, 5), *{"4:4:4": (75, 120), "4:2:0": (50, 196)}[sampling.label])
    assert check(x, c, device, limited(3)).tolist() == [0]


def test_averages_that_bounds_make_impossible_are_counted_as_the_cpus(device):
    """A picture whose third attempt finds chroma that no pixels within luma's bounds have."""
    settings = replace(limited(3), alternations=3, edge_projections=2, max_turns=8, max_stale_turns=4)
    check(*blurred(Subsampling.S420, (4, 4), 90, 890), device, settings)


@ALL
def test_further_attempts_are_the_cpus(sampling, device):
    """Pictures of one MCU that is right after another attempt, not the first."""
    seeds = {"gray": 17, "4:4:4": 17, "4:2:2": 41, "4:4:0": 10, "4:2:0": 1}
    x, c = blurred(sampling, sampling.mcu, 75, seeds[sampling.label])
    assert check(x, c, device, limited(2)).tolist() == [0]


def test_programs_take_several_mcus_of_the_list(device, monkeypatch):
    monkeypatch.setattr(exact, "MENDERS", 2)
    monkeypatch.setattr(exact.mend_kernel, "configurations", (replace(exact.mend_kernel.configuration, blocks=1),))
    x, c = blurred(Subsampling.GRAY, Subsampling.GRAY.mcu, 75, 17)  # the one of the test above
    assert check(x.repeat(5, 1, 1, 1), Coefficients.cat([c] * 5), device, limited(2)).tolist() == [0] * 5


def test_all_kinds_of_attempts_are_the_cpus(device):
    """A picture of one MCU that comes nearer by each attempt: chroma first, luma first with each order of chroma, and
    a search over its pixels. Short searches: the interpreter would take half a minute over the default's."""
    x, c = blurred(Subsampling.S444, (8, 8), 98, 687)
    settings = SearchSettings(
        margins=DEFAULT_SETTINGS.margins[:4],
        first_pixel_attempt=3,
        alternations=4,
        max_turns=8,
        max_stale_turns=4,
        max_pixel_turns=8,
        max_stale_pixel_turns=4,
    )
    assert check(x, c, device, settings).tolist() == [0]
    fewer = [replace(settings, margins=settings.margins[:n]) for n in (1, 2, 3)]
    first, second, third = [numba_ops.project_exact(x, c, each)[1].item() for each in fewer]
    assert first > second > third > 0


@pytest.mark.parametrize(("size", "seed"), [((8, 8), 687), ((8, 5), 17)], ids=["whole", "edge"])
def test_a_stubborn_mcu_is_given_up_after_its_turns(size, seed, device):
    """With a limit of no turns the first attempt is the last."""
    x, c = blurred(Subsampling.S444, size, 98, seed)
    short = replace(limited(3), max_turns=8, max_stale_turns=4, alternations=4)
    none, single = replace(short, turns_per_step=0), replace(short, margins=short.margins[:1])
    assert check(x, c, device, none).item() > 0
    assert torch.equal(numba_ops.project_exact(x, c, none)[0], numba_ops.project_exact(x, c, single)[0])
    assert numba_ops.project_exact(x, c, none)[1] > numba_ops.project_exact(x, c, short)[1]


def test_pixels_searched_from_the_second_attempt_on_leave_none_with_luma_first(device):
    x, c = blurred(Subsampling.S444, (8, 8), 98, 687)
    settings = replace(limited(2), first_pixel_attempt=1, alternations=4, max_pixel_turns=8, max_stale_pixel_turns=4)
    first, both = (replace(settings, margins=settings.margins[:n]) for n in (1, 2))
    assert check(x, c, device, first).item() > check(x, c, device, both).item()


@pytest.mark.parametrize("wrong", [{"first_pixel_attempt": 0}, {"turns_per_step": -1}, {"turns_per_step": 1 << 20}])
def test_settings_that_devices_would_take_differently_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(DEFAULT_SETTINGS, **wrong)


@pytest.mark.parametrize("sampling", [Subsampling.GRAY, Subsampling.S420], ids=lambda sampling: sampling.label)
def test_coefficients_that_no_image_has(sampling, device, seed):
    x, c = restored(sampling, sampling.mcu, [50])
    planes = tuple(plane + torch.randint(500, 900, plane.shape, dtype=torch.int16) for plane in c.planes)
    assert check(x, Coefficients(planes, c.tables, sampling, c.size), device, limited(2)).item() > 20


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.bfloat16, torch.channels_last),
        (torch.float16, torch.contiguous_format),
        (torch.uint8, torch.channels_last),
    ],
)
def test_dtypes_and_layouts(dtype, layout, device, seed):
    x, c = restored(Subsampling.S444, (8, 16), [5, 10])
    check(x.clamp(0, 255).to(dtype).contiguous(memory_format=layout), c, device, limited(1))


def test_a_view_may_start_anywhere_and_needs_no_other_kernels(device, seed, monkeypatch):
    """As each sample of a file's is one, of all its samples. Triton compiles others for addresses that are no multiples
    of 16; the interpreter compiles none, so the addresses are noted on their way to the kernels."""
    x, c = restored(Subsampling.GRAY, (9, 9), [5])
    several = torch.cat([torch.zeros_like(x), x]).to(device)
    assert several[1:].data_ptr() % 16 != 0
    starts, launch = [], exact.launch

    def noted(kernel, kind, size, count, image, *arguments, **more):
        starts.append(image.data_ptr() % 16)
        launch(kernel, kind, size, count, image, *arguments, **more)

    monkeypatch.setattr(exact, "launch", noted)
    assert torch.equal(project_exact(several[1:], c.to(device))[0].cpu(), numba_ops.project_exact(x, c)[0])
    assert starts == [0, 0, 0]


def test_no_float_is_too_strange(device, seed):
    x, c = restored(Subsampling.S444, (8, 8), [10])
    x[0, 0, ::3], x[0, 1, ::5], x[0, 2, ::7], x[0, :, 1] = float("nan"), float("inf"), -float("inf"), 3e38
    check(x, c, device, limited(1))


@triton.jit
def steps_kernel(blocks, low, high, bases, up, down, B: tl.constexpr, COLUMNS: tl.constexpr):
    one = tl.arange(0, B)
    where = 64 * one[:, None, None] + samples.places()
    rows, found = samples.transform(tl.load(blocks + where), bases, ())
    ends = tl.load(low + where), tl.load(high + where)
    rise, fall = samples.measure_steps(rows, found, ends[0], ends[1], bases, (), one * 0, COLUMNS)
    tl.store(up + where, rise)
    tl.store(down + where, fall)


def test_steps_cost_the_same_however_many_columns_are_measured_at_once(device, seed):
    """A GPU measures one, the interpreter all eight."""
    blocks = torch.randint(-128, 128, (4, 64), dtype=torch.int32)
    middle = integer_dct(blocks.float()).int() + torch.randint(-40, 41, blocks.shape, dtype=torch.int32)
    given = [tensor.to(device) for tensor in (blocks, middle - 12, middle + 12)]
    costs = torch.zeros(3, 2, 4, 64, dtype=torch.int32, device=device)
    for n, columns in enumerate((1, 2, 8)):
        steps_kernel[(1,)](*given, edge_bases(device), costs[n, 0], costs[n, 1], B=4, COLUMNS=columns)
    assert torch.equal(costs[0], costs[1])
    assert torch.equal(costs[0], costs[2])
    assert costs.float().std() > 0


@triton.jit
def line_kernel(
    start, middle, low, high, bases, rows, columns, found, solved, nodes, SETTINGS: tl.constexpr, B: tl.constexpr
):
    one = tl.arange(0, B)
    where = 64 * one[:, None, None] + samples.places()
    slots = tl.load(rows + one), tl.load(columns + one)
    given = tl.load(start + where)
    least, most = given * 0 - 128, given * 0 + 127
    sums = tl.full([B, 8], -256, tl.int32), tl.full([B, 8], 254, tl.int32)
    line, success, tried = lines.search_line(
        given, tl.load(middle + where), least, most, sums, tl.load(low + where), tl.load(high + where), bases, slots,
        one >= 0, SETTINGS,
    )  # fmt: skip
    tl.store(found + where, line)
    tl.store(solved + one, success.to(tl.int32))
    tl.store(nodes + one, tried)


@numba.njit
def search_lines(  # numba takes no keywords alone
    samples: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, constants: tuple, rows: np.ndarray,
    columns: np.ndarray,
) -> list[tuple[bool, int]]:  # fmt: skip
    """The same in numba, in place."""
    found, least, most = [], np.full(64, -128, np.int32), np.full(64, 127, np.int32)
    work, settings, bases = np.zeros((numba_samples.WORK, 64), np.int32), constants[0], constants[1]
    work[numba_samples.SUMS, :8], work[numba_samples.SUMS, 8:16] = -256, 254
    for n in range(len(samples)):
        arguments = samples[n], middle[n], least, most, low[n], high[n], bases, rows[n], columns[n]
        found.append(numba_lines.search_line(*arguments, settings, work))
    return found


def random_line(random: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A block's slots, and the block [8, 8] that they stand for."""
    values = random.integers(-100, 100, (rows, min(columns, 8)))
    if columns > PAIRED:
        values = (values[:, :1] + np.arange(8) % 2) >> 1
    slots = np.zeros((8, 8), np.int32)
    slots[:rows, : columns % PAIRED or 8] = values[:, : columns % PAIRED or 8]
    return slots, np.pad(values, ((0, 8 - rows), (0, 8 - values.shape[1])), mode="edge")


def test_lines_are_the_cpus(device, seed):
    """Rows, columns and columns of pairs, of those that the CPU's settles soon, as the interpreter is slow."""
    random, count = np.random.default_rng(seed), 64
    rows, columns = random.integers(1, 9, count), random.integers(1, 9, count)
    rows[::2], columns[1::2] = 1, 1
    rows[::4], columns[::4] = random.integers(2, 9, count // 4), PAIRED + 2
    middle, low, high = np.zeros((3, count, 64), np.int32)
    for n in range(count):
        slots, whole = random_line(random, int(rows[n]), int(columns[n]))
        dct = integer_dct(torch.from_numpy(whole.reshape(64)).float()).numpy().astype(np.int32)
        low[n], high[n] = dct - 12, dct + 12
        middle[n] = (16 * slots + np.where(slots, random.integers(-16, 17, (8, 8)), 0)).reshape(64)
    low[:8, 63] = high[:8, 63] + 1  # no line has that
    expected = np.zeros_like(middle)
    constants = numba_exact.constants_of(DEFAULT_SETTINGS)
    results = search_lines(expected, middle, low, high, constants, rows, columns)
    soon = np.array([n for n, (_, nodes) in enumerate(results) if nodes <= 60][:32])
    given = [torch.from_numpy(array[soon]).to(device) for array in (0 * middle, middle, low, high)]
    shape = [torch.from_numpy(array[soon]).int().to(device) for array in (rows, columns)]
    found, counts = torch.zeros_like(given[0]), torch.zeros(2, 32, dtype=torch.int32).to(device)
    line_kernel[(1,)](*given, edge_bases(device), *shape, found, counts[0], counts[1], DEFAULT_SETTINGS, B=32)
    assert np.array_equal(found.cpu().numpy(), expected[soon])
    assert counts.T.tolist() == [list(results[n]) for n in soon]
    assert 0 < counts[0].sum() < 32
    assert any(results[n][0] for n in soon if n % 4 == 0)


@triton.jit
def pixel_kernel(
    x, luma, blue, red, tables, bases, out, wrong, turns, count, columns, height, width,
    SETTINGS: tl.constexpr, V: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Images of one row of MCUs."""
    mcu = tl.arange(0, G)
    there, mcu = mcu < count, tl.minimum(mcu, count - 1)
    grid, shape, area = (count, 1, columns), (height, width), height * width
    size = mcus.sizes(mcu, there, grid, shape, V, H)
    r, g, b = mcus.load_pixels(x, mcu, size, grid, (3 * area, area, width, 1), 3, V, H)
    luma_ends, chroma_ends = exact.load_file((luma, blue, red, tables), mcu, grid, 3, V, H)
    r, g, b, left, took = pixels.search_pixels(
        r >> 4, g >> 4, b >> 4, luma_ends, chroma_ends, bases, there, SETTINGS, V, H
    )
    mcus.store_pixels(out, r, g, b, there, mcu, size, grid, shape, 3, V, H)
    tl.store(wrong + mcu, left, mask=there)
    tl.store(turns + mcu, took, mask=there)


@numba.njit
def search_mcus(  # numba takes no keywords alone
    image: np.ndarray, luma: np.ndarray, blue: np.ndarray, red: np.ndarray, tables: np.ndarray, vertical: int,
    horizontal: int, constants: tuple,
) -> list[tuple[int, int]]:  # fmt: skip
    """The same in numba, in place: what is wrong with each MCU, and the turns."""
    found, count, wide = [], vertical * horizontal, 8 * horizontal
    low, high = np.zeros((count + 2, 64), np.int32), np.zeros((count + 2, 64), np.int32)
    rgb, works = np.zeros((3, 64 * count), np.int32), np.zeros((count + 2, numba_samples.WORK, 64), np.int32)
    settings, bases, spreads, _ = constants
    for m in range(image.shape[2] // wide):
        for n in range(count):
            numba_mcus.load_intervals(
                luma[n // horizontal, m * horizontal + n % horizontal], tables[0], low[n], high[n]
            )
        numba_mcus.load_intervals(blue[0, m], tables[1], low[count], high[count])
        numba_mcus.load_intervals(red[0, m], tables[2], low[count + 1], high[count + 1])
        part = image[:, :, m * wide : (m + 1) * wide]
        for p in range(64 * count):
            rgb[:, p] = part[:, p // wide, p % wide]
        arguments = rgb, low, high, vertical, horizontal, bases, spreads[8], settings, works
        found.append(numba_pixels.search_pixels(*arguments))
        for p in range(64 * count):
            part[:, p // wide, p % wide] = rgb[:, p]
    return found


def test_searched_pixels_are_the_cpus(device, seed):
    """A file's own image, some values moved."""
    sampling = Subsampling.S420
    (height, width), (vertical, horizontal), count = sampling.mcu, sampling.factors, 2
    image = tensor_of(scene(height, count * width, seed))
    c = by_libjpeg(scene(height, count * width, seed), tables_of(90, sampling), sampling)
    moved = torch.randint(-2, 3, image.shape) * (torch.rand(image.shape) < 0.03)
    start = (image.int() + moved).clamp(0, 255).to(torch.uint8)
    expected, constants = start[0].int().numpy(), numba_exact.constants_of(DEFAULT_SETTINGS)
    planes, tables = [plane[0].flatten(2).numpy() for plane in c.planes], c.tables[0].flatten(1).numpy()
    found = search_mcus(expected, *planes, tables, vertical, horizontal, constants)
    out, left = torch.zeros_like(start).to(device), torch.zeros(2, count, dtype=torch.int32).to(device)
    file = (*three([plane.to(device) for plane in c.planes]), c.tables.to(device))
    pixel_kernel[(1,)](
        start.to(device), *file, edge_bases(device), out, left[0], left[1], count, count, height, count * width,
        DEFAULT_SETTINGS, V=vertical, H=horizontal, G=4, num_warps=8,
    )  # fmt: skip
    assert np.array_equal(out[0].cpu().numpy(), expected)
    assert left.T.tolist() == [list(pair) for pair in found]
    assert any(turns > 0 for _, turns in found)


def test_it_is_a_custom_operator(device, seed):
    sampling = Subsampling.S444
    x = pictures(1, sampling, (8, 8)).clamp(0, 255)
    c = encode(x, tables_of(5, sampling), sampling).to(device)
    planes = [plane.contiguous() for plane in c.planes]
    x = x.to(device)
    settings = limited(1)
    margins, *limits = vars(settings).values()
    arguments = x, planes, c.tables, sampling.label, *c.size, margins, limits
    torch.library.opcheck(torch.ops.jpeg_posterior.project_exact, arguments)
    compiled = torch.compile(project_exact, fullgraph=True, backend="eager")
    with torch.autocast(device.type, torch.bfloat16):
        for mine, theirs in zip(compiled(x, c, settings), project_exact(x, c, settings), strict=True):
            assert torch.equal(mine, theirs)


def test_it_needs_no_numba():
    code = "import sys; sys.modules['numba'] = None; from kernels.triton_ops import project_exact"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
