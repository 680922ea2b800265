"""One 8x8 block: libjpeg's integer DCT, the nearest point of the intervals, and the search for integers inside them.

A block over the image's edge repeats its last true row and column (libjpeg's own padding), so it has fewer unknowns:
`rows` x `columns` slots, the last of which stand for all places that repeat them. Its transforms are those of
`kernels.exact.edge_bases`; with 8 x 8 slots they are libjpeg's `islow`. Where places repeat *half* of a sum T, as
chroma's of 4:2:0 do, libjpeg has T >> 1 in even places and (T + 1) >> 1 in odd ones: the last two slots stand for
these, and go together; such `columns` count PAIRED more.

Shapes: samples are flat, [64] int32 by row, less 128; `wanted` ones are in sixteenths of a gray level. Intervals, low
and high [64] int32, are those of libjpeg's quantiser: the least and the largest value of 8 times the DCT, as it holds
it, that gives the file's coefficient. `work` is [WORK, 64] int32 for what lives no longer than a call.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64
from numpy.typing import NDArray

from kernels.exact import (
    BACK_TO_COLUMNS,
    BACK_TO_ROWS,
    INTO_COLUMNS,
    INTO_ROWS,
    MAX_DISTANCE,
    PAIRED,
    SearchSettings,
)
from kernels.numba_ops.compiler import jit

Ints = NDArray[np.int32]

WORK = 32
EXACT, ROUNDED, FOUND, BEST, FREE_FROM, COST_UP, COST_DOWN, STEP = range(8)
UP, DOWN, SUMS = 8, 16, 24
"""Rows of `work`; UP and DOWN are the first of eight. SUMS: the least of each row's sum of paired slots [8], and the
largest."""

SAFE_DISTANCE = 4
"""How far inside its interval a coefficient lies that no single step of a sample brings out, with 8 x 8 slots."""

NONE = 0x7FFFFFFF
"""In the place of a step's rank: it may not be taken."""


@jit
def along_rows(v: Ints, m: Ints, out: Ints) -> None:
    """out[r, k] = sum of v[r, c] m[c, k]; v and out flat."""
    for r in range(0, 64, 8):
        for k in range(8):
            out[r + k] = (v[r] * m[0, k] + v[r + 1] * m[1, k] + v[r + 2] * m[2, k] + v[r + 3] * m[3, k]) + (
                v[r + 4] * m[4, k] + v[r + 5] * m[5, k] + v[r + 6] * m[6, k] + v[r + 7] * m[7, k]
            )


@jit
def along_columns(v: Ints, m: Ints, out: Ints) -> None:
    """out[j, k] = sum of m[j, r] v[r, k]; v and out flat."""
    for j in range(8):
        for k in range(8):
            out[8 * j + k] = (m[j, 0] * v[k] + m[j, 1] * v[8 + k] + m[j, 2] * v[16 + k] + m[j, 3] * v[24 + k]) + (
                m[j, 4] * v[32 + k] + m[j, 5] * v[40 + k] + m[j, 6] * v[48 + k] + m[j, 7] * v[56 + k]
            )


@jit
def into_intervals(
    wanted: Ints, low: Ints, high: Ints, bases: Ints, rows: int, columns: int, margin: int, work: Ints
) -> bool:
    """Moves wanted samples to the nearest point of the intervals (of the slots there are: about the nearest), their
    ends drawn in by `margin` 128ths of the DCT's unit, or to the middle of narrow ones. Whether it has moved any."""
    first, second = work[EXACT], work[FOUND]
    along_rows(wanted, bases[INTO_COLUMNS, columns], first)
    for i in range(64):
        first[i] = int32(first[i] + int32(4096)) >> 13
    along_columns(first, bases[INTO_ROWS, rows], second)
    moved = 0
    for i in range(64):
        value = int32(second[i] + int32(4096)) >> 13  # 128 times the DCT
        middle = int32(8 * (low[i] + high[i]))
        half = max(int32(8 * (high[i] - low[i] + 1) - margin), int32(0))
        nearest = min(max(int32(value), int32(middle - half)), int32(middle + half))
        second[i] = min(max(int32(nearest - value + 4) >> 3, -15000), 15000)
        moved |= second[i]
    if moved == 0:
        return False
    along_rows(second, bases[BACK_TO_COLUMNS, columns], first)
    for i in range(64):
        first[i] = int32(first[i] + int32(16384)) >> 15
    along_columns(first, bases[BACK_TO_ROWS, rows], second)
    moved = 0
    for i in range(64):
        change = int32(second[i] + int32(8192)) >> 14
        wanted[i] += change
        moved |= change
    return moved != 0


