"""Pixels between images and registers (blocks.py), and MCUs over the edge, where several places show one pixel.

A plane's places are its rows and columns in whole MCUs; blocks.source_row and luma_pixels define what those beyond the
image show. Luma repeats within a block: its blocks beyond the image are padding. Chroma has one block for an MCU and
repeats within that. So one rule serves both, with V = H = 1 for luma.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import places, source_row
from kernels.triton_ops.sampling import repeat_chroma


@triton.jit
def addresses(x, image, y, place, strides):
    """[8, B, 8]: where one channel's pixels are.

    The hints are no facts, but an order: neighbouring threads take a row's pixels and go on in the next block's, as
    pixels are in registers. Without a known alignment nothing else follows from them; each pixel is read by itself."""
    stride_n, _, stride_h, stride_w = strides
    corner = x + image.to(tl.int64)[:, None] * stride_n + place * stride_w
    where = corner[None, :, :] + (y.to(tl.int64) * stride_h)[:, :, None]
    return tl.multiple_of(tl.max_contiguous(where, [1, 2, 4]), [1, 1, 1])


@triton.jit
def inside(y, place, valid, size):
    """[8, B, 8]: which places are pixels of the image."""
    return (valid[:, None] & (place < size[1]))[None, :, :] & (y < size[0])[:, :, None]


@triton.jit
def load_channels(where, mask, stride_c, C: tl.constexpr):
    """Red, green and blue [8, B, 8], float32; of gray images the one channel thrice. Channels are steps of stride_c
    apart, not multiples: twice that may be more than 32 bits hold."""
    red = tl.load(where, mask=mask, other=0).to(tl.float32)
    if C == 1:
        return red, red, red
    else:
        green = tl.load(where + stride_c, mask=mask, other=0).to(tl.float32)
        return red, green, tl.load(where + stride_c + stride_c, mask=mask, other=0).to(tl.float32)


@triton.jit
def load_pixels(x, blocks, size, strides, C: tl.constexpr, V: tl.constexpr):
    """Red, green and blue [8, B, 8] at all places of MCUs. Beyond the image they repeat its edge."""
    y, place = places(blocks)
    y, place = source_row(y, size[0], V), tl.minimum(place, size[1] - 1)
    where = addresses(x, blocks[0], y, place, strides)
    return load_channels(where, blocks[3][None, :, None], strides[1], C)


@triton.jit
def load_inside(x, blocks, size, strides, C: tl.constexpr):
    """The same, but zero beyond the image."""
    y, place = places(blocks)
    where = addresses(x, blocks[0], y, place, strides)
    return load_channels(where, inside(y, place, blocks[3], size), strides[1], C)


@triton.jit
def store_pixels(x, red, green, blue, blocks, size, strides, C: tl.constexpr):
    """The inverse of `load_inside`: what lies beyond the image is not written."""
    y, place = places(blocks)
    where, mask = addresses(x, blocks[0], y, place, strides), inside(y, place, blocks[3], size)
    tl.store(where, red.to(x.dtype.element_ty), mask=mask)
    if C == 3:
        tl.store(where + strides[1], green.to(x.dtype.element_ty), mask=mask)
        tl.store(where + strides[1] + strides[1], blue.to(x.dtype.element_ty), mask=mask)


@triton.jit
def touches_edge(grid, size, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Whether one of the program's MCUs may extend beyond the image."""
    _, rows, columns = grid
    height, width = size
    first = tl.program_id(0) * G
    right = (width % (8 * H) != 0) & (first % columns + G >= columns)
    bottom = (height % (8 * V) != 0) & (first % (rows * columns) + G > (rows - 1) * columns)
    return right | bottom


@triton.jit
def showings(blocks, size, V: tl.constexpr, H: tl.constexpr):
    """[8, B, 8]: how many places of an MCU show the pixel that each place shows: 1 inside the image. With V = 2 the two
    rows of the last group share the places below it, or the one row has them all."""
    height, width = size
    _, row, column, _ = blocks
    y, place = places(blocks)
    end, last = (column[:, None] // H + 1) * 8 * H, width - 1
    across = tl.where(place < last, 1, tl.maximum(end - last, 1)).to(tl.float32)
    end, last = (row[None, :] // V + 1) * 8 * V, (height - 1) // V * V
    down = tl.where(y < last, 1, tl.maximum(end - last, 1) // (height - last)).to(tl.float32)
    return across[None, :, :] * down[:, :, None]


@triton.jit
def mean_of_rows(x, y, height):
    """Rows y of a plane, `height` rows high, with the last row and those below replaced by their mean."""
    below = y >= height - 1
    total = tl.sum(tl.where(below[:, :, None], x, 0.0), axis=0)
    count = tl.maximum(tl.sum(below.to(tl.int32), axis=0), 1).to(tl.float32)
    return tl.where(below[:, :, None], (total / count[:, None])[None, :, :], x)


@triton.jit
def mean_of_places(x, blocks, pixel_column, size, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Samples [8, G, 8] → what its places have on average, for each pixel: [8, V G H, 8].

    Rows repeat as whole rows of samples. Columns repeat pixel by pixel: of the samples under an even width's last two
    columns, only the right half is the last column's."""
    height, width = size
    y, place = places(blocks)
    x = mean_of_rows(x, y, (height + V - 1) // V)
    last = width - 1
    weight = tl.minimum(tl.maximum((place + 1) * H - last, 0), H).to(tl.float32)
    count = tl.maximum(tl.sum(weight, axis=1), 1.0)
    mean = tl.sum(x * weight[None, :, :], axis=2) / count[None, :]
    mean = tl.broadcast_to(mean[:, :, None], x.shape)
    beyond = pixel_column[:, None] * 8 + tl.arange(0, 8)[None, :] >= last
    return tl.where(beyond[None, :, :], repeat_chroma(mean, V, G, H), repeat_chroma(x, V, G, H))
