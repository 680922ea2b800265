"""The end of project_exact's search: MCUs with a few coefficients still wrong are mended one pixel at a time.
kernels/descent.py tells how; every number here is an integer, or half of one, and the same as there.

A program takes one MCU after another from a list, and works on eight copies of it, which stand where other kernels have
eight MCUs. They try different moves; and each ranks one kind of move: red, green, blue or all three up, and the same
down. A move's number is its kind times the pixels of an MCU plus the pixel's place, block after block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Subsampling
from kernels.descent import ATTEMPTS, COSINES, LOWEST_BIT, NEAR, STRONGEST, TENURE, TURNS, WEIGHTS
from kernels.tables import constant
from kernels.triton_ops.blocks import source_row, transpose
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.folding import to_places
from kernels.triton_ops.integer import integer_forward, to_blocks
from kernels.triton_ops.launch import INTERPRETED, on_device_of
from kernels.triton_ops.search import (
    choose,
    count_wrong,
    excess,
    load_intervals,
    pack_channels,
    store_packed,
    sum_excess,
    unpack_channels,
)

C1, C2, C3, C4, C5, C6, C7 = map(tl.constexpr, COSINES[1:])
Y_RED, Y_GREEN, Y_BLUE, Y_ALL = map(tl.constexpr, WEIGHTS[0])
CB_RED, CB_GREEN, CB_BLUE, CB_ALL = map(tl.constexpr, WEIGHTS[1])
CR_RED, CR_GREEN, CR_BLUE, CR_ALL = map(tl.constexpr, WEIGHTS[2])
COPIES = tl.constexpr(8)
SHIFT = tl.constexpr(LOWEST_BIT)
IMPOSSIBLE = tl.constexpr(1 << 29)
NO_MOVE = tl.constexpr(1 << 30)
"""The ranks of moves that are forbidden or lead out of 0..255, tried only when there are no others, and of none."""


@triton.jit
def copies(mcu, rows, columns, V: tl.constexpr, H: tl.constexpr):
    """blocks.spot for eight copies of one MCU."""
    block = tl.arange(0, V * COPIES * H)
    row = mcu // columns % rows * V + block // (COPIES * H)
    return mcu // (rows * columns) + block * 0, row, mcu % columns * H + block % H, block >= 0


@triton.jit
def basis_pass(f):
    """Eight frequencies → eight samples, times sixteen: kernels.descent.integer_basis, transposed."""
    e0, e1 = (f[0] + f[4]) * C4, (f[0] - f[4]) * C4
    e2, e3 = f[2] * C2 + f[6] * C6, f[2] * C6 - f[6] * C2
    s0, s1, s2, s3 = e0 + e2, e1 + e3, e1 - e3, e0 - e2
    d0 = f[1] * C1 + f[3] * C3 + f[5] * C5 + f[7] * C7
    d1 = f[1] * C3 - f[3] * C7 - f[5] * C1 - f[7] * C5
    d2 = f[1] * C5 - f[3] * C1 + f[5] * C7 + f[7] * C3
    d3 = f[1] * C7 - f[3] * C5 + f[5] * C3 - f[7] * C1
    return s0 + d0, s1 + d1, s2 + d2, s3 + d3, s3 - d3, s2 - d2, s1 - d1, s0 - d0


@triton.jit
def pull(beyond, STRONGEST: tl.constexpr):
    """Excess of a component's coefficients → what one level more would make of it at each sample, to first order."""
    limited = ()
    for k in tl.static_range(8):
        limited = limited + ((tl.clamp(beyond[k], -STRONGEST, STRONGEST) * 2).to(tl.int32),)
    return basis_pass(transpose(basis_pass(limited)))


@triton.jit
def weigh(kind, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, ALL: tl.constexpr):
    """The weight of one component in a move's kind [B, 1]; int64."""
    channel = kind % 4
    weight = tl.where(channel == 0, RED, tl.where(channel == 1, GREEN, tl.where(channel == 2, BLUE, ALL)))
    return tl.where(kind < 4, weight, -weight).to(tl.int64)


