"""MCUs over the edge, where several places show one pixel (blocks.source_row and luma_rows say which).

A plane's places are its rows and columns in whole MCUs. Luma repeats within a block: its blocks beyond the image are
padding. Chroma has one block for an MCU and repeats within that. So one rule serves both, with V = H = 1 for luma.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import load_octet, repeat_samples, store_octet


@triton.jit
def touches_edge(mcus, rows, columns, height, width, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Whether one of the program's MCUs may hang over the image."""
    first = tl.program_id(0) * G
    right = (width % (8 * H) != 0) & (first % columns + G >= columns)
    bottom = (height % (8 * V) != 0) & (first % (rows * columns) + G > (rows - 1) * columns)
    return right | bottom


@triton.jit
def load_rgb(
    x,
    image,
    row,
    column,
    valid,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    V: tl.constexpr,
):
    """Octets of each channel at all places of MCUs, float32; of gray images, the one thrice."""
    red = load_octet(x, image, row, column, valid, height, width, stride_n, stride_h, stride_w, V)
    if C == 1:
        return red, red, red
    else:
        green = load_octet(x + stride_c, image, row, column, valid, height, width, stride_n, stride_h, stride_w, V)
        blue = load_octet(x + 2 * stride_c, image, row, column, valid, height, width, stride_n, stride_h, stride_w, V)
        return red, green, blue


@triton.jit
def store_rgb(
    x,
    red,
    green,
    blue,
    image,
    row,
    column,
    valid,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
):
    """The inverse: what lies beyond the image is not written."""
    store_octet(x, red, image, row, column, valid, height, width, stride_n, stride_h, stride_w)
    if C == 3:
        store_octet(x + stride_c, green, image, row, column, valid, height, width, stride_n, stride_h, stride_w)
        store_octet(x + 2 * stride_c, blue, image, row, column, valid, height, width, stride_n, stride_h, stride_w)


@triton.jit
def load_inside(x, image, row, column, valid, height, width, stride_n, stride_h, stride_w):
    """blocks.load_octet, but zero beyond the image."""
    place = column[:, None] * 8 + tl.arange(0, 8)[None, :]
    corner = x + image.to(tl.int64)[:, None] * stride_n + place * stride_w
    inside = valid[:, None] & (place < width)
    octet = ()
    for k in tl.static_range(8):
        y = (row * 8 + k)[:, None]
        value = tl.load(corner + y.to(tl.int64) * stride_h, mask=inside & (y < height), other=0.0)
        octet = octet + (value.to(tl.float32),)
    return octet


@triton.jit
def averaging_adjoint(x, row, column, height, width, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Octets of the gradient of samples [G, 8] → of the pixels [V G H, 8] that each averages. The last row of an odd
    height counts twice in its samples, the last column of an odd width likewise."""
    x = repeat_samples(x, V, G, H)
    place = column[:, None] * 8 + tl.arange(0, 8)[None, :]
    across = tl.where(place == width - 1, H - (width - 1) % H, 1).to(tl.float32) * (1 / (V * H))
    octet = ()
    for k in tl.static_range(8):
        down = tl.where(row * 8 + k == height - 1, V - (height - 1) % V, 1).to(tl.float32)
        octet = octet + (x[k] * (across * down[:, None]),)
    return octet


@triton.jit
def repeats_across(column, width, H: tl.constexpr):
    """[B, 8]: how many places of a row of the MCU show what this one shows: 1 inside the image."""
    last = width - 1
    end = (column // H + 1) * 8 * H
    place = column[:, None] * 8 + tl.arange(0, 8)[None, :]
    return tl.where(place < last, 1, tl.maximum(end - last, 1)[:, None]).to(tl.float32)


@triton.jit
def repeats_down(y, row, height, V: tl.constexpr):
    """[B]: how many places of a column of the MCU show what row y of the plane shows. With V = 2 the two rows of the
    last group share the places below it, or the one row has them all."""
    last_group = (height - 1) // V * V
    end = (row // V + 1) * 8 * V
    return tl.where(y < last_group, 1, tl.maximum(end - last_group, 1) // (height - last_group)).to(tl.float32)


@triton.jit
def share_among_places(x, row, column, height, width, V: tl.constexpr, H: tl.constexpr):
    """Octets of what a pixel has, at all places that show it, → divided by their number."""
    across = repeats_across(column, width, H)
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k] / (across * repeats_down(row * 8 + k, row, height, V)[:, None]),)
    return octet


@triton.jit
def sum_of_places(x, row, column, height, width, V: tl.constexpr, H: tl.constexpr):
    """Octets of the mean over the places that show a pixel → their sum."""
    across = repeats_across(column, width, H)
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k] * (across * repeats_down(row * 8 + k, row, height, V)[:, None]),)
    return octet


@triton.jit
def mean_of_rows(x, row, height):
    """Octets with the last row of the plane, `height` rows high, and those below replaced by their mean."""
    total, count = tl.zeros_like(x[0]), tl.zeros_like(row)
    for k in tl.static_range(8):
        below = row * 8 + k >= height - 1
        total += tl.where(below[:, None], x[k], 0.0)
        count += below.to(tl.int32)
    mean = total / tl.maximum(count, 1).to(tl.float32)[:, None]
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.where((row * 8 + k >= height - 1)[:, None], mean, x[k]),)
    return octet


@triton.jit
def mean_of_places(x, row, column, pixel_column, height, width, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Octets of samples [G, 8] → what its places have on average, for each pixel: octets of pixels [V G H, 8].

    Rows repeat as whole rows of samples. Columns repeat pixel by pixel: of the samples under an even width's last two
    columns, only the right half is the last column's."""
    x = mean_of_rows(x, row, (height + V - 1) // V)
    last = width - 1
    sample_end = (column[:, None] * 8 + tl.arange(0, 8)[None, :] + 1) * H
    weight = tl.minimum(tl.maximum(sample_end - last, 0), H).to(tl.float32)
    count = tl.maximum(tl.sum(weight, axis=1), 1.0)
    mean = ()
    for k in tl.static_range(8):
        tail = (tl.sum(x[k] * weight, axis=1) / count)[:, None]
        mean = mean + (tl.broadcast_to(tail, x[k].shape),)
    x, mean = repeat_samples(x, V, G, H), repeat_samples(mean, V, G, H)
    beyond = pixel_column[:, None] * 8 + tl.arange(0, 8)[None, :] >= last
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.where(beyond, mean[k], x[k]),)
    return octet
