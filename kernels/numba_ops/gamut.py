"""Colours as libjpeg-turbo converts them, and 8-bit RGB pixels of given (Y, Cb, Cr), all three less 128 here."""

from __future__ import annotations

import numpy as np
from numba import int32
from numpy.typing import NDArray

from kernels.exact import NEAR
from kernels.numba_ops.block import Ints
from kernels.numba_ops.compiler import inlined, jit


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
