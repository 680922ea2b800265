"""What both halves of project_exact's search do with MCUs in registers: read them, examine a candidate, feed a change
of coefficients back to the pixels, and write what is better."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import (
    idct,
    load_coefficients,
    load_steps,
    repeat_samples,
    source_row,
    spot,
    to_rgb,
)
from kernels.triton_ops.edges import store_rgb
from kernels.triton_ops.integer import excess, integer_forward, to_blocks, totals


@triton.jit
def load_component(
    plane,
    tables,
    mcus,
    rows,
    columns,
    height,
    width,
    COMPONENT: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """One component's coefficients and steps, and which of its blocks hold pixels [B, 1]. V, H: blocks of an MCU."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    coefficients = load_coefficients(plane, image, row, column, valid, rows * V, columns * H)
    steps = load_steps(tables, image, valid, COMPONENT, C)
    return coefficients, steps, ((row * 8 < height) & (column * 8 < width) & valid)[:, None]


@triton.jit
def drawn_in(value, scale, coefficients, steps, margin, shown):
    """What brings value * scale into the interval, its ends drawn in by `margin` of a step; zero in padding."""
    change = ()
    for k in tl.static_range(8):
        v, centre, half = value[k].to(tl.float32) * scale, coefficients[k] * steps[k], (0.5 - margin[k]) * steps[k]
        moved = tl.minimum(tl.maximum(v, centre - half), centre + half) - v
        change = change + (tl.where(shown, moved, 0.0),)
    return change


@triton.jit
def narrower(margin, beyond, again):
    """The margins after a pass: wider by `again` where the coefficient was wrong, at most half a step."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(margin[k] + tl.where(beyond[k] != 0, again, 0.0), 0.5),)
    return octet


@triton.jit
def first_margin(steps, shrink):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (shrink / tl.maximum(steps[k], 1.0),)
    return octet


@triton.jit
def fold_rows(x, row, first, height, counted, MEAN: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Rows at and below `first` of an MCU become their mean (over `counted` blocks), or else share their sum. Where
    rows below an even height alternate (blocks.source_row), a luma row above the last repeats in every other one."""
    total = tl.zeros_like(x[0])
    count = tl.zeros_like(x[0])
    above = tl.zeros_like(x[0])
    for k in tl.static_range(8):
        y = (row * 8 + k)[:, None]
        total += tl.where((y >= first) & counted, x[k], 0.0)
        count += tl.where((y >= first) & counted, 1.0, 0.0)
        above += tl.where(y == height - 2, x[k], 0.0)
    if V == 2:
        total, count, above = across_rows(total, G, H), across_rows(count, G, H), across_rows(above, G, H)
    total = total / (tl.maximum(count, 1.0) if MEAN else height - first)
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
def across_rows(values, G: tl.constexpr, H: tl.constexpr):
    """[2 G H, 8]: the sum of an MCU's upper and lower blocks, at both."""
    total = tl.sum(tl.reshape(values, [2, G * H, 8]), axis=0)
    return tl.reshape(tl.broadcast_to(total[None, :, :], [2, G * H, 8]), [2 * G * H, 8])


@triton.jit
def fold_columns(x, column, width, counted, MEAN: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Columns at and beyond the last one of the image become their mean (over `counted` blocks), or else their sum."""
    beyond = column[:, None] * 8 + tl.arange(0, 8)[None, :] >= width - 1
    count = across_columns(tl.where(beyond & counted, 1.0, 0.0), V, G, H)
    folded = ()
    for k in tl.static_range(8):
        total = across_columns(tl.where(beyond & counted, x[k], 0.0), V, G, H)
        if MEAN:
            total = total / tl.maximum(count, 1.0)
        folded = folded + (tl.where(beyond, total, x[k]),)
    return folded


@triton.jit
def across_columns(values, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """[V G H, 8]: the sum along each row of an MCU, at all its blocks, [V G H, 1]."""
    total = tl.sum(tl.reshape(tl.sum(values, axis=1), [V * G, H]), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], [V * G, H]), [V * G * H])[:, None]


@triton.jit
def to_places(
    luma,
    blueness,
    redness,
    scale,
    row,
    column,
    height,
    width,
    shown,
    MEAN: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """Changes of coefficients → of Y, Cb and Cr at all places: the inverse DCT times `scale`, chroma repeated; at edges
    a pixel gets the mean (or else the sum) over the places that repeat it, and they what it gets."""
    y = scaled(idct(luma), scale)
    if C == 3:
        cb = repeat_samples(scaled(idct(blueness), scale), V, G, H)
        cr = repeat_samples(scaled(idct(redness), scale), V, G, H)
    else:
        cb, cr = y, y
    if (height % (8 * V) != 0) | (width % (8 * H) != 0):
        all_shown = shown | True
        y = fold_columns(
            fold_rows(y, row, height - 1, height, shown, MEAN, V, G, H), column, width, shown, MEAN, V, G, H
        )
        if C == 3:
            first = (height - 1) // V * V
            cb = fold_columns(
                fold_rows(cb, row, first, height, all_shown, MEAN, V, G, H), column, width, all_shown, MEAN, V, G, H
            )
            cr = fold_columns(
                fold_rows(cr, row, first, height, all_shown, MEAN, V, G, H), column, width, all_shown, MEAN, V, G, H
            )
    return y, cb, cr


@triton.jit
def scaled(x, factor):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k] * factor,)
    return octet


@triton.jit
def plus(x, change):
    """The image with its feedback, kept where rounding still gives 0..255."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(tl.maximum(x[k] + change[k], -0.49), 255.49),)
    return octet


@triton.jit
def eight_bits(x):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(tl.maximum(tl.floor(x[k] + 0.5), 0.0), 255.0).to(tl.int32),)
    return octet


