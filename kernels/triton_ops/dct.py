"""The DCT of 8x8 blocks in registers. What is called dct8 is 8 times the orthonormal DCT, as the passes leave it.

Shapes: B blocks. Pixels [8, B, 8] for (row, block, column), coefficients [B, 8, 8] for (block, row frequency, column
frequency), octets: tuples of a block's eight rows (or columns), eight tensors [B, 8], so that a pass of the DCT is
arithmetic between them and only the transposition between two passes crosses threads.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack(x):
    """An octet of [B, 8] → [B, 8, 8], the octet's index last."""
    even = tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6]))
    odd = tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7]))
    return tl.reshape(tl.join(even, odd), [x[0].shape[0], 8, 8])


@triton.jit
def unpack(y):
    """The inverse of `pack`."""
    even, odd = tl.split(tl.reshape(y, [y.shape[0], 8, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def to_rows(x):
    """Pixels → an octet of rows. A thread has all of a column: nothing moves."""
    return unpack(tl.permute(x, (1, 2, 0)))


@triton.jit
def from_rows(x):
    """The inverse."""
    return tl.permute(pack(x), (2, 0, 1))


@triton.jit
def transpose(x):
    """Rows ↔ columns."""
    return unpack(tl.permute(pack(x), (0, 2, 1)))


@triton.jit
def dct_pass(x):
    """The 8-point DCT across an octet, sqrt(8) times the orthonormal one (Loeffler, Ligtenberg and Moschytz 1989)."""
    s0, s1, s2, s3 = x[0] + x[7], x[1] + x[6], x[2] + x[5], x[3] + x[4]
    d0, d1, d2, d3 = x[0] - x[7], x[1] - x[6], x[2] - x[5], x[3] - x[4]
    e0, e1, e2, e3 = s0 + s3, s1 + s2, s1 - s2, s0 - s3
    z1 = (e2 + e3) * 0.5411961001461970
    z5 = (d0 + d1 + d2 + d3) * 1.1758756024193588
    y1, y2 = (d3 + d0) * 0.8999762231364156, (d2 + d1) * 2.5629154477415055
    y3, y4 = z5 - (d3 + d1) * 1.9615705608064609, z5 - (d2 + d0) * 0.3901806440322566
    return (
        e0 + e1,
        d0 * 1.5013211109953180 - y1 + y4,
        z1 + e3 * 0.7653668647301796,
        d1 * 3.0727110269167720 - y2 + y3,
        e0 - e1,
        d2 * 2.0531198696600990 - y2 + y4,
        z1 - e2 * 1.8477590650225735,
        d3 * 0.2986313364127070 - y1 + y3,
    )


@triton.jit
def idct_pass(f):
    """The transpose of `dct_pass`, and so sqrt(8) times the inverse DCT."""
    e0, e1 = f[0] + f[4], f[0] - f[4]
    z1 = (f[2] + f[6]) * 0.5411961001461970
    e3, e2 = z1 + f[2] * 0.7653668647301796, z1 - f[6] * 1.8477590650225735
    s0, s1, s2, s3 = e0 + e3, e1 + e2, e1 - e2, e0 - e3
    p1, p2, p3, p4 = f[1] + f[7], f[3] + f[5], f[3] + f[7], f[1] + f[5]
    z5 = (p3 + p4) * 1.1758756024193588
    q1, q2 = p1 * 0.8999762231364156, p2 * 2.5629154477415055
    q3, q4 = z5 - p3 * 1.9615705608064609, z5 - p4 * 0.3901806440322566
    d0 = f[1] * 1.5013211109953180 - q1 + q4
    d1 = f[3] * 3.0727110269167720 - q2 + q3
    d2 = f[5] * 2.0531198696600990 - q2 + q4
    d3 = f[7] * 0.2986313364127070 - q1 + q3
    return s0 + d0, s1 + d1, s2 + d2, s3 + d3, s3 - d3, s2 - d2, s1 - d1, s0 - d0


@triton.jit
def dct8(x):
    """Eight rows of blocks [B, 8] → 8 times their DCT: eight columns, each [B, 8] down the row frequencies."""
    return dct_pass(transpose(dct_pass(x)))


@triton.jit
def idct8(f):
    """Eight columns of coefficients → 8 times the eight rows of their inverse DCT."""
    return idct_pass(transpose(idct_pass(f)))


@triton.jit
def forward_dct8(x):
    """Pixels → 8 times their DCT: coefficients."""
    return pack(dct8(to_rows(x)))


@triton.jit
def inverse_dct8(f):
    """Coefficients → 8 times their inverse DCT: pixels."""
    return from_rows(idct8(unpack(f)))


@triton.jit
def round_half_away(x):
    return tl.where(x >= 0, tl.floor(x + 0.5), tl.ceil(x - 0.5))
