"""libjpeg-turbo's forward path on MCUs in registers, bit for bit: the integers of kernels/libjpeg.py, in int32."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import dct_pass, luma_rows, sum_under_samples, transpose


@triton.jit
def integer_dct(x):
    """Eight rows of samples less 128, int32 → 8 times their DCT, rounded as libjpeg rounds: eight columns. The first
    pass goes along the rows, as libjpeg's does: the rounding between the passes makes that a difference."""
    first, second = dct_pass(transpose(x), True), ()
    for k in tl.static_range(8):
        second = second + ((first[k] + 1024) >> 11,)
    second, found = dct_pass(transpose(second), True), ()
    for k in tl.static_range(8):
        found = found + ((second[k] + 16384) >> 15,)
    return transpose(found)


@triton.jit
def chroma_samples(plane, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """A full-size difference, 0..255 → the averages that libjpeg takes, less 128: [G, 8]."""
    shift: tl.constexpr = (V * H) // 2
    odd = tl.arange(0, 8)[None, :] % 2
    bias = odd * (H - 1) + (V - 1)
    sums, samples = sum_under_samples(plane, V, G, H), ()
    for k in tl.static_range(8):
        samples = samples + (((sums[k] + bias) >> shift) - 128,)
    return samples


@triton.jit
def integer_forward(red, green, blue, row, height, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Octets of RGB at all places, int32 0..255 → of 8 times the DCT of Y [B, 8], Cb and Cr [G, 8]; gray: Y thrice."""
    luma, blueness, redness = (), (), ()
    for k in tl.static_range(8):
        if C == 1:
            luma = luma + (red[k] - 128,)
        else:
            r, g, b = red[k], green[k], blue[k]
            luma = luma + (((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) - 128,)
            blueness = blueness + ((32768 * b - 11059 * r - 21709 * g + 8421375) >> 16,)
            redness = redness + ((32768 * r - 27439 * g - 5329 * b + 8421375) >> 16,)
    luma = integer_dct(luma_rows(luma, row, height, V))
    if C == 1:
        return luma, luma, luma
    else:
        blueness = integer_dct(chroma_samples(blueness, V, G, H))
        return luma, blueness, integer_dct(chroma_samples(redness, V, G, H))


@triton.jit
def to_blocks(values, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """[G] → [B, 1], each MCU's value at all its blocks."""
    return tl.reshape(tl.broadcast_to(values[None, :, None], [V, G, H]), [V * G * H])[:, None]
