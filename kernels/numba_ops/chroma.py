"""Chroma of an MCU: libjpeg's averages of the pixels, and pixels of given averages.

Shapes: P pixels of an MCU, flat, by row; the 64 slots of a chroma block, flat; groups, the up to 4 pixels under each
chroma sample: [4, 64].
"""

from __future__ import annotations

import numpy as np
from numba import int32

from kernels.numba_ops.compiler import jit
from kernels.numba_ops.mcus import Geometry, chroma_slots
from kernels.numba_ops.samples import Ints


@jit
def bias_of(vertical: int, horizontal: int, column: int) -> int:
    """What libjpeg adds to the sum of the pixels under a chroma sample before it divides."""
    if horizontal == 2:
        return (column & 1) + (1 if vertical == 2 else 0)
    return 1 if vertical == 2 else 0


@jit
def average(plane: Ints, geometry: Geometry, wanted: Ints) -> None:
    """A wanted chroma plane [P] of an MCU → its block's slots [64]."""
    vertical, horizontal, rows, columns = geometry
    width = 8 * horizontal
    slot_rows, slot_columns, inner = chroma_slots(geometry)
    for p in range(64):
        wanted[p] = 0
    for r in range(slot_rows):
        height = min(vertical, rows - r * vertical)
        for c in range(slot_columns):
            first, last = (c * horizontal, (c + 1) * horizontal) if c < inner else (columns - 1, columns)
            total = int32(0)
            for y in range(r * vertical, r * vertical + height):
                for x in range(first, last):
                    total += plane[y * width + x]
            wanted[8 * r + c] = total // (height * (last - first))


@jit
def share(wanted: Ints, there: Ints, low: Ints, high: Ints, out: Ints) -> None:
    """Of each of 64 groups the members that are there, [4, 64]: their wanted values, moved together so that the sum can
    be one of low to high, then rounded to integers whose sum is; ties to the first."""
    left, sign = np.empty(64, np.int32), np.empty(64, np.int32)
    best, chosen = np.empty(64, np.int32), np.empty(64, np.int32)
    for g in range(64):
        total = int32(0)
        for n in range(4):
            total = int32(total + int32(wanted[n, g] * there[n, g]))
        count = there[0, g] + there[1, g] + there[2, g] + there[3, g]
        shift = int32(min(max(total, int32(16 * low[g])), int32(16 * high[g])) - total) >> int32(count >> 1)
        total = int32(0)
        for n in range(4):
            wanted[n, g] = int32(wanted[n, g] + shift)
            out[n, g] = int32(wanted[n, g] + int32(8)) >> int32(4)
            total = int32(total + int32(out[n, g] * there[n, g]))
        left[g] = total
    for _ in range(3):
        for g in range(64):
            sign[g] = int32(left[g] < low[g]) - int32(left[g] > high[g])
            left[g] = int32(left[g] + sign[g])
            best[g], chosen[g] = -(1 << 30), 0
        for n in range(4):
            for g in range(64):
                gain = int32(sign[g] * int32(wanted[n, g] - int32(out[n, g] << int32(4))))
                better = (there[n, g] > 0) & (gain > best[g])
                best[g], chosen[g] = gain if better else best[g], n if better else chosen[g]
        for n in range(4):
            for g in range(64):
                out[n, g] = int32(out[n, g] + (sign[g] if chosen[g] == n else int32(0)))


@jit
def spread_whole(samples: Ints, plane: Ints, vertical: int, horizontal: int, out: Ints) -> None:
    """`spread_chroma` of an MCU without edges, and without bounds."""
    width, count = 8 * horizontal, vertical * horizontal
    if count == 1:
        for p in range(64):
            out[p] = samples[p]
        return
    wanted, found, there = np.empty((4, 64), np.int32), np.empty((4, 64), np.int32), np.zeros((4, 64), np.int32)
    low, high = np.empty(64, np.int32), np.empty(64, np.int32)
    for g in range(64):
        low[g] = count * samples[g] - bias_of(vertical, horizontal, g & 7)
        high[g] = low[g] + count - 1
    for m in range(count):
        first = m // horizontal * width + m % horizontal
        for g in range(64):
            there[m, g] = 1
            wanted[m, g] = plane[first + (g >> 3) * vertical * width + (g & 7) * horizontal]
    share(wanted, there, low, high, found)
    for m in range(count):
        first = m // horizontal * width + m % horizontal
        for g in range(64):
            out[first + (g >> 3) * vertical * width + (g & 7) * horizontal] = found[m, g]


@jit
def mend_groups(there: Ints, low: Ints, high: Ints, least: Ints, most: Ints, out: Ints) -> None:
    """Brings the members that are there, [4, 64], each within its bounds, and then as near as these allow to a sum of
    low to high: by steps of one of the member that has most room; ties to the first."""
    for g in range(64):
        total = 0
        for n in range(4):
            if there[n, g] > 0:
                out[n, g] = min(max(out[n, g], least[n, g]), most[n, g])
                total += out[n, g]
        while not low[g] <= total <= high[g]:
            sign, widest, chosen = (1 if total < low[g] else -1), 0, -1
            for n in range(4):
                room = most[n, g] - out[n, g] if sign > 0 else out[n, g] - least[n, g]
                if there[n, g] > 0 and room > widest:
                    widest, chosen = room, n
            if chosen < 0:
                break
            out[chosen, g] += sign
            total += sign


