"""Colours as libjpeg-turbo converts them, and which (Y, Cb, Cr), all three less 128 here, an 8-bit RGB pixel can have.

Shapes: P pixels of an MCU, flat, by row; channels or components [3, P]. Wanted values are in sixteenths of a level.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64
from numpy.typing import NDArray

from kernels.exact import DOUBT, NEAR
from kernels.numba_ops.chroma import bias_of
from kernels.numba_ops.compiler import inlined, jit
from kernels.numba_ops.mcus import Geometry, first_pixel, slots_of
from kernels.numba_ops.samples import FOUND, Ints, judge, transform


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


@inlined
def luma_of(red: int, green: int, blue: int) -> int:
    return (int32(19595 * red + 38470 * green + 7471 * blue + 32768) >> 16) - 128


@inlined
def blue_of(red: int, green: int, blue: int) -> int:
    return int32(-11059 * red - 21709 * green + 32768 * blue + 32767) >> 16


@inlined
def red_of(red: int, green: int, blue: int) -> int:
    return int32(32768 * red - 27439 * green - 5329 * blue + 32767) >> 16


@jit
def luma_range(ranges: NDArray[np.int16], cb: int, cr: int) -> tuple[int, int]:
    """Which Y go with a Cb and a Cr; the least above the largest where none does."""
    if min(cb, cr) < -128 or max(cb, cr) > 127:
        return 127, -128
    return ranges[cb + 128, cr + 128, 0], ranges[cb + 128, cr + 128, 1]


@jit
def chroma_range(ranges: NDArray[np.int16], component: int, y: int, other: int) -> tuple[int, int]:
    """Which Cb (component 1) go with a Y and a Cr, or which Cr (component 2) with a Y and a Cb."""
    least, most = 127, -128
    for value in range(256):
        cb, cr = (value, other + 128) if component == 1 else (other + 128, value)
        if ranges[cb, cr, 0] <= y <= ranges[cb, cr, 1]:
            least, most = min(least, value - 128), max(most, value - 128)
    return least, most


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
def differs(luma: int, blueness: int, redness: int, red: int, green: int, blue: int) -> int:
    """0 for a pixel that has the triple."""
    other = int32(luma_of(red, green, blue)) ^ luma
    return other | (int32(blue_of(red, green, blue)) ^ blueness) | (int32(red_of(red, green, blue)) ^ redness)


@jit
def come_nearer(ycc: Ints, wanted: Ints, share: int, rgb: Ints) -> None:
    """Moves pixels [3, P] to the wanted ones, sixteenths, by so many halves of the way where they keep their triple."""
    luma, blueness, redness = ycc[0], ycc[1], ycc[2]
    red, green, blue = rgb[0], rgb[1], rgb[2]
    keeps, near = np.empty(len(luma), np.int32), np.empty((3, len(luma)), np.int32)
    for channel in range(3):
        for p in range(len(luma)):
            here = int32(rgb[channel, p])
            near[channel, p] = here + (int32(int32(share) * int32(wanted[channel, p] - 16 * here) + int32(16)) >> 5)
    for p in range(len(luma)):
        keeps[p] = differs(luma[p], blueness[p], redness[p], near[0, p], near[1, p], near[2, p])
    for p in range(len(luma)):
        red[p] = near[0, p] if keeps[p] == 0 else red[p]
    for p in range(len(luma)):
        green[p] = near[1, p] if keeps[p] == 0 else green[p]
    for p in range(len(luma)):
        blue[p] = near[2, p] if keeps[p] == 0 else blue[p]


@jit
def to_pixels(ycc: Ints, wanted: Ints, rgb: Ints) -> int:
    """Triples [3, P] → pixels [3, P] that have them, near the wanted ones, sixteenths, as 4 pixels on average have the
    same triple; else near the decoder's formulas. Returns for how many there is none: these are left as the formulas
    have them, limited."""
    luma, blueness, redness = ycc[0], ycc[1], ycc[2]
    red, green, blue = rgb[0], rgb[1], rgb[2]
    for p in range(len(luma)):  # one channel at a time: the compiler makes vectors of what writes one array
        value = int32(luma[p] + int32(128)) + (int32(91881 * redness[p] + 32768) >> int32(16))
        red[p] = min(max(value, int32(0)), int32(255))
    for p in range(len(luma)):
        value = int32(-22554 * blueness[p] - 46802 * redness[p] + 32768) >> int32(16)
        green[p] = min(max(int32(luma[p] + int32(128)) + value, int32(0)), int32(255))
    for p in range(len(luma)):
        value = int32(luma[p] + int32(128)) + (int32(116130 * blueness[p] + 32768) >> int32(16))
        blue[p] = min(max(value, int32(0)), int32(255))
    come_nearer(ycc, wanted, 1, rgb)
    come_nearer(ycc, wanted, 2, rgb)
    missed = int32(0)
    for p in range(len(luma)):
        missed += int32(differs(luma[p], blueness[p], redness[p], red[p], green[p], blue[p]) != 0)
    if missed == 0:
        return 0
    missed = 0
    for p in range(ycc.shape[1]):
        missed += not _search_pixel(ycc, rgb, p)
    return missed


@jit
def _search_pixel(ycc: Ints, rgb: Ints, p: int) -> bool:
    """Puts a pixel with the triple in its place, if there is one near what is there."""
    red, green, blue = rgb[0, p], rgb[1, p], rgb[2, p]
    for far in (0, NEAR):
        for r in range(max(red - far, 0), min(red + far, 255) + 1):
            for g in range(max(green - far, 0), min(green + far, 255) + 1):
                for b in range(max(blue - far, 0), min(blue + far, 255) + 1):
                    found = luma_of(r, g, b) == ycc[0, p] and blue_of(r, g, b) == ycc[1, p]
                    if found and red_of(r, g, b) == ycc[2, p]:
                        rgb[0, p], rgb[1, p], rgb[2, p] = r, g, b
                        return True
    return False


@jit
def to_triples(rgb: Ints, ycc: Ints) -> None:
    """Pixels [3, P] → their YCbCr [3, P], less 128."""
    for p in range(rgb.shape[1]):
        red, green, blue = rgb[0, p], rgb[1, p], rgb[2, p]
        ycc[0, p], ycc[1, p] = luma_of(red, green, blue), blue_of(red, green, blue)
        ycc[2, p] = red_of(red, green, blue)


@jit
def recount(ycc: Ints, low: Ints, high: Ints, geometry: Geometry, bases: Ints, samples: Ints, work: Ints) -> int:
    """How many coefficients of an MCU [C, P], its pixels' YCbCr, libjpeg-turbo would write otherwise. samples:
    [64], to work in."""
    vertical, horizontal, rows, columns = geometry
    luma_blocks, width = vertical * horizontal, 8 * horizontal
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