@jit
def transform(samples: Ints, bases: Ints, rows: int, columns: int, work: Ints) -> None:
    """Samples → EXACT, their rows' frequencies, ROUNDED, as libjpeg rounds these, and FOUND, 2^15 times 8 times the
    DCT, not rounded."""
    exact, rounded = work[EXACT], work[ROUNDED]
    along_rows(samples, bases[INTO_COLUMNS, columns], exact)
    for i in range(64):
        rounded[i] = int32(exact[i] + int32(1024)) >> 11
    along_columns(rounded, bases[INTO_ROWS, rows], work[FOUND])


@jit
def judge(found: Ints, low: Ints, high: Ints) -> tuple[int, int]:
    """The sum of squared distances of coefficients, as `transform` has them, from their intervals; and how many are
    outside."""
    cost, wrong = int32(0), int32(0)
    for i in range(64):
        f = int32(int32(found[i] + int32(16384)) >> 15)
        far = min(max(int32(low[i] - f), int32(f - high[i]), int32(0)), int32(MAX_DISTANCE))
        cost = int32(cost + int32(far * far))
        wrong = int32(wrong + min(far, int32(1)))
    return cost, wrong


@jit
def measure_steps(low: Ints, high: Ints, spread: Ints, distance: int, work: Ints) -> None:
    """The cost after each step up and down, but for coefficients further inside their intervals than `distance`, which
    no step brings out. spread: [8, 64], INTO_ROWS with each row's number repeated along it."""
    up, down, found = work[UP : UP + 8], work[DOWN : DOWN + 8], work[FOUND]
    cost_up, cost_down = work[COST_UP], work[COST_DOWN]
    for p in range(64):
        cost_up[p] = 0
        cost_down[p] = 0
    for i in range(64):
        value, lowest, highest = int32(found[i] + int32(16384)), low[i], high[i]
        if value >> 15 >= lowest + distance and value >> 15 <= highest - distance:
            continue
        j, k = i >> 3, i & 7
        for p in range(64):
            f = int32(int32(value + int32(spread[j, p] * up[k, p])) >> 15)
            far = min(max(int32(lowest - f), int32(f - highest), int32(0)), int32(MAX_DISTANCE))
            cost_up[p] = int32(cost_up[p] + int32(far * far))
            f = int32(int32(value + int32(spread[j, p] * down[k, p])) >> 15)
            far = min(max(int32(lowest - f), int32(f - highest), int32(0)), int32(MAX_DISTANCE))
            cost_down[p] = int32(cost_down[p] + int32(far * far))


@jit
def best_step(samples: Ints, least: Ints, most: Ints, best_cost: int, turn: int, work: Ints) -> int:
    """The step that leaves the least cost, of those that may be taken: 0 to 63 up, 64 to 127 down; ties to the first.
    -1 where there is none."""
    cost_up, cost_down, free_from = work[COST_UP], work[COST_DOWN], work[FREE_FROM]
    rank = int32(NONE)
    for p in range(64):
        may = (samples[p] < most[p]) & ((free_from[p] <= turn) | (cost_up[p] < best_cost))
        rank = min(rank, int32(int32(cost_up[p] << 7) | p) if may else int32(NONE))
    for p in range(64):
        may = (samples[p] > least[p]) & ((free_from[p] <= turn) | (cost_down[p] < best_cost))
        rank = min(rank, int32(int32(cost_down[p] << 7) | (p + 64)) if may else int32(NONE))
    return -1 if rank == NONE else rank & 127


@jit
def take_step(samples: Ints, chosen: int, by_column: Ints, by_row: Ints, work: Ints) -> None:
    """Changes a sample by one, and what `transform` has made of it."""
    exact, rounded, found, step = work[EXACT], work[ROUNDED], work[FOUND], work[STEP]
    p, sign, taken = chosen & 63, 1 - (chosen >> 6) * 2, UP + (chosen >> 6) * (DOWN - UP)
    r, c = p >> 3, p & 7
    samples[p] += sign
    for k in range(8):
        step[k] = work[taken + k, p]
        exact[8 * r + k] += sign * by_column[c, k]
        rounded[8 * r + k] += step[k]
    for j in range(8):
        m = by_row[j, r]
        for k in range(8):
            found[8 * j + k] += m * step[k]


