"""A program's 8x8 blocks: which they are, and the ways from and to coefficient planes.

Shapes: the B blocks of a program are those of G neighbouring MCUs, ordered (row in the MCU, MCU, column in the MCU):
B = V G H for luma, with V and H the sampling factors, and G for one component of chroma. Pixels are [8, B, 8] for (row,
block, column): what comes last is what neighbouring threads have, so they touch neighbouring pixels, and what comes
first a thread's own. Coefficients are [B, 8, 8] for (block, row frequency, column frequency), as in a plane.

What travels together is a tuple: `strides` of an image (n, c, h, w); `grid`, the MCUs (of all images, down, across);
`size`, an image's or a component's (height, width); `shape`, a plane's (rows, columns) of blocks; `blocks`, as
`locate_blocks` returns them: (image, row, column, valid), [B] each.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_blocks(grid, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """(image, row, column, valid) of the program's blocks, [B] each: row and column among the blocks of a plane, and
    whether there is such a block."""
    mcus, rows, columns = grid
    block = tl.arange(0, V * G * H)
    mcu = tl.program_id(0) * G + block // H % G
    row = mcu // columns % rows * V + block // (G * H)
    return mcu // (rows * columns), row, mcu % columns * H + block % H, mcu < mcus


@triton.jit
def locate_chroma_blocks(grid, G: tl.constexpr, H: tl.constexpr):
    """The same of 2 G H blocks, G H of Cb and then as many of Cr; and each one's component, 1 or 2: [2 G H]."""
    image, row, column, valid = locate_blocks(grid, 2, G, H)
    return (image, row // 2, column, valid), row % 2 + 1


@triton.jit
def chroma_plane(planes, component):
    """Pointers [B, 1] to the plane, Cb's or Cr's, of each block's component. The compiler knows of each plane that it
    starts at a multiple of 16 bytes (launch.aligned sees to it), but not of a choice between them."""
    return tl.multiple_of(tl.where(component == 1, planes[0], planes[1]), [16])[:, None]


@triton.jit
def source_row(row, height, V: tl.constexpr):
    """The row of the image that a row of an MCU shows: rows repeat only up to the sampling factor; below that the last
    group of rows repeats, for libjpeg-turbo repeats the last row of *averaged* samples."""
    last_group = (height - 1) // V * V
    row = tl.where(row < last_group + V, row, last_group + row % V)
    return tl.minimum(row, height - 1)


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
def beside(x, y):
    """Two planes' pixels [8, B, 8] → side by side: [8, 2 B, 8]."""
    return tl.reshape(tl.permute(tl.join(x, y), (0, 3, 1, 2)), [8, 2 * x.shape[1], 8])


@triton.jit
def apart(x):
    """The inverse."""
    return tl.split(tl.permute(tl.reshape(x, [8, 2, x.shape[1] // 2, 8]), (0, 2, 3, 1)))


@triton.jit
def coefficient_offsets(image, row, column, shape):
    """[B, 64]: where the coefficients of blocks lie in a plane [N, rows, columns, 8, 8]. They are read and written as
    64 in a row: of [B, 8, 8] compilers before Triton 3.9 would give neighbouring threads different blocks."""
    place = (image.to(tl.int64) * shape[0] + row) * shape[1] + column
    return place[:, None] * 64 + tl.arange(0, 64)[None, :]


@triton.jit
def load_blocks(plane, blocks, shape):
    """Coefficients [B, 8, 8] of a plane, float32; 0 for blocks that are not valid."""
    image, row, column, valid = blocks
    where = plane + coefficient_offsets(image, row, column, shape)
    return tl.reshape(tl.load(where, mask=valid[:, None], other=0).to(tl.float32), [valid.shape[0], 8, 8])


@triton.jit
def load_table(tables, blocks, component, C: tl.constexpr):
    """A component's quantisation steps for each block: [B, 8, 8], float32; 1 for blocks that are not valid."""
    image, _, _, valid = blocks
    where = tables + coefficient_offsets(image, 0, component, (1, C))
    return tl.reshape(tl.load(where, mask=valid[:, None], other=1).to(tl.float32), [valid.shape[0], 8, 8])


@triton.jit
def limit(x, low, high):
    """x limited to low..high; NaN stays NaN."""
    return tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def places(blocks):
    """Rows [8, B] and columns [B, 8] of a plane at blocks' places."""
    _, row, column, _ = blocks
    return row[None, :] * 8 + tl.arange(0, 8)[:, None], column[:, None] * 8 + tl.arange(0, 8)[None, :]
