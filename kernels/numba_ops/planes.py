"""An MCU plane by plane: the blocks of one plane are settled, and bound the values of the next, as every pixel has to
stay in the gamut.

Shapes: C components; P pixels of an MCU, flat, by row; its blocks, luma's first, with 64 samples or slots each, flat.
Wanted values are in sixteenths of a gray level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int32
from numpy.typing import NDArray

from kernels.exact import CHROMA_FIRST, PAIRED, RED_SECOND, WHOLE_INTERVAL, SearchSettings
from kernels.numba_ops.chroma import average, bound_slots, spread_chroma
from kernels.numba_ops.compiler import inlined, jit
from kernels.numba_ops.gamut import bound_chroma, bound_luma
from kernels.numba_ops.lines import search_line
from kernels.numba_ops.mcus import Geometry, first_pixel, slots_of
from kernels.numba_ops.samples import SUMS, Ints, count_of, halve, into_intervals, pair_slots, search

BLOCK, SAMPLES, LEAST, MOST = range(25, 29)
"""Rows of `work` above those of samples.py."""


class Constants(NamedTuple):
    """settings: a named tuple, its margins an array. bases: `edge_bases`. spreads: [9, 8, 64], as `search` takes one.
    ranges: `ranges_of(0)`."""

    settings: SearchSettings
    bases: Ints
    spreads: Ints
    ranges: NDArray[np.int16]


@jit
def gather_block(planes: Ints, n: int, geometry: Geometry, block: Ints) -> None:
    """The slots [64] of block n of wanted planes [C, P], luma's blocks first; 0 where there are none."""
    component = max(n - geometry[0] * geometry[1] + 1, 0)
    if component:
        average(planes[component], geometry, block)
        return
    slot_rows, slot_columns = slots_of(n, geometry)
    first = first_pixel(n, geometry[1])
    for p in range(64):
        inside = (p >> 3) < slot_rows and (p & 7) < slot_columns
        block[p] = planes[0, first + (p >> 3) * 8 * geometry[1] + (p & 7)] if inside else 0


@jit
def put_luma(block: Ints, n: int, geometry: Geometry, plane: Ints) -> None:
    """Writes the slots [64] of luma block n into the plane [P]: the inverse of `gather_block`."""
    slot_rows, slot_columns = slots_of(n, geometry)
    first = first_pixel(n, geometry[1])
    for p in range(64):
        if (p >> 3) < slot_rows and (p & 7) < slot_columns:
            plane[first + (p >> 3) * 8 * geometry[1] + (p & 7)] = block[p]


@jit
def round_pairs(block: Ints, rows: int, slot_rows: int, shape: int, samples: Ints, work: Ints) -> None:
    """Rounds the sums of paired slots within their bounds. One that stands for a single pixel twice, in the last of an
    odd number of rows, stays as it is from then on."""
    even, odd = pair_slots(shape)
    for r in range(slot_rows):
        total = (block[8 * r + even] + block[8 * r + odd] + 8) >> 4
        total = min(max(total, work[SUMS, r]), work[SUMS, 8 + r])
        if 2 * r + 1 == rows:
            total &= -2
            work[SUMS, r] = work[SUMS, 8 + r] = total
        halve(total, r, shape, samples)


