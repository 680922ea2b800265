"""The end of the search: a few wrong coefficients mended one pixel at a time, as kernels/descent.py tells.

A move is a number: which of the kinds (red, green, blue or all three up, then down) times the pixels of an MCU, plus
the pixel's place in it. What is forbidden is counted down in four bits for each kind at each pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import source_row, spot
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.integer import to_blocks
from kernels.triton_ops.search import examine, store_where, to_places

NO_MOVE = tl.constexpr(1 << 30)
STRONGEST = tl.constexpr(32.0)


@triton.jit
def gradients(
    beyond, row, column, height, width, shown, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr
):
    """How much worse each pixel's channel, one level up, would make things, to first order: octets of R, G, B and all
    three."""
    y, cb, cr = limited(beyond[0], 1.0), limited(beyond[1], 1.0 / (V * H)), limited(beyond[2], 1.0 / (V * H))
    y, cb, cr = to_places(y, cb, cr, 1.0, row, column, height, width, shown, False, C, V, G, H)
    if C == 1:
        return y, y, y, y
    else:
        red, green, blue = (), (), ()
        for k in tl.static_range(8):
            rest = y[k] - cb[k] * (1 / 1.772) - cr[k] * (1 / 1.402)
            red = red + (0.299 * rest + cr[k] * (1 / 1.402),)
            green = green + (0.587 * rest,)
            blue = blue + (0.114 * rest + cb[k] * (1 / 1.772),)
        return red, green, blue, y


@triton.jit
def limited(beyond, factor):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(tl.maximum(beyond[k], -STRONGEST), STRONGEST) * factor,)
    return octet


@triton.jit
def least_per_mcu(values, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """The least of [B, 8] in each MCU: [G]."""
    return tl.min(tl.min(tl.reshape(tl.min(values, axis=1), [V, G, H]), axis=2), axis=0)


@triton.jit
def next_move(
    slopes,
    current,
    forbidden,
    last_score,
    last_move,
    row,
    column,
    real_rows,
    real,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """[G]: the score and number of the best possible move after (last_score, last_move); NO_MOVE when there is none."""
    best = tl.full([V * G * H, 8], float("inf"), tl.float32)
    move = tl.full([V * G * H, 8], NO_MOVE, tl.int32)
    after, last = to_blocks(last_score, V, G, H), to_blocks(last_move, V, G, H)
    place = (column % H * 8)[:, None] + tl.arange(0, 8)[None, :]
    for kind in tl.static_range(8):
        if (C == 3) | (kind % 4 == 0):
            for k in tl.static_range(8):
                if kind < 4:
                    score, end = slopes[kind][k], 255
                else:
                    score, end = -slopes[kind - 4][k], 0
                if kind % 4 == 3:
                    free = (current[0][k] != end) & (current[1][k] != end) & (current[2][k] != end)
                else:
                    free = current[kind % 4][k] != end
                number = kind * (64 * V * H) + (row % V * 8 + k)[:, None] * (8 * H) + place
                free = free & (((forbidden[k] >> (4 * kind)) & 15) == 0) & real & (row * 8 + k < real_rows)[:, None]
                later = (score > after) | ((score == after) & (number > last))
                chosen = free & later & ((score < best) | ((score == best) & (number < move)))
                best = tl.where(chosen, score, best)
                move = tl.where(chosen, number, move)
    least = least_per_mcu(best, V, G, H)
    return least, least_per_mcu(tl.where(best == to_blocks(least, V, G, H), move, NO_MOVE), V, G, H)


@triton.jit
def moved(
    current, move, row, column, height, width, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr
):
    """The candidate after each MCU's move [G] (NO_MOVE: as it was), copies of an edge's pixels included."""
    kind, pixel = to_blocks(move // (64 * V * H), V, G, H), to_blocks(move % (64 * V * H), V, G, H)
    place = tl.minimum(column[:, None] * 8 + tl.arange(0, 8)[None, :], width - 1) - (column // H * H * 8)[:, None]
    here = place == pixel % (8 * H)
    step = tl.where(kind < 4, 1, -1)
    red, green, blue = (), (), ()
    for k in tl.static_range(8):
        y = (source_row(row * 8 + k, height, V) - row // V * V * 8)[:, None]
        change = tl.where(here & (y == pixel // (8 * H)) & (kind < 8), step, 0)
        red = red + (current[0][k] + tl.where((kind % 4 == 0) | (kind % 4 == 3), change, 0),)
        green = green + (current[1][k] + tl.where((kind % 4 == 1) | (kind % 4 == 3), change, 0),)
        blue = blue + (current[2][k] + tl.where((kind % 4 == 2) | (kind % 4 == 3), change, 0),)
    return red, green, blue


@triton.jit
def forbid(forbidden, move, row, column, TENURE: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Counts down, then forbids what would undo each MCU's move."""
    kind, pixel = to_blocks(move // (64 * V * H), V, G, H), to_blocks(move % (64 * V * H), V, G, H)
    shift = (kind + 4) % 8 * 4
    here = ((column % H * 8)[:, None] + tl.arange(0, 8)[None, :] == pixel % (8 * H)) & (kind < 8)
    octet = ()
    for k in tl.static_range(8):
        f = forbidden[k]
        f = f - ((f | (f >> 1) | (f >> 2) | (f >> 3)) & 0x11111111)
        chosen = here & ((row % V * 8 + k)[:, None] == pixel // (8 * H))
        octet = octet + (tl.where(chosen, (f & ~(15 << shift)) | (TENURE << shift), f),)
    return octet


@triton.jit
def descend(
    image8,
    fewest,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    mcus,
    rows,
    columns,
    height,
    width,
    TURNS: tl.constexpr,
    PATIENCE: tl.constexpr,
    TENURE: tl.constexpr,
    NEAR: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """Mends MCUs of image8 that have `fewest` [G] wrong coefficients; returns how many are left. Three attempts, which
    try 16, 8 and 4 moves in each turn, the last two only where at most 4 are wrong."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    shown = ((row * 8 < height) & (column * 8 < width) & valid)[:, None]
    real = (column[:, None] * 8 + tl.arange(0, 8)[None, :] < width) & valid[:, None]
    exists = tl.program_id(0) * G + tl.arange(0, G) < mcus
    area = height.to(tl.int64) * width
    tried = 16
    while tried >= 4:
        active = (fewest > 0) & (fewest <= tl.where(tried == 16, 16.0, 4.0)) & exists
        if tl.max(active.to(tl.int32)) > 0:
            tl.debug_barrier()  # what other threads have written is read
            red, green, blue = load_rgb(
                image8, image, row, column, valid, height, width, C * area, area, width, 1, C, V
            )
            current = (integers(red), integers(green), integers(blue))
            none = tl.zeros([V * G * H, 8], tl.int32)
            forbidden = (none, none, none, none, none, none, none, none)
            least, stale, turn = tl.full([G], float("inf"), tl.float32), tl.zeros([G], tl.int32), 0
            while (turn < TURNS) & (tl.max(active.to(tl.int32)) > 0):
                found, beyond, wrong, total = examine(
                    current[0],
                    current[1],
                    current[2],
                    luma_plane,
                    blue_plane,
                    red_plane,
                    tables,
                    mcus,
                    rows,
                    columns,
                    height,
                    width,
                    NEAR,
                    C,
                    V,
                    G,
                    H,
                )
                slopes = gradients(beyond, row, column, height, width, shown, C, V, G, H)
                move, wrong, total = best_move(
                    current,
                    slopes,
                    forbidden,
                    tried,
                    row,
                    column,
                    real,
                    luma_plane,
                    blue_plane,
                    red_plane,
                    tables,
                    mcus,
                    rows,
                    columns,
                    height,
                    width,
                    C,
                    V,
                    G,
                    H,
                )
                current = moved(current, move, row, column, height, width, C, V, G, H)
                forbidden = forbid(forbidden, move, row, column, TENURE, V, G, H)
                better = active & (wrong < fewest)
                store_where(
                    image8, current[0], current[1], current[2], better, mcus, rows, columns, height, width, C, V, G, H
                )
                fewest = tl.where(better, wrong, fewest)
                stale = tl.where(total < least, 0, stale + 1)
                least = tl.minimum(total, least)
                active = active & (wrong > 0) & (stale < PATIENCE)
                turn += 1
        tried = tried // 2
    return fewest


@triton.jit
def integers(x):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k].to(tl.int32),)
    return octet


@triton.jit
def best_move(
    current,
    slopes,
    forbidden,
    tried,
    row,
    column,
    real,
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
    """Of the `tried` moves that rank first, the one that leaves the least excess: [G] its number, and the wrong
    coefficients and the excess that it leaves."""
    score, number = tl.full([G], float("-inf"), tl.float32), tl.full([G], -1, tl.int32)
    move, wrong = tl.full([G], NO_MOVE, tl.int32), tl.full([G], 1e6, tl.float32)
    total = tl.full([G], float("inf"), tl.float32)
    for _ in range(tried):
        score, number = next_move(slopes, current, forbidden, score, number, row, column, height, real, C, V, G, H)
        candidate = moved(current, number, row, column, height, width, C, V, G, H)
        found, beyond, count, excess = examine(
            candidate[0],
            candidate[1],
            candidate[2],
            luma_plane,
            blue_plane,
            red_plane,
            tables,
            mcus,
            rows,
            columns,
            height,
            width,
            0.0,
            C,
            V,
            G,
            H,
        )
        better = (excess < total) & (number != NO_MOVE)
        move, wrong = tl.where(better, number, move), tl.where(better, count, wrong)
        total = tl.where(better, excess, total)
    return move, wrong, total
