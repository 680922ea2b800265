"""project_exact: the 8-bit image near x that libjpeg-turbo compresses to exactly c. The algorithm is in
kernels/exact.py.

Shapes: C components; P pixels of an MCU, flat, by row; its blocks, luma's first, with 64 samples or coefficients each.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import fields
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.coefficients import Coefficients, check_images
from kernels.exact import (
    BLUE_SECOND,
    CHROMA_FIRST,
    DEFAULT_SETTINGS,
    INTO_ROWS,
    WIDE_STEP,
    SearchSettings,
    edge_bases,
    ranges_of,
)
from kernels.numba_ops.chroma import move_chroma
from kernels.numba_ops.compiler import compiling, inlined, jit, kernel
from kernels.numba_ops.gamut import convert, convert_back, recount, to_pixels, to_triples
from kernels.numba_ops.mcus import Geometry, load_intervals, load_pixels, slots_of
from kernels.numba_ops.pixels import search_pixels
from kernels.numba_ops.planes import BLOCK, SAMPLES, Constants, attempt, gather_block, put_luma
from kernels.numba_ops.samples import WORK, Ints, into_intervals

Settings = namedtuple("Settings", [field.name for field in fields(SearchSettings)])  # type: ignore[misc]
"""SearchSettings for numba, which takes no dataclasses."""


@jit
def alternate(
    rgb: Ints, ycc: Ints, low: Ints, high: Ints, geometry: Geometry, margin: int, constants: Constants, work: Ints
) -> int:
    """Brings a wanted MCU [3, P] towards intervals and gamut, both of which are convex: von Neumann's alternating
    projections. Leaves RGB within its limits, and its YCbCr. Returns how far apart the two sets were in the end:
    sixteenths of a gray level, all channels together."""
    luma_blocks, block, before = geometry[0] * geometry[1], work[BLOCK], work[SAMPLES]
    settings, bases = constants.settings, constants.bases
    beyond, far = 0, settings.early_factor * settings.max_gamut_distance * ycc.size
    for done in range(settings.alternations):
        if done == settings.early_alternations and beyond > far:
            break
        for n in range(low.shape[0]):
            slot_rows, slot_columns = slots_of(n, geometry)
            gather_block(ycc, n, geometry, block)
            for p in range(64):
                before[p] = block[p]
            into_intervals(block, low[n], high[n], bases, slot_rows, slot_columns, margin, work)
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
def turn_limit(low: Ints, high: Ints, turns_per_step: int) -> int:
    """The turns after which an MCU is given no further attempt. low, high: [blocks, 64]."""
    widths = 0
    for n in range(low.shape[0]):
        for i in range(64):
            widths += min(high[n, i] - low[n, i] + 1, 8 * WIDE_STEP)
    return turns_per_step * widths // (8 * 64)


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
    settings, margins, bases = constants.settings, constants.settings.margins, constants.bases
    whole = rows == 8 * vertical and columns == 8 * horizontal
    components, pixels = wanted.shape
    ycc, found, candidate = space[0], space[1], space[2]
    if components == 3:
        convert(wanted, ycc)
    else:
        for p in range(pixels):
            ycc[0, p] = wanted[0, p] - 2048
    apart, first_late = settings.max_gamut_distance * components * pixels, settings.first_pixel_attempt
    fewest, turns, tight = 1 << 20, 0, True
    limit = turn_limit(low, high, settings.turns_per_step)
    for n in range(len(margins)):
        if fewest == 0 or not tight or turns > limit:
            break
        if n and alternate(wanted, ycc, low, high, geometry, margins[n], constants, works[0]) > apart:
            break
        order = CHROMA_FIRST
        if components == 3 and not whole:
            order = n % 3
        elif components == 3 and max(first_late - 2, 1) <= n < first_late:
            order = BLUE_SECOND + n - (first_late - 2)
        wrong, took, tight = attempt(ycc, low, high, geometry, margins[n], order, constants, found, candidate, works[0])
        turns += took
        if components == 1:
            for p in range(pixels):
                candidate[0, p] = found[0, p] + 128
        else:
            missed = to_pixels(found, wanted, candidate)
            if missed > 0 or n > 0 or not whole:  # averages may be missed, and triples not be those of a pixel
                to_triples(candidate, found)
                counted, wrong = wrong, recount(found, low, high, geometry, bases, works[0, SAMPLES], works[0])
                tight = tight or missed > 0 or wrong != counted
        if n >= first_late and wrong > 0 and tight and components == 3 and whole:
            wrong, took = search_pixels(
                candidate, low, high, vertical, horizontal, bases, constants.spreads[8], settings, works
            )
            turns += settings.turns_per_pixel_turn * took
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
                load_intervals(luma[y, z], tables[0], low[n], high[n])
            if components == 3:
                load_intervals(blue[row, column], tables[1], low[luma_blocks], high[luma_blocks])
                load_intervals(red[row, column], tables[2], low[luma_blocks + 1], high[luma_blocks + 1])
            load_pixels(x, top, left, rows, columns, wide, wanted)
            geometry = (vertical, horizontal, rows, columns)
            mismatches += project_mcu(wanted, low, high, geometry, constants, space, works, best)
            for component in range(components):
                for r in range(rows):
                    for c in range(columns):
                        out[component, top + r, left + c] = best[component, r * wide + c]
    return mismatches


@cache
def constants_of(settings: SearchSettings) -> Constants:
    bases, margins = edge_bases().numpy(), np.array(settings.margins, np.int32)
    named = Settings(**vars(settings) | {"margins": margins})
    return Constants(named, bases, np.repeat(bases[INTO_ROWS], 8, axis=2), ranges_of(0).numpy())


@cache
def compile_kernels(quiet: bool = False) -> None:
    """Compiles what `project_exact` calls, or loads what has been compiled before. Processes that are forked afterwards
    have it. Says on stderr when that takes long, unless quiet."""
    with compiling(project_image.__name__, quiet):
        flat = np.zeros((1, 1, 1, 64), np.int16)
        _project(
            np.zeros((1, 1, 8, 8), np.float32), [flat] * 3, np.ones((1, 1, 64), np.int32), (1, 1), DEFAULT_SETTINGS
        )


def _project(
    images: NDArray[np.float32],
    planes: Sequence[NDArray[np.int16]],
    tables: Ints,
    factors: tuple[int, int],
    settings: SearchSettings,
) -> tuple[NDArray[np.uint8], list[int]]:
    out = np.empty(images.shape, np.uint8)
    luma, blue, red = planes
    mismatches: list[int] = [
        project_image(x, luma[n], blue[n], red[n], tables[n], *factors, constants_of(settings), out[n])
        for n, x in enumerate(images)
    ]
    return out, mismatches


def project_exact(x: Tensor, c: Coefficients, settings: SearchSettings = DEFAULT_SETTINGS) -> tuple[Tensor, Tensor]:
    """See `kernels.project_exact`."""
    check_images(x, c.tables, c.sampling, c.size)
    c.check_steps()
    compile_kernels()
    planes = [plane.flatten(3).contiguous().numpy() for plane in (c.planes * 3)[:3]]
    tables = c.tables.flatten(2).int().contiguous().numpy()
    images = x.detach().float().contiguous().numpy()
    out, mismatches = _project(images, planes, tables, c.sampling.factors, settings)
    return torch.from_numpy(out), torch.tensor(mismatches, device=x.device)
