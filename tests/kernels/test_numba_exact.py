"""What kernels/numba_ops builds on: libjpeg's integers, the colours that pixels can have, and bounded work."""

import fcntl
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from scenes import by_libjpeg, in_colours_of, scene, tables_of, tensor_of

from kernels import Coefficients, Subsampling, project_exact
from kernels.exact import DEFAULT_SETTINGS, edge_bases, ranges_of
from kernels.libjpeg import integer_dct, integer_ycc
from kernels.numba_ops import chroma, compile_kernels, exact, gamut, lines, mcus, planes
from kernels.numba_ops import samples as blocks
from kernels.numba_ops.compiler import FOLDER, cache_folder, compiling

REACHED = 4_007_200
"""Triples (Y, Cb, Cr) that the 2^24 pixels become."""


@numba.njit
def pixels_of_all(ranges: np.ndarray) -> tuple[int, int, int]:
    """Of the triples in all ranges: how many there are, for how many no pixel is found, and how many pixels found have
    another triple."""
    ycc, rgb, again = np.empty((3, 256), np.int32), np.empty((3, 256), np.int32), np.empty((3, 256), np.int32)
    wanted = np.full((3, 256), 2040, np.int32)
    total = missed = other = 0
    for cb in range(256):
        for cr in range(256):
            least, most = ranges[cb, cr, 0], ranges[cb, cr, 1]
            for p in range(256):
                ycc[0, p], ycc[1, p], ycc[2, p] = min(max(p - 128, least), most), cb - 128, cr - 128
            if least <= most:
                total += most - least + 1
                missed += gamut.to_pixels(ycc, wanted, rgb)
                gamut.to_triples(rgb, again)
                other += (ycc != again).sum()
    return total, missed, other


@numba.njit
def triples_of(rgb: np.ndarray) -> np.ndarray:
    ycc = np.empty_like(rgb)
    gamut.to_triples(rgb, ycc)
    return ycc


