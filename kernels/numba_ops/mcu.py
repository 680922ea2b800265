"""An MCU's geometry: what its blocks' slots stand for, libjpeg's averages of chroma, and the ways from the image and
from the file. Its pixels are flat, by row: `P` of them, also where the image ends before."""

from __future__ import annotations

import numpy as np
from numba import int32
from numpy.typing import NDArray

from kernels.exact import FARTHEST, PAIRED
from kernels.numba_ops.block import Ints
from kernels.numba_ops.compiler import jit

Geometry = tuple[int, int, int, int]
"""Of an MCU: its vertical and horizontal sampling factors, its true rows and columns of pixels."""


@jit
def intervals(coefficients: NDArray[np.int16], steps: Ints, low: Ints, high: Ints) -> None:
    """A block's coefficients [64] and steps [64] → what libjpeg's quantiser, rounding half away from zero, takes for
    them, of 8 times the DCT."""
    for i in range(64):
        step, value = min(steps[i], FARTHEST), int32(coefficients[i])
        value = min(max(value, -1), 1) if step == FARTHEST else value
        middle = 8 * value * step
        low[i] = min(max(middle - 4 * step + int32(value <= 0), -(1 << 20)), 1 << 20)
        high[i] = min(max(middle + 4 * step - int32(value >= 0), -(1 << 20)), 1 << 20)


@jit
def load_mcu(x: NDArray[np.float32], top: int, left: int, rows: int, columns: int, width: int, rgb: Ints) -> None:
    """The pixels of [C, H, W] under an MCU, limited to 0..255, in sixteenths; 0 beyond the image."""
    for component in range(x.shape[0]):
        if rows * columns < rgb.shape[1]:
            for p in range(rgb.shape[1]):
                rgb[component, p] = 0
        for r in range(rows):
            for c in range(columns):
                value = x[component, top + r, left + c]
                value = min(value if value > 0 else np.float32(0), np.float32(255))  # 0 also for what is no number
                rgb[component, r * width + c] = int32(value * np.float32(16) + np.float32(0.5))


@jit
def bias_of(vertical: int, horizontal: int, column: int) -> int:
    """What libjpeg adds to the sum of the pixels under a chroma sample before it divides."""
    if horizontal == 2:
        return (column & 1) + (1 if vertical == 2 else 0)
    return 1 if vertical == 2 else 0


@jit
def place_of(p: int, vertical: int, horizontal: int) -> tuple[int, int, int]:
    """Of pixel p of an MCU: its luma block, its place there, and the chroma sample over it."""
    width = 8 * horizontal
    y, x = p // width, p % width
    return (y >> 3) * horizontal + (x >> 3), 8 * (y & 7) + (x & 7), 8 * (y // vertical) + x // horizontal


@jit
def first_pixel(n: int, horizontal: int) -> int:
    """Where luma block n begins."""
    return 64 * horizontal * (n // horizontal) + 8 * (n % horizontal)


@jit
def chroma_slots(geometry: Geometry) -> tuple[int, int, int]:
    """Of an MCU's chroma blocks: how many rows and columns of slots they have, and how many of the columns average
    pixels of their own. Beyond these, if chroma is halved across, all samples average the last true column alone: one
    slot stands for them. But where they are the halves of a sum T of two of its pixels there are two, as block.py says;
    not if there is one such sample, nor in a single row, which has no odd sums."""
    vertical, horizontal, rows, columns = geometry
    inner = columns // horizontal
    outer = 1 if horizontal == 2 and columns < 16 else 0
    if outer and vertical == 2 and inner < 7 and rows > 1:
        outer = 2
    return (rows + vertical - 1) // vertical, inner + outer, inner


@jit
def slots_of(n: int, geometry: Geometry) -> tuple[int, int]:
    """How many rows and columns of slots block n of an MCU has, luma's first, as block.py counts them; none of a block
    of padding."""
    vertical, horizontal, rows, columns = geometry
    if n >= vertical * horizontal:
        slot_rows, slot_columns, inner = chroma_slots(geometry)
        return slot_rows, slot_columns + (PAIRED if slot_columns == inner + 2 else 0)
    top, left = 8 * (n // horizontal), 8 * (n % horizontal)
    return min(max(rows - top, 0), 8), min(max(columns - left, 0), 8)


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
                low[g], high[g] = last_column(samples, r, height, geometry)
        share(wanted, there, low, high, found)
        if bounded:
            mend_groups(there, low, high, least, most, found)
        for g in range(64):
            for m in range(count):
                if there[m, g] > 0:
                    at = ((g >> 3) * vertical + m // horizontal) * width + (g & 7) * horizontal + m % horizontal
                    out[at] = found[m, g]


@jit
def last_column(samples: Ints, r: int, height: int, geometry: Geometry) -> tuple[int, int]:
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
