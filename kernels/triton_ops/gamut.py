"""Colours as libjpeg-turbo converts them, and which of its (Y, Cb, Cr) an 8-bit RGB pixel can have. The twin of
numba_ops/gamut.py, to the bit.

Shapes: pixels [G, 8, 8, M] int32 as in mcus.py; Y, Cb and Cr are less 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as constants
from kernels.triton_ops.chroma import chroma_samples
from kernels.triton_ops.mcus import both_twice, luma_slots, pair, per_pixel, swap, to_blocks
from kernels.triton_ops.samples import any_of, inside_slots, judge, some_slots, transform

NEAR = tl.constexpr(constants.NEAR)
SIDE = tl.constexpr(2 * constants.NEAR + 1)
DOUBT = tl.constexpr(constants.DOUBT)


@triton.jit
def convert(red, green, blue):
    """RGB, in sixteenths, → YCbCr, by libjpeg's weights."""
    y = (19595 * red + 38470 * green + 7471 * blue + 32768 >> 16) - 2048
    cb = -11059 * red - 21709 * green + 32768 * blue + 32768 >> 16
    return y, cb, 32768 * red - 27439 * green - 5329 * blue + 32768 >> 16


@triton.jit
def to_ycc(red, green, blue, C: tl.constexpr):
    """Sixteenths → Y [G, 8, 8, M] less 128, and Cb and Cr [2 G, 8, 8, M]; of gray Y twice."""
    if C == 1:
        return red - 2048, red
    else:
        y, cb, cr = convert(red, green, blue)
        return y, pair(cb, cr)


@triton.jit
def convert_back(y, cb, cr):
    """The decoder's formulas, for sixteenths and for whole gray levels."""
    green = y + (-22554 * cb - 46802 * cr + 32768 >> 16)
    return y + (91881 * cr + 32768 >> 16), green, y + (116130 * cb + 32768 >> 16)


@triton.jit
def limited(x, most):
    return tl.minimum(tl.maximum(x, 0), most)


@triton.jit
def to_triples(red, green, blue):
    """8-bit RGB → YCbCr, as libjpeg-turbo rounds."""
    y = (19595 * red + 38470 * green + 7471 * blue + 32768 >> 16) - 128
    cb = -11059 * red - 21709 * green + 32768 * blue + 32767 >> 16
    return y, cb, 32768 * red - 27439 * green - 5329 * blue + 32767 >> 16


@triton.jit
def bound_luma(cb, cr, inside, ranges):
    """Which luma samples, least and most, chroma leaves possible, and where there is none: such pixels may have any.
    Only 0 outside of `inside`. ranges: kernels.exact.gamut_ranges."""
    blue, red = limited(cb + 128, 255), limited(cr + 128, 255)
    where = ranges + (blue * 256 + red) * 2
    where = tl.multiple_of(tl.max_contiguous(where, [1, 1, 2, 4]), [1, 1, 1, 1])  # as in `mcus.addresses`
    least, most = tl.load(where).to(tl.int32), tl.load(where + 1).to(tl.int32)
    none = inside & ((least > most) | (blue != cb + 128) | (red != cr + 128))
    least, most = tl.where(none, -128, least), tl.where(none, 127, most)
    return tl.where(inside, least, 0), tl.where(inside, most, 0), none


@triton.jit
def bound_chroma(y, wanted, found, settled, ranges):
    """Which values, least and most, of two chroma planes [2 G, 8, 8, M] luma [G, 8, 8, M] and each one's other leave
    possible; all, where none. The other one is as it is found if it is settled, else about what is wanted."""
    y, other = pair(y, y), swap(tl.where(settled, found, wanted + 8 >> 4))
    number = tl.arange(0, y.shape[0]) % 2
    place = per_pixel((1 + number) * (2 << 16)) + limited(y + 128, 255) * 512
    doubt = tl.where(settled, 0, DOUBT)
    least, most = y * 0 + 127, y * 0 - 128
    for n in range(2 * DOUBT + 1):
        value = other + n - DOUBT
        near = limited(value + 128, 255)
        possible = (near == value + 128) & (n >= DOUBT - doubt) & (n <= DOUBT + doubt)
        where = ranges + (place + 2 * near)
        where = tl.multiple_of(tl.max_contiguous(where, [1, 1, 2, 4]), [1, 1, 1, 1])
        least = tl.where(possible, tl.minimum(least, tl.load(where).to(tl.int32)), least)
        most = tl.where(possible, tl.maximum(most, tl.load(where + 1).to(tl.int32)), most)
    none = least > most
    return tl.where(none, -128, least), tl.where(none, 127, most)


@triton.jit
def has_triple(red, green, blue, y, cb, cr):
    luma, blueness, redness = to_triples(red, green, blue)
    return (luma == y) & (blueness == cb) & (redness == cr)


@triton.jit
def to_pixels(y, cb, cr, wanted, inside):
    """Triples → pixels that have them, near the three channels wanted, sixteenths, as 4 pixels on average have the same
    triple; else near the decoder's formulas. And which pixels `inside` have none: these are left as the formulas have
    them, limited."""
    red, green, blue = convert_back(y + 128, cb, cr)
    red, green, blue = limited(red, 255), limited(green, 255), limited(blue, 255)
    for halves in tl.static_range(1, 3):  # of the way
        r = red + (halves * (wanted[0] - 16 * red) + 16 >> 5)
        g = green + (halves * (wanted[1] - 16 * green) + 16 >> 5)
        b = blue + (halves * (wanted[2] - 16 * blue) + 16 >> 5)
        same = has_triple(r, g, b, y, cb, cr)
        red, green, blue = tl.where(same, r, red), tl.where(same, g, green), tl.where(same, b, blue)
    missed = inside & (has_triple(red, green, blue, y, cb, cr) == 0)
    if any_of(missed):
        r0, g0, b0 = red - NEAR, green - NEAR, blue - NEAR
        for i in range(SIDE):
            for j in range(SIDE):
                for k in range(SIDE):
                    r, g, b = r0 + i, g0 + j, b0 + k
                    same = missed & has_triple(r, g, b, y, cb, cr)
                    same &= (limited(r, 255) == r) & (limited(g, 255) == g) & (limited(b, 255) == b)
                    red, green, blue = tl.where(same, r, red), tl.where(same, g, green), tl.where(same, b, blue)
                    missed &= same == 0
    return red, green, blue, missed


@triton.jit
def recount(y, cb, cr, size, luma_ends, chroma_ends, bases, V: tl.constexpr, H: tl.constexpr):
    """How many coefficients of each block, [G V H] and [2 G], libjpeg-turbo would write otherwise. Ends: low and
    high."""
    slots = luma_slots(size, V, H)
    samples = tl.where(inside_slots(slots), to_blocks(y, V, H), 0)
    luma = judge(transform(samples, bases, slots)[1], luma_ends[0], luma_ends[1])[1]
    both = both_twice(size)
    whole = () if len(size) == 0 else (8 + tl.minimum(both[0], 0), 8 + tl.minimum(both[1], 0))  # as `nothing` explains
    samples = chroma_samples(pair(cb, cr), both, V, H)
    chroma = judge(transform(samples, bases, whole)[1], chroma_ends[0], chroma_ends[1])[1]
    return tl.where(some_slots(slots), luma, 0), chroma