@numba.njit
def pixels_near(ycc: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rgb = np.empty_like(ycc)
    gamut.to_pixels(ycc, wanted, rgb)
    return rgb


@numba.njit
def transformed(samples: np.ndarray, bases: np.ndarray) -> np.ndarray:
    work = np.zeros((blocks.WORK, 64), np.int32)
    blocks.transform(samples, bases, 8, 8, work)
    return work[blocks.FOUND]


@numba.njit
def searched(  # noqa: PLR0917  # numba takes no keywords alone
    samples: np.ndarray, least: np.ndarray, most: np.ndarray, low: np.ndarray, high: np.ndarray, constants: tuple
) -> tuple[int, int]:
    work = np.zeros((blocks.WORK, 64), np.int32)
    settings, bases, spreads, _ = constants
    turns = settings.max_turns
    return blocks.search(samples, least, most, low, high, bases, spreads[8], 8, 8, turns, settings, work)


@numba.njit
def found_on_a_line(  # noqa: PLR0917
    samples: np.ndarray,
    middle: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    constants: tuple,
    rows: int,
    columns: int,
) -> tuple[bool, int]:
    least, most = np.full(64, -128, np.int32), np.full(64, 127, np.int32)
    work = np.zeros((blocks.WORK, 64), np.int32)
    settings, bases, _, _ = constants
    found, _ = lines.search_line(samples, middle, least, most, low, high, bases, rows, columns, settings, work)
    blocks.transform(samples, bases, rows, columns, work)
    return found, blocks.judge(work[blocks.FOUND], low, high)[1]


@numba.njit
def spread(plane: np.ndarray, geometry: tuple, bounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Slots near those of a wanted plane, and the plane that `spread_chroma` makes of them."""
    block_of, samples, work = np.zeros(64, np.int32), np.zeros(64, np.int32), np.zeros((blocks.WORK, 64), np.int32)
    out, limits = np.zeros_like(plane), np.empty((2, len(plane)), np.int32)
    limits[0], limits[1] = -128, 127
    n = geometry[0] * geometry[1]
    planes.gather_block(np.stack((plane, plane, plane)), n, geometry, block_of)
    rows, columns = mcus.slots_of(n, geometry)
    for p in range(64):
        samples[p] = (block_of[p] + 8) >> 4
    work[blocks.SUMS, :8], work[blocks.SUMS, 8:16] = -256, 254
    if columns > blocks.PAIRED:
        planes.round_pairs(block_of, geometry[2], rows, columns, samples, work)
    chroma.spread_chroma(samples, plane, geometry, limits, bounded, out)
    return samples, out


def bounds_of(found: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervals in which 8 times a DCT, rounded, lies; sign(c) ((|c| + 4 Q) // 8 Q) for all integers near."""
    near = found + np.arange(-8 * step, 8 * step + 1)[:, None]

    def quantised(c: np.ndarray) -> np.ndarray:
        return np.sign(c) * ((np.abs(c) + 4 * step) // (8 * step))

    same = quantised(near) == quantised(found)
    low = np.where(same, near, 1 << 20).min(0)
    return low.astype(np.int32), np.where(same, near, -(1 << 20)).max(0).astype(np.int32)


def test_all_triples_that_pixels_have_come_back_to_a_pixel():
    total, missed, other = pixels_of_all(ranges_of(0).numpy())
    assert (total, missed, other) == (REACHED, 0, 0)


def test_of_pixels_with_one_triple_one_near_what_is_wanted_is_chosen(seed):
    """What is wanted, rounded, if it has the triple; else not much farther from it than the nearest of all."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (3, 4096)).astype(np.int32)
    ycc = triples_of(pixels)
    close = (16 * pixels + random.integers(-8, 8, pixels.shape)).clip(0, 4080).astype(np.int32)
    assert np.array_equal(pixels_near(ycc, close), pixels)
    wanted = (16 * pixels + random.normal(0, 16, pixels.shape)).clip(0, 4080).astype(np.int32)
    chosen = pixels_near(ycc, wanted)
    assert np.array_equal(triples_of(chosen), ycc)
    others = chosen[:, None] + np.mgrid[-4:5, -4:5, -4:5].reshape(3, -1, 1)
    inside = ((others >= 0) & (others <= 255)).all(0)
    triples = triples_of(others.reshape(3, -1).astype(np.int32)).reshape(others.shape)
    same = inside & (triples == ycc[:, None]).all(0)
    nearest = np.where(same, ((16 * others - wanted[:, None]) ** 2).sum(0), 1 << 30).min(0)
    found = ((16 * chosen - wanted) ** 2).sum(0)
    assert np.sqrt(found).mean() < 1.3 * np.sqrt(nearest).mean()


def test_the_ranges_hold_every_pixel_and_end_at_one(seed):
    ranges = ranges_of(0).numpy().astype(np.int64)
    values = torch.arange(256.0)
    found = np.zeros((*ranges.shape[:2], 256), bool)
    for red in range(256):
        rgb = torch.stack(torch.broadcast_tensors(torch.tensor(float(red)), values[:, None], values)).flatten(1)
        y, cb, cr = (plane.long().numpy() + 128 for plane in integer_ycc(rgb))
        found[cb, cr, y] = True
    some = found.any(2)
    assert np.array_equal(some, ranges[..., 0] <= ranges[..., 1])
    assert np.array_equal(found.argmax(2)[some] - 128, ranges[..., 0][some])
    assert np.array_equal(127 - found[..., ::-1].argmax(2)[some], ranges[..., 1][some])
    assert found.sum() == REACHED  # there is no gap between


def test_the_transform_is_libjpegs(seed):
    random = np.random.default_rng(seed)
    bases = edge_bases().numpy()
    for samples in random.integers(-128, 128, (200, 64)).astype(np.int32):
        expected = integer_dct(torch.from_numpy(samples).float()).numpy()
        assert np.array_equal((transformed(samples, bases) + 16384) >> 15, expected)


@pytest.mark.parametrize("step", [3, 8, 20])
def test_a_disturbed_block_finds_its_way_back_within_bounds(step, seed):
    random, left = np.random.default_rng(seed), 0
    constants, max_turns = exact.constants_of(DEFAULT_SETTINGS), DEFAULT_SETTINGS.max_turns
    for samples in random.integers(-100, 100, (40, 64)).astype(np.int32):
        found = integer_dct(torch.from_numpy(samples).float()).numpy().astype(np.int64)
        low, high = bounds_of(found, step)
        start = (samples + random.integers(-1, 2, 64)).astype(np.int32)
        least, most = start - 2, start + 2
        wrong, turns = searched(start, least, most, low, high, constants)
        again = integer_dct(torch.from_numpy(start).float()).numpy()
        assert wrong == ((again < low) | (again > high)).sum()
        assert turns <= max_turns
        assert (least <= start).all() and (start <= most).all()
        left += wrong
    assert left <= (4 if step == 3 else 0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (8, 1), (1, 3), (5, 1), (1, 1)])
def test_a_line_is_found(rows, columns, seed):
    random, found = np.random.default_rng(seed), 0
    constants = exact.constants_of(DEFAULT_SETTINGS)
    for _ in range(50):
        line = random.integers(-100, 100, (rows, columns))
        whole = np.pad(line, ((0, 8 - rows), (0, 8 - columns)), mode="edge").reshape(64)
        low, high = bounds_of(integer_dct(torch.from_numpy(whole).float()).numpy().astype(np.int64), 4)
        slots = np.zeros((8, 8), np.int32)
        slots[:rows, :columns] = line
        middle = (16 * slots.reshape(64) + random.integers(-10, 11, 64)).astype(np.int32)
        start = np.where(slots.reshape(64) != 0, slots.reshape(64) + 1, 0).astype(np.int32)
        success, wrong = found_on_a_line(start, middle, low, high, constants, rows, columns)
        assert not success or wrong == 0
        found += success
    assert found == 50


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("factors", [(2, 2), (1, 2), (2, 1)])
def test_chroma_at_full_resolution_has_the_averages_that_its_slots_say(factors, bounded, seed):
    """All sizes that an MCU can have, with libjpeg's averages of the repeated columns and rows."""
    random, (vertical, horizontal) = np.random.default_rng(seed), factors
    for rows in range(1, 8 * vertical + 1):
        for columns in range(1, 8 * horizontal + 1):
            wide = random.integers(-1500, 1500, (8 * vertical, 8 * horizontal)).astype(np.int32)
            geometry = (vertical, horizontal, rows, columns)
            slots, out = spread(wide.reshape(-1), geometry, bounded)
            true = out.reshape(wide.shape)[:rows, :columns]
            padded = np.pad(true, ((0, rows % vertical), (0, 8 * horizontal - columns)), mode="edge")
            sums = padded.reshape(-1, vertical, 8, horizontal).sum((1, 3))
            bias = np.array([[0, 0], [0, 1]] if vertical == 1 else [[1, 1], [1, 2]])[horizontal - 1][np.arange(8) % 2]
            found = (sums + bias) >> (vertical * horizontal // 2)
            slot_rows, inner = len(found), columns // horizontal
            last = inner + (horizontal == 2 and inner < 8)
            expected = slots.reshape(8, 8)[:slot_rows]
            assert np.array_equal(found[:, :last], expected[:, :last])
            for c in range(last, 8):  # even places have one half of the last column's sum, odd ones the other
                paired = factors == (2, 2) and rows > 1
                assert np.array_equal(found[:, c], expected[:, inner + (c - inner) % 2 if paired else last - 1])


def test_no_float_is_too_strange():
    sampling = Subsampling.S420
    c = by_libjpeg(in_colours_of(scene(40, 40, 3), sampling), tables_of(50, sampling), sampling)
    x = torch.full((1, 3, 40, 40), 100.0)
    x[0, 0, ::3], x[0, 1, ::5], x[0, 2, ::7], x[0, :, 1] = float("nan"), float("inf"), -float("inf"), 3e38
    image, mismatches = project_exact(x, c)
    assert image.dtype == torch.uint8
    assert mismatches.tolist() == [0]


def test_formats_of_the_image_change_nothing(seed):
    sampling = Subsampling.S422
    pixels = in_colours_of(scene(50, 37, seed), sampling)
    c, x = by_libjpeg(pixels, tables_of(80, sampling), sampling), tensor_of(pixels)
    expected, _ = project_exact(x.float(), c)
    for same in (x, x.double(), x.float().contiguous(memory_format=torch.channels_last)):
        assert torch.equal(project_exact(same, c)[0], expected)


@pytest.mark.parametrize("size", [(64, 64), (61, 47)])
def test_coefficients_that_no_image_has_take_bounded_work(size, seed):
    """Counted in attempts: a damaged MCU is left after the first, or the second."""
    sampling, random = Subsampling.S420, torch.Generator().manual_seed(seed)
    c = by_libjpeg(in_colours_of(scene(*size, seed), sampling), tables_of(50, sampling), sampling)
    planes = tuple(
        plane + torch.randint(500, 900, plane.shape, generator=random, dtype=torch.int16) for plane in c.planes
    )
    damaged = Coefficients(planes, c.tables, sampling, size)
    x = torch.rand(1, 3, *size, generator=random) * 255
    expected, mismatches = project_exact(x, damaged)
    assert int(mismatches) > 100
    two_attempts = replace(DEFAULT_SETTINGS, margins=DEFAULT_SETTINGS.margins[:2])
    assert torch.equal(exact.project_exact(x, damaged, two_attempts)[0], expected)


def test_another_process_finds_what_is_compiled():
    compile_kernels()
    code = (
        "from kernels.numba_ops import compile_kernels, exact\n"
        "compile_kernels()\n"
        "assert not exact.project_image.stats.cache_misses, exact.project_image.stats\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert FOLDER.is_dir()


@pytest.mark.parametrize("home", ["file", "/proc/none"])
def test_where_the_home_cannot_be_written_the_temporary_folder_serves(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert tmp_path in cache_folder().parents


def test_a_temporary_folder_that_others_can_write_does_not_serve(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = tmp_path / f"jpeg-posterior-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(RuntimeError, match=r"of this user's alone: tried .*set XDG_CACHE_HOME"):
        cache_folder()


def test_a_process_forked_while_compiling_does_not_hold_the_lock():
    end, begin = os.pipe()
    with compiling("nothing", quiet=True):
        child = os.fork()
        if not child:
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    os.close(end)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
    os.close(begin)
    os.waitpid(child, 0)
