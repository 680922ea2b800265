"""The end of project_exact's search: MCUs with a few coefficients still wrong are mended one pixel at a time.
kernels/descent.py tells how; every number here is an integer, or half of one, and the same as there.

A program takes one MCU after another from a list, and works on eight copies of it (moves.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Subsampling
from kernels.descent import ATTEMPTS, NEAR, STRONGEST, TENURE, TURNS
from kernels.tables import constant
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.integer import integer_forward, to_blocks
from kernels.triton_ops.launch import ALL_REGISTERS, INTERPRETED, SIZES, Configuration, configured, on_device_of
from kernels.triton_ops.moves import COPIES, NO_MOVE, copies, forbid, moved, next_eight, numbers, rank
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


@triton.jit
def examine(
    packed, near, luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Excess of each component of the copies, over intervals drawn in by `near`; gray: luma's thrice."""
    image, row, column, valid = here
    red, green, blue = unpack_channels(packed, C)
    y, cb, cr = integer_forward(red, green, blue, row, height, C, V, COPIES, H)
    luma = excess(y, load_intervals(luma_plane, tables, here, rows, columns, height, width, 0, C, V, H), near)
    if C == 1:
        return luma, luma, luma
    else:
        blue = excess(cb, load_intervals(blue_plane, tables, there, rows, columns, height, width, 1, C, 1, 1), near)
        red = excess(cr, load_intervals(red_plane, tables, there, rows, columns, height, width, 2, C, 1, 1), near)
        return luma, blue, red


@triton.jit
def best_move(
    current, forbidden, kind, tried, mcu, luma_plane, blue_plane, red_plane, tables, rows, columns, height, width,
    STRONGEST: tl.constexpr, NEAR: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Of the `tried` moves that rank first, the one that leaves the least excess, the first of equals: its number, the
    wrong coefficients and the excess that it leaves. The first round examines `current` and ranks, each other tries
    eight moves: one loop, so that there is one examination to compile."""
    MOVES: tl.constexpr = 512 * V * H
    copy, none = tl.arange(0, COPIES), tl.full([V * COPIES * H, 8], NO_MOVE, tl.int32)
    ranked = (none, none, none, none, none, none, none, none)
    last, done, best = tl.full([], -(1 << 62), tl.int64), 0, tl.full([], 0, tl.int32)
    fewest, least = tl.full([], 1e6, tl.float32), tl.full([], float("inf"), tl.float32)
    while done < tried + COPIES:
        # as if they changed from round to round: all that follows from them would be kept in registers otherwise
        here, there = copies(mcu + (done >> 30), rows, columns, V, H), copies(mcu + (done >> 30), rows, columns, 1, 1)
        keys = next_eight(ranked, last, numbers(kind, here, V, H), V, H)
        usable = (keys // MOVES < NO_MOVE) & (done - COPIES + copy < tried)
        number = tl.where(usable, (keys & (MOVES - 1)).to(tl.int32), MOVES)
        beyond = examine(
            moved(current, number, here, height, width, C, V, H), tl.where(done == 0, NEAR, 0.0),
            luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width, C, V, H,
        )  # fmt: skip
        if done == 0:
            ranked = rank(current, beyond, forbidden, kind, here, height, width, STRONGEST, C, V, H)
        else:
            last = tl.max(keys)
        wrong, total = count_wrong(beyond[0], V, COPIES, H), sum_excess(beyond[0], V, COPIES, H)
        if C == 3:
            wrong += count_wrong(beyond[1], 1, COPIES, 1) + count_wrong(beyond[2], 1, COPIES, 1)
            total += sum_excess(beyond[1], 1, COPIES, 1) + sum_excess(beyond[2], 1, COPIES, 1)
        total = tl.where(usable, total, float("inf"))
        this = tl.min(total)
        chosen = copy == tl.min(tl.where(total == this, copy, COPIES))
        best = tl.where(this < least, tl.sum(tl.where(chosen, number, 0)), best)
        fewest = tl.where(this < least, tl.sum(tl.where(chosen, wrong, 0.0)), fewest)
        least = tl.minimum(this, least)
        done += COPIES
    return best, fewest, least


@triton.jit
def attempt(
    image8, mcu, fewest, tried, patience, luma_plane, blue_plane, red_plane, tables, rows, columns, height, width,
    TURNS: tl.constexpr, TENURE: tl.constexpr, STRONGEST: tl.constexpr, NEAR: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One attempt from what image8 holds; writes what is better, and returns how many coefficients are wrong in it."""
    here = copies(mcu, rows, columns, V, H)
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
        here = copies(mcu + (turn >> 30), rows, columns, V, H)  # as in best_move
        number, count, total = best_move(
            current, forbidden, kind, tried, mcu, luma_plane, blue_plane, red_plane, tables,
            rows, columns, height, width, STRONGEST, NEAR, C, V, H,
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


@configured(Configuration(0, 8, ALL_REGISTERS))
@triton.jit(do_not_specialize=SIZES)
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

CONSTANTS = {"ATTEMPTS": len(ATTEMPTS), "TURNS": TURNS, "TENURE": TENURE, "STRONGEST": STRONGEST, "NEAR": NEAR}
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
            C=sampling.components, V=vertical, H=horizontal, **CONSTANTS | {"ATTEMPTS": len(attempts)},
            **descent_kernel.configuration.options,
        )  # fmt: skip