@triton.jit
def examine(
    red,
    green,
    blue,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    mcus,
    rows,
    columns,
    height,
    width,
    near,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """Candidate octets, int32 → 8 times their DCT and the excess of each component, [G] wrong coefficients, [G] their
    total excess. The coefficients and steps come out of the cache each time: registers are scarcer."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    y, cb, cr = integer_forward(red, green, blue, row, height, C, V, G, H)
    q, steps, shown = load_component(luma_plane, tables, mcus, rows, columns, height, width, 0, C, V, G, H)
    y_beyond = excess(y, q, steps, shown, near)
    wrong, total = totals(y_beyond, V, G, H)
    if C == 3:
        q, steps, shown = load_component(blue_plane, tables, mcus, rows, columns, height, width, 1, C, 1, G, 1)
        cb_beyond = excess(cb, q, steps, shown, near)
        q, steps, shown = load_component(red_plane, tables, mcus, rows, columns, height, width, 2, C, 1, G, 1)
        cr_beyond = excess(cr, q, steps, shown, near)
        more, over = totals(cb_beyond, 1, G, 1)
        wrong, total = wrong + more, total + over
        more, over = totals(cr_beyond, 1, G, 1)
        wrong, total = wrong + more, total + over
    else:
        cb_beyond, cr_beyond = y_beyond, y_beyond
    return (y, cb, cr), (y_beyond, cb_beyond, cr_beyond), wrong, total


@triton.jit
def feed_back(
    accumulated,
    values,
    scales,
    margins,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    mcus,
    rows,
    columns,
    height,
    width,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """The accumulated image plus the least change that brings the coefficients `values` times `scales` into their
    intervals."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    q, steps, shown = load_component(luma_plane, tables, mcus, rows, columns, height, width, 0, C, V, G, H)
    y = drawn_in(values[0], scales[0], q, steps, margins[0], shown)
    if C == 3:
        q, steps, there = load_component(blue_plane, tables, mcus, rows, columns, height, width, 1, C, 1, G, 1)
        cb = drawn_in(values[1], scales[1], q, steps, margins[1], there)
        q, steps, there = load_component(red_plane, tables, mcus, rows, columns, height, width, 2, C, 1, G, 1)
        cr = drawn_in(values[2], scales[1], q, steps, margins[2], there)
    else:
        cb, cr = y, y
    y, cb, cr = to_places(y, cb, cr, 0.125, row, column, height, width, shown, True, C, V, G, H)
    if C == 3:
        r, g, b = to_rgb(y, cb, cr)
        return plus(accumulated[0], r), plus(accumulated[1], g), plus(accumulated[2], b)
    else:
        r = plus(accumulated[0], y)
        return r, r, r


@triton.jit
def store_where(
    out,
    red,
    green,
    blue,
    chosen,
    mcus,
    rows,
    columns,
    height,
    width,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """Writes the MCUs [G] that are chosen into the contiguous uint8 images."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    valid = valid & (tl.sum(to_blocks(chosen.to(tl.int32), V, G, H), axis=1) != 0)
    area = height.to(tl.int64) * width
    store_rgb(out, red, green, blue, image, row, column, valid, height, width, C * area, area, width, 1, C)
