"""project_exact for the CPU, as kernels/exact.py explains it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numba import int32, int64
from numpy.typing import NDArray
from torch import Tensor

from kernels.coefficients import Coefficients, check_images
from kernels.exact import (
    ALTERNATIONS,
    APART,
    CHROMA_FIRST,
    DRAWS,
    FAR,
    INTO_ROWS,
    LATE,
    PATIENCE,
    PIXEL_TURN,
    SOON,
    edge_bases,
    ranges_of,
)
from kernels.numba_ops.block import FOUND, WORK, Ints, into_intervals, judge, transform
from kernels.numba_ops.compiler import compiling, inlined, jit, kernel
from kernels.numba_ops.gamut import to_pixels, to_triples
from kernels.numba_ops.joint import search_pixels
from kernels.numba_ops.mcu import Geometry, bias_of, gather_block, intervals, load_mcu, move_chroma, put_luma, slots_of
from kernels.numba_ops.planes import BLOCK, SAMPLES, Constants, attempt


@jit
def convert(rgb: Ints, ycc: Ints) -> None:
    """[3, P] → [3, P], both in sixteenths: libjpeg's weights, luma less 128."""
    for p in range(rgb.shape[1]):
        red, green, blue = rgb[0, p], rgb[1, p], rgb[2, p]
        ycc[0, p] = (int32(19595 * red + 38470 * green + 7471 * blue + 32768) >> 16) - 2048
        ycc[1, p] = int32(-11059 * red - 21709 * green + 32768 * blue + 32768) >> 16
        ycc[2, p] = int32(32768 * red - 27439 * green - 5329 * blue + 32768) >> 16


@jit
def convert_back(ycc: Ints, rgb: Ints) -> int:
    """The inverse, limited to 0..255. Returns by how much that has changed the channels, all together."""
    beyond = int32(0)
    for p in range(rgb.shape[1]):
        y, cb, cr = int32(ycc[0, p] + 2048), ycc[1, p], ycc[2, p]
        red = int32(y + (int32(91881 * cr + 32768) >> 16))
        green = int32(y + (int32(-22554 * cb - 46802 * cr + 32768) >> 16))
        blue = int32(y + (int32(116130 * cb + 32768) >> 16))
        rgb[0, p] = min(max(red, int32(0)), int32(4080))
        rgb[1, p] = min(max(green, int32(0)), int32(4080))
        rgb[2, p] = min(max(blue, int32(0)), int32(4080))
        beyond = int32(beyond + abs(red - rgb[0, p]) + abs(green - rgb[1, p]) + abs(blue - rgb[2, p]))
    return beyond


@jit
def alternate(
    rgb: Ints, ycc: Ints, low: Ints, high: Ints, geometry: Geometry, draw: int, bases: Ints, work: Ints
) -> int:
    """Brings a wanted MCU [3, P] towards intervals and gamut, both of which are convex: von Neumann's alternating
    projections. Leaves RGB within its limits, and its YCbCr. Returns how far apart the two sets were in the end:
    sixteenths of a gray level, all channels together."""
    luma_blocks, block, before = geometry[0] * geometry[1], work[BLOCK], work[SAMPLES]
    beyond = 0
    for done in range(ALTERNATIONS):
        if done == SOON and beyond > FAR * APART * ycc.size:
            break
        for n in range(low.shape[0]):
            slot_rows, slot_columns = slots_of(n, geometry)
            gather_block(ycc, n, geometry, block)
            for p in range(64):
                before[p] = block[p]
            into_intervals(block, low[n], high[n], bases, slot_rows, slot_columns, draw, work)
            if n < luma_blocks:
                put_luma(block, n, geometry, ycc[0])
                continue
            for p in range(64):
                before[p] = block[p] - before[p]
            move_chroma(ycc[n - luma_blocks + 1], before, geometry)
        beyond = 0
        if low.shape[0] == 1:
            for p in range(64):
                limited = min(max(ycc[0, p], -2048), 2032)
                beyond += abs(ycc[0, p] - limited)
                ycc[0, p] = limited
        else:
            beyond = convert_back(ycc, rgb)
            convert(rgb, ycc)
    return beyond


