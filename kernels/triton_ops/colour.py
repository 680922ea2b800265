"""JFIF colour: full-range ITU-R BT.601 in float32.

Y = 0.299 R + 0.587 G + 0.114 B,  Cb = (B - Y) / 1.772 + 128,  Cr = (R - Y) / 1.402 + 128

Planes are tensors of any one shape, in gray levels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rgb_to_ycc(red, green, blue, C: tl.constexpr):
    """(R, G, B), 0..255 → (Y - 128, Cb - 128, Cr - 128); of gray, luma thrice."""
    if C == 1:
        luma = red - 128.0
        return luma, luma, luma
    else:
        y = red * 0.299 + green * 0.587 + blue * 0.114
        return y - 128.0, (blue - y) * (1 / 1.772), (red - y) * (1 / 1.402)


@triton.jit
def ycc_to_rgb(luma, cb, cr):
    """The linear part of the inverse: a change of (Y, Cb, Cr) → of (R, G, B)."""
    green = luma - (0.114 * 1.772 / 0.587) * cb - (0.299 * 1.402 / 0.587) * cr
    return luma + 1.402 * cr, green, luma + 1.772 * cb


@triton.jit
def ycc_to_rgb_adjoint(red, green, blue, C: tl.constexpr):
    """The gradient of (R, G, B) → of (Y, Cb, Cr), the transpose of `ycc_to_rgb`; of gray, the same."""
    if C == 1:
        return red, red, red
    else:
        cb = 1.772 * blue - (0.114 * 1.772 / 0.587) * green
        return red + green + blue, cb, 1.402 * red - (0.299 * 1.402 / 0.587) * green


@triton.jit
def rgb_to_ycc_adjoint(luma, cb, cr, C: tl.constexpr):
    """The gradient of (Y, Cb, Cr) → of (R, G, B), the transpose of `rgb_to_ycc`; of gray, the same."""
    if C == 1:
        return luma, luma, luma
    else:
        b, r = cb * (1 / 1.772), cr * (1 / 1.402)
        y = luma - b - r
        return 0.299 * y + r, 0.587 * y, 0.114 * y + b
