"""Colours as libjpeg-turbo converts them, and 8-bit RGB pixels of given (Y, Cb, Cr), all three less 128 here."""

from __future__ import annotations

from numba import int32

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
def to_pixels(ycc: Ints, rgb: Ints) -> int:
    """Triples [3, P] → pixels [3, P] that have them, each near the decoder's formulas. Returns for how many there is
    none: these are left as the formulas have them, limited."""
    missed = int32(0)
    for p in range(ycc.shape[1]):
        y, cb, cr = ycc[0, p], ycc[1, p], ycc[2, p]
        red = min(max(int32(y + int32(128)) + (int32(91881 * cr + 32768) >> int32(16)), int32(0)), int32(255))
        green = int32(y + int32(128)) + (int32(-22554 * cb - 46802 * cr + 32768) >> int32(16))
        green = min(max(green, int32(0)), int32(255))
        blue = min(max(int32(y + int32(128)) + (int32(116130 * cb + 32768) >> int32(16)), int32(0)), int32(255))
        rgb[0, p], rgb[1, p], rgb[2, p] = red, green, blue
        same = (luma_of(red, green, blue) == y) & (blue_of(red, green, blue) == cb) & (red_of(red, green, blue) == cr)
        missed = int32(missed + int32(not same))
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
