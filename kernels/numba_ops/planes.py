"""An MCU plane by plane: the blocks of one plane are settled, and bound what the next may have, for every pixel has to
stay in the gamut."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int32
from numpy.typing import NDArray

from kernels.exact import (
    CHROMA_FIRST,
    DOUBT,
    EDGE_PASSES,
    HELD,
    NODES_OF_A_TURN,
    PAIRED,
    RED_SECOND,
    TO_THE_MIDDLE,
    TURNS,
)
from kernels.numba_ops.block import SUMS, Ints, count_of, halve, into_intervals, pair_of, search
from kernels.numba_ops.compiler import inlined, jit
from kernels.numba_ops.gamut import chroma_range, luma_range
from kernels.numba_ops.line import search_line
from kernels.numba_ops.mcu import (
    Geometry,
    bound_slots,
    first_pixel,
    gather_block,
    put_luma,
    slots_of,
    spread_chroma,
)

BLOCK, SAMPLES, LEAST, MOST = range(25, 29)
"""Rows of `work` above those of block.py."""


class Constants(NamedTuple):
    """draws: DRAWS. bases: `edge_bases`. spreads: [9, 8, 64], as `search` takes one. ranges: `ranges_of(0)`."""

    draws: Ints
    bases: Ints
    spreads: Ints
    ranges: NDArray[np.int16]


@jit
def bound_luma(out: Ints, n: int, geometry: Geometry, ranges: NDArray[np.int16], least: Ints, most: Ints) -> int:
    """Which luma samples [64] of block n the chroma in `out` [3, P] leaves possible. Returns for how many pixels there
    is none; they may have any."""
    rows, columns = slots_of(n, geometry)
    outside = 0
    for r in range(rows):
        first = first_pixel(n, geometry[1]) + r * 8 * geometry[1]
        for c in range(columns):
            lowest, highest = luma_range(ranges, out[1, first + c], out[2, first + c])
            if lowest > highest:
                lowest, highest = -128, 127
                outside += 1
            least[8 * r + c], most[8 * r + c] = lowest, highest
    return outside


@jit
def bound_chroma(
    wanted: Ints, out: Ints, component: int, settled: bool, geometry: Geometry, ranges: NDArray[np.int16], limits: Ints
) -> None:
    """Which values of a chroma component luma and the other one leave possible at each pixel: limits [2, P]; all, where
    none. The other one is in `out` once it is settled, and until then about what is wanted."""
    other, doubt = 3 - component, 0 if settled else DOUBT
    for y in range(geometry[2]):
        for x in range(geometry[3]):
            p = y * 8 * geometry[1] + x
            middle = out[other, p] if settled else (wanted[other, p] + 8) >> 4
            least, most = 127, -128
            for value in range(max(middle - doubt, -128), min(middle + doubt, 127) + 1):
                lowest, highest = chroma_range(ranges, component, out[0, p], value)
                least, most = min(least, lowest), max(most, highest)
            limits[0, p], limits[1, p] = (least, most) if least <= most else (-128, 127)


@jit
def round_pairs(block: Ints, rows: int, slot_rows: int, shape: int, samples: Ints, work: Ints) -> None:
    """Rounds the sums of paired slots within their bounds. One that stands for a single pixel twice, in the last of an
    odd number of rows, stays as it is from then on."""
    even, odd = pair_of(shape)
    for r in range(slot_rows):
        total = (block[8 * r + even] + block[8 * r + odd] + 8) >> 4
        total = min(max(total, work[SUMS, r]), work[SUMS, 8 + r])
        if 2 * r + 1 == rows:
            total &= -2
            work[SUMS, r] = work[SUMS, 8 + r] = total
        halve(total, r, shape, samples)


@inlined
def settle(
    low: Ints, high: Ints, rows: int, slot_rows: int, slot_columns: int, draw: int, constants: Constants, work: Ints
) -> tuple[int, int]:
    """Moves the wanted slots of a block, work[BLOCK], into its intervals, and finds samples near them, work[SAMPLES],
    within work[LEAST] and work[MOST]. rows: true ones of its MCU. Returns how many coefficients are wrong, and the
    turns taken."""
    bases, spread = constants.bases, constants.spreads[slot_rows]
    block, samples, least, most = work[BLOCK], work[SAMPLES], work[LEAST], work[MOST]
    for _ in range(1 if slot_rows == 8 and slot_columns == 8 else EDGE_PASSES):
        if not into_intervals(block, low, high, bases, slot_rows, slot_columns, draw, work):
            break
    held = 0
    for p in range(64):
        sample = (block[p] + 8) >> 4
        samples[p] = min(max(sample, least[p]), most[p])
        held += abs(sample - samples[p])
    if slot_columns > PAIRED:
        round_pairs(block, rows, slot_rows, slot_columns, samples, work)
    turns = 0 if held > HELD else TURNS
    missed, took = search(samples, least, most, low, high, bases, spread, slot_rows, slot_columns, turns, work)
    if missed > 0 and (min(slot_rows, slot_columns) == 1 or slot_columns == PAIRED + 2):
        into_intervals(block, low, high, bases, slot_rows, slot_columns, int32(TO_THE_MIDDLE), work)
        found, nodes = search_line(samples, block, least, most, low, high, bases, slot_rows, slot_columns, work)
        missed, took = 0 if found else missed, took + nodes // NODES_OF_A_TURN
    return missed, took


@inlined
def attempt(
    wanted: Ints,
    low: Ints,
    high: Ints,
    geometry: Geometry,
    draw: int,
    order: int,
    constants: Constants,
    out: Ints,
    limits: Ints,
    work: Ints,
) -> tuple[int, int, bool]:
    """One attempt on an MCU: wanted [C, P] in sixteenths → out [C, P], its YCbCr in integers. order: CHROMA_FIRST, when
    it bounds luma; BLUE_SECOND or RED_SECOND, when luma bounds it. Returns how many coefficients are wrong, pixels
    outside the gamut counted too; the turns taken; and whether the gamut may be to blame for what is wrong, or an edge.
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
        missed, took = settle(low[n], high[n], geometry[2], slot_rows, slot_columns, draw, constants, work)
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