@inlined
def settle(
    low: Ints, high: Ints, rows: int, slot_rows: int, slot_columns: int, margin: int, constants: Constants, work: Ints
) -> tuple[int, int]:
    """Moves the wanted slots of a block, work[BLOCK], into its intervals, and finds samples near them, work[SAMPLES],
    within work[LEAST] and work[MOST]. rows: true ones of its MCU. Returns how many coefficients are wrong, and the
    turns taken."""
    settings, bases, spread = constants.settings, constants.bases, constants.spreads[slot_rows]
    block, samples, least, most = work[BLOCK], work[SAMPLES], work[LEAST], work[MOST]
    for _ in range(1 if slot_rows == 8 and slot_columns == 8 else settings.edge_projections):
        if not into_intervals(block, low, high, bases, slot_rows, slot_columns, margin, work):
            break
    held = 0
    for p in range(64):
        sample = (block[p] + 8) >> 4
        samples[p] = min(max(sample, least[p]), most[p])
        held += abs(sample - samples[p])
    if slot_columns > PAIRED:
        round_pairs(block, rows, slot_rows, slot_columns, samples, work)
    turns = 0 if held > settings.max_clipping else settings.max_turns
    missed, took = search(
        samples, least, most, low, high, bases, spread, slot_rows, slot_columns, turns, settings, work
    )
    if missed > 0 and (min(slot_rows, slot_columns) == 1 or slot_columns == PAIRED + 2):
        into_intervals(block, low, high, bases, slot_rows, slot_columns, int32(WHOLE_INTERVAL), work)
        found, nodes = search_line(
            samples, block, least, most, low, high, bases, slot_rows, slot_columns, settings, work
        )
        missed, took = 0 if found else missed, took + nodes // settings.nodes_per_turn
    return missed, took


@inlined
def attempt(
    wanted: Ints,
    low: Ints,
    high: Ints,
    geometry: Geometry,
    margin: int,
    order: int,
    constants: Constants,
    out: Ints,
    limits: Ints,
    work: Ints,
) -> tuple[int, int, bool]:
    """One attempt on an MCU: wanted [C, P] in sixteenths → out [C, P], its YCbCr in integers. order: CHROMA_FIRST, when
    it bounds luma; BLUE_SECOND or RED_SECOND, when luma bounds it. Returns how many coefficients are wrong, pixels
    outside the gamut counted too; the turns taken; and whether the gamut, or an edge, may be the cause of it.
    limits: [2, P], to work in."""
    blocks, luma_blocks = low.shape[0], geometry[0] * geometry[1]
    samples, least, most = work[SAMPLES], work[LEAST], work[MOST]
    wrong, turns, tight, narrow = 0, 0, False, False
    for number in range(blocks):
        n = (number + luma_blocks) % blocks if order == CHROMA_FIRST else number
        if order == RED_SECOND and n >= luma_blocks:
            n = 2 * luma_blocks + 1 - n
        slot_rows, slot_columns = slots_of(n, geometry)
        if slot_rows == 0 or slot_columns == 0:
            continue
        component, whole = max(n - luma_blocks + 1, 0), slot_rows == 8 and slot_columns == 8
        gather_block(wanted, n, geometry, work[BLOCK])
        for p in range(64):
            inside = (p >> 3) < slot_rows and (p & 7) < count_of(slot_columns)
            least[p], most[p] = (-128, 127) if inside else (0, 0)
        for r in range(8):
            work[SUMS, r], work[SUMS, 8 + r] = -256, 254
        if component and order != CHROMA_FIRST:
            bound_chroma(wanted, out, component, number == blocks - 1, geometry, constants.ranges, limits)
            bound_slots(limits, geometry, least, most, work[SUMS])
        elif component == 0 and blocks > 1 and order == CHROMA_FIRST:
            outside = bound_luma(out, n, geometry, constants.ranges, least, most)
            wrong, tight = wrong + outside, tight or outside > 0
        missed, took = settle(low[n], high[n], geometry[2], slot_rows, slot_columns, margin, constants, work)
        wrong, turns = wrong + missed, turns + took
        if missed > 0:
            limited = False
            for p in range(64):
                inside = (p >> 3) < slot_rows and (p & 7) < count_of(slot_columns)
                limited = limited or (inside and (samples[p] == least[p] or samples[p] == most[p]))
            bounded = limited or not whole or order != CHROMA_FIRST
            tight, narrow = tight or bounded, narrow or (component > 0 and not bounded)
        if component:
            spread_chroma(samples, wanted[component], geometry, limits, order != CHROMA_FIRST, out[component])
        else:
            put_luma(samples, n, geometry, out[0])
    return wrong, turns, tight and not narrow
