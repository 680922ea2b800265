"""Single moves, one channel of one pixel or all three, one gray level up or down: their ranks, and their execution.
kernels/descent.py tells what a rank is; every number here is an integer, and the same as there.

A program works on eight copies of an MCU, which stand where other kernels have eight MCUs. They try different moves,
and each ranks one kind of move: red, green, blue or all three up, and the same down. A move's number is its kind times
the pixels of an MCU plus the pixel's place, block after block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.descent import COSINES, LOWEST_BIT, WEIGHTS
from kernels.triton_ops.blocks import source_row, transpose
from kernels.triton_ops.folding import to_places
from kernels.triton_ops.integer import to_blocks
from kernels.triton_ops.search import unpack_channels

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
    current, beyond, forbidden, kind, here, height, width,
    STRONGEST: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """An octet of the moves' ranks, int32: how much worse each makes what is `beyond` the intervals, to first order."""
    image, row, column, valid = here
    red, green, blue = unpack_channels(current, C)
    y = pull(beyond[0], STRONGEST)
    cb, cr = y, y
    if C == 3:
        cb, cr = pull(beyond[1], STRONGEST), pull(beyond[2], STRONGEST)
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
    """The candidates after each copy's move [8], at all places that show its pixel; never beyond 0..255. A number that
    is too large is no move."""
    image, row, column, valid = here
    number = to_blocks(number, V, COPIES, H)
    kind, block, pixel = number // (64 * V * H), number % (64 * V * H) // 64, number % 64
    step, end = tl.where(kind < 4, 1, -1), tl.where(kind < 4, 255, 0)
    x = tl.minimum(column[:, None] * 8 + tl.arange(0, 8)[None, :], width - 1) - (column // H * H * 8)[:, None]
    across = (kind < 8) & (x == block % H * 8 + pixel % 8)
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