@jit
def weigh_row(r: int, by_column: Ints, work: Ints) -> None:
    """What a step up or down at each place of a row would add to the row's rounded frequencies."""
    exact, rounded = work[EXACT], work[ROUNDED]
    for k in range(8):
        base, now = int32(exact[8 * r + k] + int32(1024)), rounded[8 * r + k]
        for c in range(8):
            m = by_column[c, k]
            work[UP + k, 8 * r + c] = int32(int32(base + m) >> 11) - now
            work[DOWN + k, 8 * r + c] = int32(int32(base - m) >> 11) - now


@jit
def count_of(columns: int) -> int:
    """How many slots so many columns are, pairs or not."""
    return columns - PAIRED if columns > PAIRED else columns


@jit
def pair_slots(columns: int) -> tuple[int, int]:
    """Which of paired columns stand for T >> 1, and for (T + 1) >> 1."""
    first = columns - PAIRED - 2
    return first + (first & 1), first + 1 - (first & 1)


@jit
def halve(total: int, r: int, columns: int, samples: Ints) -> None:
    """Puts the halves of a sum into a row's paired slots."""
    even, odd = pair_slots(columns)
    samples[8 * r + even], samples[8 * r + odd] = total >> 1, (total + 1) >> 1


@jit
def bound_pairs(samples: Ints, least: Ints, most: Ints, rows: int, columns: int, work: Ints) -> None:
    """Lets paired slots take only those steps after which they still are the halves of one sum."""
    even, odd = pair_slots(columns)
    for r in range(rows):
        total = samples[8 * r + even] + samples[8 * r + odd]
        rise, fall = 8 * r + (even if total & 1 else odd), 8 * r + (odd if total & 1 else even)
        least[rise] = samples[rise]
        most[rise] = samples[rise] + int32(total < work[SUMS, 8 + r])
        least[fall] = samples[fall] - int32(total > work[SUMS, r])
        most[fall] = samples[fall]


@jit
def search(
    samples: Ints,
    least: Ints,
    most: Ints,
    low: Ints,
    high: Ints,
    bases: Ints,
    spread: Ints,
    rows: int,
    columns: int,
    turns: int,
    settings: SearchSettings,
    work: Ints,
) -> tuple[int, int]:
    """Mends samples, each within `least` and `most`, until libjpeg's DCT of them lies in the intervals: a tabu search
    by steps of one. spread: as `measure_steps` takes it. Paired slots have their bounds in SUMS of `work`. Returns how
    many coefficients are wrong at the best place found, where it leaves the samples, and how many turns it took, at
    most `turns`."""
    transform(samples, bases, rows, columns, work)
    best_cost, fewest = judge(work[FOUND], low, high)
    if fewest == 0 or turns == 0:
        return fewest, 0
    by_column, by_row = bases[INTO_COLUMNS, columns], bases[INTO_ROWS, rows]
    best, free_from = work[BEST], work[FREE_FROM]
    for p in range(64):
        best[p] = samples[p]
        free_from[p] = 0
    for r in range(8):
        weigh_row(r, by_column, work)
    distance = SAFE_DISTANCE if rows == 8 and columns == 8 else 1 << 20
    tenure = min(settings.tenure, rows * count_of(columns) // 4)
    turn, fresh = int64(0), int64(0)
    while fewest > 0 and turn < turns and turn - fresh < settings.max_stale_turns:
        if columns > PAIRED:
            bound_pairs(samples, least, most, rows, columns, work)
        measure_steps(low, high, spread, distance, work)
        chosen = best_step(samples, least, most, best_cost, turn, work)
        if chosen < 0:
            break
        turn += 1
        take_step(samples, chosen, by_column, by_row, work)
        weigh_row((chosen & 63) >> 3, by_column, work)
        free_from[chosen & 63] = turn + tenure
        cost, wrong = judge(work[FOUND], low, high)
        if cost < best_cost:
            best_cost, fewest, fresh = cost, wrong, turn
            for p in range(64):
                best[p] = samples[p]
    for p in range(64):
        samples[p] = best[p]
    return fewest, turn