@triton.jit
def rank(
    current, forbidden, kind, luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width,
    STRONGEST: tl.constexpr, NEAR: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """An octet of the moves' ranks, int32, their effects to first order; each copy has those of one kind [B, 1]."""
    image, row, column, valid = here
    red, green, blue = unpack_channels(current, C)
    y, cb, cr = integer_forward(red, green, blue, row, height, C, V, COPIES, H)
    ends = load_intervals(luma_plane, tables, here, rows, columns, height, width, 0, C, V, H)
    y = pull(excess(y, ends, NEAR), STRONGEST)
    if C == 3:
        ends = load_intervals(blue_plane, tables, there, rows, columns, height, width, 1, C, 1, 1)
        cb = pull(excess(cb, ends, NEAR), STRONGEST)
        ends = load_intervals(red_plane, tables, there, rows, columns, height, width, 2, C, 1, 1)
        cr = pull(excess(cr, ends, NEAR), STRONGEST)
    y, cb, cr = to_places(y, cb, cr, here, height, width, False, C, V, COPIES, H)
    exists = (column[:, None] * 8 + tl.arange(0, 8)[None, :] < width) & ((C == 3) | (kind % 4 == 0))
    end = tl.where(kind < 4, 255, 0)
    of_y = weigh(kind, Y_RED, Y_GREEN, Y_BLUE, Y_ALL)
    of_cb = weigh(kind, CB_RED, CB_GREEN, CB_BLUE, CB_ALL)
    of_cr = weigh(kind, CR_RED, CR_GREEN, CR_BLUE, CR_ALL)
    ranked = ()
    for k in tl.static_range(8):
        if C == 3:
            score = y[k] * of_y * (V * H) + cb[k] * of_cb + cr[k] * of_cr
        else:
            score = y[k] * tl.where(kind < 4, Y_ALL, -Y_ALL).to(tl.int64)
        r, g, b = red[k] == end, green[k] == end, blue[k] == end
        three = tl.where(kind % 4 == 2, b, r | g | b)
        stuck = tl.where(kind % 4 == 0, r, tl.where(kind % 4 == 1, g, three))
        banned = stuck | (((forbidden >> (4 * k)) & 15) != 0)
        score = tl.where(banned, IMPOSSIBLE, (score >> SHIFT).to(tl.int32))
        ranked = ranked + (tl.where(exists & (row * 8 + k < height)[:, None], score, NO_MOVE),)
    return ranked


@triton.jit
def numbers(kind, here, V: tl.constexpr, H: tl.constexpr):
    """[B, 8]: the numbers of the moves in an octet's first row, eight less than in the next."""
    image, row, column, valid = here
    return kind * (64 * V * H) + (row % V * H + column % H)[:, None] * 64 + tl.arange(0, 8)[None, :]


@triton.jit
def next_eight(ranked, last, first, V: tl.constexpr, H: tl.constexpr):
    """[8] int64: the moves that rank first after `last`, in order: their rank times the number of moves, plus their
    own number; NO_MOVE and beyond where there are no more."""
    copy, keys = tl.arange(0, COPIES), tl.full([COPIES], 0, tl.int64)
    for turn in range(COPIES):
        least = tl.full(first.shape, NO_MOVE, tl.int64) * (512 * V * H)
        for k in tl.static_range(8):
            key = ranked[k].to(tl.int64) * (512 * V * H) + (first + 8 * k)
            least = tl.minimum(least, tl.where(key > last, key, least))
        last = tl.min(least)
        keys = tl.where(copy == turn, last, keys)
    return keys


@triton.jit
def moved(current, number, here, height, width, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """The candidates after each copy's move [8], at all places that show its pixel; never beyond 0..255."""
    image, row, column, valid = here
    number = to_blocks(number, V, COPIES, H)
    kind, block, pixel = number // (64 * V * H), number % (64 * V * H) // 64, number % 64
    step, end = tl.where(kind < 4, 1, -1), tl.where(kind < 4, 255, 0)
    x = tl.minimum(column[:, None] * 8 + tl.arange(0, 8)[None, :], width - 1) - (column // H * H * 8)[:, None]
    across = x == block % H * 8 + pixel % 8
    octet = ()
    for k in tl.static_range(8):
        y = (source_row(row * 8 + k, height, V) - row // V * V * 8)[:, None]
        here_too, packed = across & (y == block // H * 8 + pixel // 8), current[k]
        for channel in tl.static_range(C):
            free = ((current[k] >> (8 * channel)) & 255) != end
            chosen = here_too & free & ((kind % 4 == channel) | (kind % 4 == 3))
            packed += tl.where(chosen, step << (8 * channel), 0)
        octet = octet + (packed,)
    return octet


@triton.jit
def try_moves(
    current, ranked, kind, tried, luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Of the `tried` moves that rank first, the one that leaves the least excess, the first of equals: its number, the
    wrong coefficients and the excess that it leaves."""
    image, row, column, valid = here
    copy = tl.arange(0, COPIES)
    last, done, best = tl.full([], -(1 << 62), tl.int64), 0, tl.full([], 0, tl.int32)
    fewest, least = tl.full([], 1e6, tl.float32), tl.full([], float("inf"), tl.float32)
    while done < tried:
        keys = next_eight(ranked, last, numbers(kind, here, V, H), V, H)
        last = tl.max(keys)
        number = (keys & (512 * V * H - 1)).to(tl.int32)
        red, green, blue = unpack_channels(moved(current, number, here, height, width, C, V, H), C)
        y, cb, cr = integer_forward(red, green, blue, row, height, C, V, COPIES, H)
        ends = load_intervals(luma_plane, tables, here, rows, columns, height, width, 0, C, V, H)
        beyond = excess(y, ends, 0.0)
        wrong, total = count_wrong(beyond, V, COPIES, H), sum_excess(beyond, V, COPIES, H)
        if C == 3:
            ends = load_intervals(blue_plane, tables, there, rows, columns, height, width, 1, C, 1, 1)
            beyond = excess(cb, ends, 0.0)
            wrong, total = wrong + count_wrong(beyond, 1, COPIES, 1), total + sum_excess(beyond, 1, COPIES, 1)
            ends = load_intervals(red_plane, tables, there, rows, columns, height, width, 2, C, 1, 1)
            beyond = excess(cr, ends, 0.0)
            wrong, total = wrong + count_wrong(beyond, 1, COPIES, 1), total + sum_excess(beyond, 1, COPIES, 1)
        total = tl.where((keys // (512 * V * H) < NO_MOVE) & (done + copy < tried), total, float("inf"))
        this = tl.min(total)
        chosen = copy == tl.min(tl.where(total == this, copy, COPIES))
        best = tl.where(this < least, tl.sum(tl.where(chosen, number, 0)), best)
        fewest = tl.where(this < least, tl.sum(tl.where(chosen, wrong, 0.0)), fewest)
        least = tl.minimum(this, least)
        done += COPIES
    return best, fewest, least


@triton.jit
def forbid(forbidden, number, first, TENURE: tl.constexpr):
    """[B, 8] int32, for how many more turns each move of an octet is forbidden, in four bits: one turn less, and one
    more move."""
    some = (forbidden | (forbidden >> 1) | (forbidden >> 2) | (forbidden >> 3)) & 0x11111111
    forbidden -= some
    all_bits, tenure = tl.full([1, 1], 15, tl.int32), tl.full([1, 1], TENURE, tl.int32)
    for k in tl.static_range(8):
        chosen = (forbidden & ~(all_bits << (4 * k))) | (tenure << (4 * k))
        forbidden = tl.where(first + 8 * k == number, chosen, forbidden)
    return forbidden


@triton.jit
def attempt(
    image8, mcu, fewest, tried, patience, luma_plane, blue_plane, red_plane, tables, rows, columns, height, width,
    TURNS: tl.constexpr, TENURE: tl.constexpr, STRONGEST: tl.constexpr, NEAR: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One attempt from what image8 holds; writes what is better, and returns how many coefficients are wrong in it."""
    here, there = copies(mcu, rows, columns, V, H), copies(mcu, rows, columns, 1, 1)
    image, row, column, valid = here
    kind = to_blocks(tl.arange(0, COPIES), V, COPIES, H)
    tl.debug_barrier()  # what other threads have written is read
    area = height.to(tl.int64) * width
    red, green, blue = load_rgb(image8, image, row, column, valid, height, width, C * area, area, width, 1, C, V)
    current = pack_channels(integers(red), integers(green), integers(blue), C)
    best = current
    forbidden = tl.zeros([V * COPIES * H, 8], tl.int32)
    least, stale, turn, count = tl.full([], float("inf"), tl.float32), tl.full([], 0, tl.int32), 0, fewest
    while (turn < TURNS * patience) & (stale < patience) & (count > 0):
        # as if they changed from turn to turn: all that follows from them would be kept in registers otherwise
        here, there = copies(mcu + (turn >> 30), rows, columns, V, H), copies(mcu + (turn >> 30), rows, columns, 1, 1)
        ranked = rank(
            current, forbidden, kind, luma_plane, blue_plane, red_plane, tables, here, there,
            rows, columns, height, width, STRONGEST, NEAR, C, V, H,
        )  # fmt: skip
        number, count, total = try_moves(
            current, ranked, kind, tried, luma_plane, blue_plane, red_plane, tables, here, there,
            rows, columns, height, width, C, V, H,
        )  # fmt: skip
        current = moved(current, tl.full([COPIES], number, tl.int32), here, height, width, C, V, H)
        undoing = (number + 256 * V * H) % (512 * V * H)
        forbidden = forbid(forbidden, undoing, numbers(kind, here, V, H), TENURE)
        best = choose(count < fewest, current, best)
        fewest = tl.minimum(count, fewest)
        stale = tl.where(total < least, 0, stale + 1)
        least = tl.minimum(total, least)
        turn += 1
    first = (image, row, column, tl.arange(0, V * COPIES * H) // H % COPIES == 0)
    store_packed(image8, best, first, height, width, C)
    return fewest


@triton.jit
def integers(x):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k].to(tl.int32),)
    return octet


@triton.jit
def descent_kernel(
    image8, mismatches, unsettled, wrongs, attempts, luma_plane, blue_plane, red_plane, tables,
    rows, columns, height, width,
    ATTEMPTS: tl.constexpr, TURNS: tl.constexpr, TENURE: tl.constexpr, STRONGEST: tl.constexpr, NEAR: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Mends the MCUs unsettled[1:], of which there are unsettled[0], in image8, and adds up what they have left wrong
    for each image. attempts: [ATTEMPTS, 3] int32, kernels.descent.ATTEMPTS."""
    for number in range(tl.program_id(0), tl.load(unsettled), tl.num_programs(0)):
        mcu = tl.load(unsettled + 1 + number)
        fewest = tl.load(wrongs + 1 + number).to(tl.float32)
        for turn in range(ATTEMPTS):
            tried, most = tl.load(attempts + 3 * turn), tl.load(attempts + 3 * turn + 1)
            if (fewest > 0) & (fewest <= most):
                fewest = attempt(
                    image8, mcu, fewest, tried, tl.load(attempts + 3 * turn + 2), luma_plane, blue_plane, red_plane,
                    tables, rows, columns, height, width,
                    TURNS, TENURE, STRONGEST, NEAR, C, V, H,
                )  # fmt: skip
        tl.atomic_add(mismatches + mcu // (rows * columns), fewest.to(tl.int32))


PROGRAMS = 16 if INTERPRETED else 1024
"""How many MCUs are mended side by side, at most."""

CONSTANTS = {"TURNS": TURNS, "TENURE": TENURE, "STRONGEST": STRONGEST, "NEAR": NEAR}
"""The CPU's own."""


@constant
def attempts_on(device: torch.device, attempts: tuple[tuple[int, int, int], ...]) -> Tensor:
    return torch.tensor(attempts, dtype=torch.int32).to(device)


def descend(
    image8: Tensor,
    mismatches: Tensor,
    unsettled: Tensor,
    wrongs: Tensor,
    file: tuple[Tensor, ...],
    sampling: Subsampling,
    size: tuple[int, int],
) -> None:
    """Mends `unsettled` MCUs of image8 [N, C, H, W], which the search by feedback has listed, in place."""
    attempts = attempts_on(image8.device, ATTEMPTS)
    vertical, horizontal = sampling.factors
    grid = (min(len(unsettled) - 1, PROGRAMS),)
    with on_device_of(image8):
        descent_kernel[grid](
            image8, mismatches, unsettled, wrongs, attempts, *file, *sampling.mcu_grid(size), *size,
            ATTEMPTS=len(attempts), C=sampling.components, V=vertical, H=horizontal, num_warps=8, **CONSTANTS,
        )  # fmt: skip