@jit
def spread_chroma(samples: Ints, plane: Ints, geometry: Geometry, limits: Ints, bounded: bool, out: Ints) -> None:
    """Full-resolution chroma [P] near the wanted plane [P] with libjpeg's averages the block's slots [64]; each, if
    bounded, within its limits [2, P] as long as there is such a one."""
    vertical, horizontal, rows, columns = geometry
    width, count = 8 * horizontal, vertical * horizontal
    if rows == 8 * vertical and columns == width and not bounded:
        spread_whole(samples, plane, vertical, horizontal, out)
        return
    _, slot_columns, inner = chroma_slots(geometry)
    outer = slot_columns > inner
    wanted, found, there = np.empty((4, 64), np.int32), np.empty((4, 64), np.int32), np.zeros((4, 64), np.int32)
    least, most = np.empty((4, 64), np.int32), np.empty((4, 64), np.int32)
    low, high = np.empty(64, np.int32), np.empty(64, np.int32)
    for last in range(1 if outer else 0, -1, -1):  # the last true column first, where samples stand for it alone
        for g in range(64):
            r, c = g >> 3, g & 7
            height = min(vertical, rows - r * vertical)
            fixed, weight = 0, 1 if height == vertical else 2
            for m in range(count):
                x = c * horizontal + m % horizontal
                member = m // horizontal < height and c < inner and not (outer and x == columns - 1)
                if last:
                    member = m // horizontal < height and x == columns - 1
                at = (r * vertical + m // horizontal) * width + x
                if member:
                    wanted[m, g] = plane[at]
                    least[m, g], most[m, g] = limits[0, at], limits[1, at]
                elif outer and x == columns - 1 and m // horizontal < height:
                    fixed += out[at]
                there[m, g] = int32(member)
            lowest = count * samples[g] - bias_of(vertical, horizontal, c)
            low[g], high[g] = -((-lowest) // weight) - fixed, (lowest + count - 1) // weight - fixed
            if last:
                low[g], high[g] = last_sums(samples, r, height, geometry)
        share(wanted, there, low, high, found)
        if bounded:
            mend_groups(there, low, high, least, most, found)
        for g in range(64):
            for m in range(count):
                if there[m, g] > 0:
                    at = ((g >> 3) * vertical + m // horizontal) * width + (g & 7) * horizontal + m % horizontal
                    out[at] = found[m, g]


@jit
def last_sums(samples: Ints, r: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Between which values the sum of the last true column's pixels, `height` of them, lies in row r of a chroma block
    whose slots [64] beyond its own columns stand for it."""
    _, slot_columns, inner = chroma_slots(geometry)
    total = height * samples[8 * r + inner]
    if slot_columns == inner + 2 and height == 2:
        total = samples[8 * r + inner] + samples[8 * r + inner + 1]
    rounded_up = geometry[0] == 2 and inner == 7 and height == 2  # (T + 1) >> 1 alone
    return total - int32(rounded_up), total


@jit
def bound_slots(limits: Ints, geometry: Geometry, least: Ints, most: Ints, sums: Ints) -> None:
    """What a chroma block's slots [64] can be when each pixel [2, P] keeps its limits; of paired ones, the least and
    the largest sum of each row, [16]."""
    vertical, horizontal, rows, columns = geometry
    width, count = 8 * horizontal, vertical * horizontal
    slot_rows, slot_columns, inner = chroma_slots(geometry)
    for r in range(slot_rows):
        height = min(vertical, rows - r * vertical)
        for c in range(slot_columns):
            first, last = (c * horizontal, (c + 1) * horizontal) if c < inner else (columns - 1, columns)
            lowest = highest = 0
            for y in range(r * vertical, r * vertical + height):
                for x in range(first, last):
                    lowest += limits[0, y * width + x]
                    highest += limits[1, y * width + x]
            times = count // (height * (last - first))
            bias = bias_of(vertical, horizontal, c) if c < inner else 0
            least[8 * r + c] = -((-lowest * times) // count) if c >= inner else (lowest * times + bias) // count
            most[8 * r + c] = (highest * times + bias) // count
            if c >= inner:
                sums[r], sums[8 + r] = lowest * vertical // height, highest * vertical // height


@jit
def move_chroma(plane: Ints, change: Ints, geometry: Geometry) -> None:
    """Adds a change of a chroma block's slots [64] to the plane [P] that they average."""
    vertical, horizontal, rows, columns = geometry
    _, slot_columns, inner = chroma_slots(geometry)
    for y in range(rows):
        r = 8 * (y // vertical)
        edge = change[r + min(inner, 7)]
        if slot_columns == inner + 2:
            edge = (edge + change[r + inner + 1]) >> 1
        for x in range(columns):
            c = x // horizontal
            moved = change[r + c] if c < inner or slot_columns == inner else edge
            if slot_columns > inner and c == inner - 1 and columns == 2 * inner:  # the last column has its own mean
                moved = edge if x == columns - 1 else 2 * moved - edge
            plane[y * 8 * horizontal + x] += moved
