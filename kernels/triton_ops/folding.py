"""From coefficients back to the pixels of MCUs over the edge: all places that repeat a pixel get the mean of what comes
to them (for the feedback), or its sum (for the effect of a move). Unlike edges.py, it serves places in padding too, for
the search goes on from them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import repeat_samples, source_row


@triton.jit
def across_rows(values, G: tl.constexpr, H: tl.constexpr):
    """[2 G H, 8]: the sum of an MCU's upper and lower blocks, at both."""
    total = tl.sum(tl.reshape(values, [2, G * H, 8]), axis=0)
    return tl.reshape(tl.broadcast_to(total[None, :, :], [2, G * H, 8]), [2 * G * H, 8])


@triton.jit
def across_columns(values, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """[V G H, 1]: the sum along each row of an MCU, at all its blocks."""
    total = tl.sum(tl.reshape(tl.sum(values, axis=1), [V * G, H]), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], [V * G, H]), [V * G * H])[:, None]


@triton.jit
def fold_rows(x, row, first, height, counted, MEAN: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Rows at and below `first` of an MCU become their mean over `counted` blocks, or each row from there to the last
    its share of their sum. Where rows below an even height alternate (blocks.source_row), a luma row above the last
    repeats in every other one."""
    total, count, above = tl.zeros_like(x[0]), tl.zeros_like(x[0]), tl.zeros_like(x[0])
    for k in tl.static_range(8):
        y = (row * 8 + k)[:, None]
        total += tl.where((y >= first) & counted, x[k], 0)
        count += tl.where((y >= first) & counted, 1, 0).to(x[0].dtype)
        above += tl.where(y == height - 2, x[k], 0)
    if V == 2:
        total, count, above = across_rows(total, G, H), across_rows(count, G, H), across_rows(above, G, H)
    total = total / tl.maximum(count, 1.0) if MEAN else total // (height - first)
    folded = ()
    for k in tl.static_range(8):
        y = (row * 8 + k)[:, None]
        value = tl.where(y >= first, total, x[k])
        if V == 2:
            again = (y >= height) & (first == height - 1) & (source_row(y, height, V) == height - 2)
            value = tl.where(again, above, value)
        folded = folded + (value,)
    return folded


@triton.jit
def fold_columns(x, column, width, counted, MEAN: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Columns at and beyond the last one of the image become their mean over `counted` blocks, or their sum."""
    beyond = column[:, None] * 8 + tl.arange(0, 8)[None, :] >= width - 1
    count = across_columns(tl.where(beyond & counted, 1.0, 0.0), V, G, H)
    folded = ()
    for k in tl.static_range(8):
        total = across_columns(tl.where(beyond & counted, x[k], 0), V, G, H)
        if MEAN:
            total = total / tl.maximum(count, 1.0)
        folded = folded + (tl.where(beyond, total, x[k]),)
    return folded


@triton.jit
def fold(
    x, here, first, height, width, PADDED: tl.constexpr, MEAN: tl.constexpr,
    V: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Rows, then columns. PADDED: whether blocks beyond the image are padding, that is, luma's, and do not count."""
    image, row, column, valid = here
    counted_rows, counted_columns = row >= 0, column >= 0
    if PADDED:
        counted_rows, counted_columns = row * 8 < height, column * 8 < width
    x = fold_rows(x, row, first, height, counted_rows[:, None], MEAN, V, G, H)
    return fold_columns(x, column, width, counted_columns[:, None], MEAN, V, G, H)


@triton.jit
def to_places(
    luma,
    blueness,
    redness,
    here,
    height,
    width,
    MEAN: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """Octets of rows of Y [V G H, 8] and of samples of the differences [G, 8] → all three at all places [V G H, 8]."""
    cb, cr = luma, luma
    if C == 3:
        cb, cr = repeat_samples(blueness, V, G, H), repeat_samples(redness, V, G, H)
    if (height % (8 * V) != 0) | (width % (8 * H) != 0):
        luma = fold(luma, here, height - 1, height, width, True, MEAN, V, G, H)
        if C == 3:
            first = (height - 1) // V * V
            cb = fold(cb, here, first, height, width, False, MEAN, V, G, H)
            cr = fold(cr, here, first, height, width, False, MEAN, V, G, H)
    return luma, cb, cr