@jit
def recount(ycc: Ints, low: Ints, high: Ints, geometry: Geometry, bases: Ints, work: Ints) -> int:
    """How many coefficients of an MCU [C, P], its pixels' YCbCr, libjpeg-turbo would write otherwise."""
    vertical, horizontal, rows, columns = geometry
    luma_blocks, width, samples = vertical * horizontal, 8 * horizontal, work[SAMPLES]
    wrong = 0
    for number in range(luma_blocks + ycc.shape[0] - 1):
        slot_rows, slot_columns = slots_of(number, geometry)
        top, left = 8 * (number // horizontal), 8 * (number % horizontal)
        if number < luma_blocks and (slot_rows == 0 or slot_columns == 0):
            continue
        for p in range(64):
            r, c = p >> 3, p & 7
            if number < luma_blocks:
                samples[p] = ycc[0, min(top + r, rows - 1) * width + min(left + c, columns - 1)]
                continue
            plane, total = number - luma_blocks + 1, 0
            r = min(r, (rows - 1) // vertical)
            for y in range(r * vertical, (r + 1) * vertical):
                for x in range(c * horizontal, (c + 1) * horizontal):
                    total += ycc[plane, min(y, rows - 1) * width + min(x, columns - 1)]
            samples[p] = (total + bias_of(vertical, horizontal, c)) // luma_blocks
        transform(samples, bases, int64(8), int64(8), work)
        wrong += judge(work[FOUND], low[number], high[number])[1]
    return wrong


@inlined
def project_mcu(
    wanted: Ints,
    low: Ints,
    high: Ints,
    geometry: Geometry,
    constants: Constants,
    space: Ints,
    works: Ints,
    best: Ints,
) -> int:
    """A wanted MCU [C, P] in sixteenths → its pixels [C, P]. Returns how many coefficients are wrong. space: [3, C, P],
    and works: [blocks, WORK, 64], to work in."""
    vertical, horizontal, rows, columns = geometry
    draws, bases = constants.draws, constants.bases
    whole = rows == 8 * vertical and columns == 8 * horizontal
    components, pixels, blocks = wanted.shape[0], wanted.shape[1], low.shape[0]
    ycc, found, candidate = space[0], space[1], space[2]
    if components == 3:
        convert(wanted, ycc)
    else:
        for p in range(pixels):
            ycc[0, p] = wanted[0, p] - 2048
    fewest, turns, tight = 1 << 20, 0, True
    for n in range(len(draws)):
        if fewest == 0 or not tight or turns > PATIENCE * blocks:
            break
        if n and alternate(wanted, ycc, low, high, geometry, draws[n], bases, works[0]) > APART * components * pixels:
            break
        in_turns = components == 3 and (LATE < n <= LATE + 2 or not whole)
        order = n % 3 if in_turns else CHROMA_FIRST
        wrong, took, tight = attempt(ycc, low, high, geometry, draws[n], order, constants, found, candidate, works[0])
        turns += took
        if components == 1:
            for p in range(pixels):
                candidate[0, p] = found[0, p] + 128
        elif to_pixels(found, wanted, candidate) > 0:  # what the search has counted is not what the pixels are
            to_triples(candidate, found)
            wrong, tight = recount(found, low, high, geometry, bases, works[0]), True
        if n >= LATE and order == CHROMA_FIRST and wrong > 0 and tight and components == 3 and whole:
            wrong, took = search_pixels(candidate, low, high, vertical, horizontal, bases, constants.spreads[8], works)
            turns += PIXEL_TURN * took
        if wrong < fewest:
            fewest = wrong
            for component in range(components):
                for p in range(pixels):
                    best[component, p] = candidate[component, p]
    return fewest


@kernel
def project_image(
    x: NDArray[np.float32],
    luma: NDArray[np.int16],
    blue: NDArray[np.int16],
    red: NDArray[np.int16],
    tables: Ints,
    vertical: int,
    horizontal: int,
    constants: Constants,
    out: NDArray[np.uint8],
) -> int:
    """x [C, H, W] → out, of which it returns how many coefficients are wrong. Planes [rows, columns, 64] (gray has its
    luma thrice), tables [C, 64]."""
    components, height, width = x.shape
    tall, wide, luma_blocks = 8 * vertical, 8 * horizontal, vertical * horizontal
    pixels, blocks = tall * wide, luma_blocks + components - 1
    wanted, best = np.zeros((components, pixels), np.int32), np.zeros((components, pixels), np.int32)
    space, works = np.zeros((3, components, pixels), np.int32), np.zeros((blocks, WORK, 64), np.int32)
    low, high = np.empty((blocks, 64), np.int32), np.empty((blocks, 64), np.int32)
    mismatches = 0
    for row in range((height + tall - 1) // tall):
        for column in range((width + wide - 1) // wide):
            top, left = row * tall, column * wide
            rows, columns = min(tall, height - top), min(wide, width - left)
            for n in range(luma_blocks):
                y, z = row * vertical + n // horizontal, column * horizontal + n % horizontal
                intervals(luma[y, z], tables[0], low[n], high[n])
            if components == 3:
                intervals(blue[row, column], tables[1], low[luma_blocks], high[luma_blocks])
                intervals(red[row, column], tables[2], low[luma_blocks + 1], high[luma_blocks + 1])
            load_mcu(x, top, left, rows, columns, wide, wanted)
            geometry = (vertical, horizontal, rows, columns)
            mismatches += project_mcu(wanted, low, high, geometry, constants, space, works, best)
            for component in range(components):
                for r in range(rows):
                    for c in range(columns):
                        out[component, top + r, left + c] = best[component, r * wide + c]
    return mismatches


@cache
def _constants() -> Constants:
    bases = edge_bases().numpy()
    return Constants(np.array(DRAWS, np.int32), bases, np.repeat(bases[INTO_ROWS], 8, axis=2), ranges_of(0).numpy())


@cache
def compile_kernels(quiet: bool = False) -> None:
    """Compiles what `project_exact` calls, or loads what has been compiled before. Processes that are forked afterwards
    have it. Says on stderr when that takes long, unless quiet."""
    with compiling(project_image.__name__, quiet):
        flat = np.zeros((1, 1, 1, 64), np.int16)
        _project(np.zeros((1, 1, 8, 8), np.float32), [flat] * 3, np.ones((1, 1, 64), np.int32), (1, 1))


def _project(
    images: NDArray[np.float32], planes: Sequence[NDArray[np.int16]], tables: Ints, factors: tuple[int, int]
) -> tuple[NDArray[np.uint8], list[int]]:
    out = np.empty(images.shape, np.uint8)
    luma, blue, red = planes
    mismatches: list[int] = [
        project_image(x, luma[n], blue[n], red[n], tables[n], *factors, _constants(), out[n])
        for n, x in enumerate(images)
    ]
    return out, mismatches


def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """See `kernels.project_exact`."""
    check_images(x, c.tables, c.sampling)
    compile_kernels()
    planes = [plane.flatten(3).contiguous().numpy() for plane in (c.planes * 3)[:3]]
    tables = c.tables.flatten(2).int().contiguous().numpy()
    images = x.detach().float().contiguous().numpy()
    out, mismatches = _project(images, planes, tables, c.sampling.factors)
    return torch.from_numpy(out), torch.tensor(mismatches)
