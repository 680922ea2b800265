"""What every kernel is made of: 8x8 blocks in registers.

The B blocks of a program are those of G neighbouring MCUs, ordered (row in the MCU, MCU, column in the MCU): B = V G H
for luma, with V and H the sampling factors, and G for one component of chroma. They come in three forms:

- pixels [8, B, 8] for (row, block, column), in which images are read, written and computed with place by place: what
  comes last is what neighbouring threads have, so they touch neighbouring pixels, and what comes first a thread's own;
- octets, tuples of a block's eight rows (or columns), eight tensors [B, 8], so that a pass of the DCT is arithmetic
  between them and only the transposition between two passes crosses threads;
- coefficients [B, 8, 8] for (block, row frequency, column frequency), as the planes of files have them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spot(mcus, rows, columns, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Of each of the program's blocks [B]: its image, its row and column among the blocks of a plane, and whether it
    is one at all. rows, columns: MCUs of an image; mcus: of all images."""
    block = tl.arange(0, V * G * H)
    mcu = tl.program_id(0) * G + block // H % G
    row = mcu // columns % rows * V + block // (G * H)
    return mcu // (rows * columns), row, mcu % columns * H + block % H, mcu < mcus


@triton.jit
def spot_chroma(mcus, rows, columns, G: tl.constexpr, H: tl.constexpr):
    """The same of 2 G H blocks, G H of blueness and then as many of redness, and whose component each is: 1 or 2."""
    image, row, column, valid = spot(mcus, rows, columns, 2, G, H)
    return image, row // 2, column, valid, row % 2 + 1


@triton.jit
def chroma_plane(blue_plane, red_plane, component):
    """Pointers [B, 1] to the blocks' planes. That these start at multiples of 16 bytes (new ones do, and others by
    launch.aligned) the compiler knows of each plane, but not of a choice between them."""
    return tl.multiple_of(tl.where(component == 1, blue_plane, red_plane), [16])[:, None]


@triton.jit
def source_row(row, height, V: tl.constexpr):
    """The row of the image that a row of an MCU shows: rows repeat only up to the sampling factor; below that the last
    group of rows repeats, for libjpeg-turbo repeats the last row of *averaged* samples."""
    last_group = (height - 1) // V * V
    row = tl.where(row < last_group + V, row, last_group + row % V)
    return tl.minimum(row, height - 1)


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
def beside(x, y):
    """Two planes' pixels [8, B, 8] → side by side: [8, 2 B, 8]."""
    return tl.reshape(tl.permute(tl.join(x, y), (0, 3, 1, 2)), [8, 2 * x.shape[1], 8])


@triton.jit
def apart(x):
    """The inverse."""
    return tl.split(tl.permute(tl.reshape(x, [8, 2, x.shape[1] // 2, 8]), (0, 2, 3, 1)))


@triton.jit
def luma_pixels(luma, row, height, V: tl.constexpr):
    """Luma, unlike chroma, repeats the very last row: where the rows below an even height alternate (`source_row`),
    every other one is replaced."""
    if V == 1:
        return luma
    else:
        upper, lower = tl.split(tl.permute(tl.reshape(luma, [4, 2, luma.shape[1], 8]), (0, 2, 3, 1)))
        below = row[None, :] * 8 + tl.arange(0, 4)[:, None] * 2 >= height
        upper = tl.where(below[:, :, None], lower, upper)
        return tl.reshape(tl.permute(tl.join(upper, lower), (0, 3, 1, 2)), luma.shape)


@triton.jit
def ycc(red, green, blue, C: tl.constexpr):
    """RGB, 0..255 → Y - 128 and the two differences (JFIF); of gray, luma thrice."""
    if C == 1:
        luma = red - 128.0
        return luma, luma, luma
    else:
        y = red * 0.299 + green * 0.587 + blue * 0.114
        return y - 128.0, (blue - y) * (1 / 1.772), (red - y) * (1 / 1.402)


@triton.jit
def rgb(luma, blueness, redness):
    """The linear way back, differences of (Y, Cb, Cr) → of (R, G, B)."""
    green = luma - (0.114 * 1.772 / 0.587) * blueness - (0.299 * 1.402 / 0.587) * redness
    return luma + 1.402 * redness, green, luma + 1.772 * blueness


@triton.jit
def shrink(x, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Pixels of luma's blocks [8, V G H, 8] → sums of the V x H values under each chroma sample, [8, G, 8]."""
    if H == 2:
        left, right = tl.split(tl.reshape(x, [8, V * G, 8, 2]))
        x = left + right
    if V == 2:
        upper, lower = tl.split(tl.permute(tl.reshape(x, [4, 2, V, G, 8]), (2, 0, 3, 4, 1)))
        x = tl.reshape(upper + lower, [8, G, 8])
    return x


@triton.jit
def grow(x, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Chroma's [8, G, 8] → each sample repeated over its V x H pixels, pixels of luma's blocks [8, V G H, 8]."""
    if V == 2:
        x = tl.permute(tl.reshape(x, [2, 4, G, 8]), (1, 0, 2, 3))
        x = tl.reshape(tl.permute(tl.join(x, x), (0, 4, 1, 2, 3)), [8, V * G, 8])
    if H == 2:
        x = tl.reshape(tl.join(x, x), [8, V * G * H, 8])
    return x


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
def dct(x):
    """Eight rows of blocks [B, 8] → 8 times their DCT: eight columns, each [B, 8] down the row frequencies."""
    return dct_pass(transpose(dct_pass(x)))


@triton.jit
def idct(f):
    """Eight columns of coefficients → 8 times the eight rows of their inverse DCT."""
    return idct_pass(transpose(idct_pass(f)))


@triton.jit
def coefficient_offsets(image, row, column, rows, columns):
    """[B, 64]: where the coefficients of blocks lie in a plane [N, rows, columns, 8, 8]. They are read and written as
    64 in a row: of [B, 8, 8] compilers before Triton 3.9 would give neighbouring threads different blocks."""
    place = (image.to(tl.int64) * rows + row) * columns + column
    return place[:, None] * 64 + tl.arange(0, 64)[None, :]


@triton.jit
def load_blocks(plane, image, row, column, valid, rows, columns):
    """Coefficients [B, 8, 8] of a plane that has rows x columns blocks, float32."""
    where = plane + coefficient_offsets(image, row, column, rows, columns)
    return tl.reshape(tl.load(where, mask=valid[:, None], other=0).to(tl.float32), [valid.shape[0], 8, 8])


@triton.jit
def load_table(tables, image, valid, component, COMPONENTS: tl.constexpr):
    """A component's quantisation steps for each block: [B, 8, 8], float32."""
    where = tables + coefficient_offsets(image, 0, component, 1, COMPONENTS)
    return tl.reshape(tl.load(where, mask=valid[:, None], other=1).to(tl.float32), [valid.shape[0], 8, 8])


@triton.jit
def round_half_away(x):
    return tl.where(x >= 0, tl.floor(x + 0.5), tl.ceil(x - 0.5))


@triton.jit
def limit(x, low, high):
    """What is not a number stays so."""
    return tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def forward(x):
    """Pixels → 8 times their DCT: coefficients."""
    return pack(dct(to_rows(x)))


@triton.jit
def inverse(f):
    """Coefficients → 8 times their inverse DCT: pixels."""
    return from_rows(idct(unpack(f)))
