"""8x8 blocks of samples: libjpeg's integer DCT, the nearest point of the intervals, and the search for integers inside
them, many blocks side by side. The twin of numba_ops/samples.py, to the bit.

Blocks are [B, 8, 8] int32, for (block, row, column), samples less 128, wanted ones in sixteenths of a gray level.
Intervals, low and high [B, 8, 8] int32, are of 8 times the DCT. `slots` are two [B] int32: how many rows and columns of
a block are unknowns of its own, the last of which stand for all places that repeat it (kernels.exact.edge_bases);
columns whose last two are the halves of one sum count PAIRED more, and a block of padding has none. Where all blocks
are whole it is empty. `sums`, two [B, 8] int32, are the least and the largest sum of each row's pair; empty where
there are no pairs. Bases are [8, B, 8]: what is summed comes first, so that a thread holds all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as constants
from kernels.triton_ops.launch import INTERPRETED

INTO = tl.constexpr(constants.INTO_COLUMNS)
BACK_TO = tl.constexpr(constants.BACK_TO_COLUMNS)
MAX_DISTANCE = tl.constexpr(constants.MAX_DISTANCE)
PAIRED = tl.constexpr(constants.PAIRED)

AT_ONCE = 8 if INTERPRETED else 1
"""Columns of coefficients that `measure_steps` holds in registers. The interpreter's time goes into calls, whatever the
tensors' size."""

NONE = tl.constexpr(0x7FFFFFFF)
"""In the place of a step's rank: it may not be taken."""


@triton.jit
def any_of(condition):
    return tl.max(condition.to(tl.int32), axis=None) > 0


@triton.jit
def total(x):
    """[B, 8, 8] → [B]."""
    return tl.sum(tl.sum(x.to(tl.int32), axis=2), axis=1)


@triton.jit
def expand(x):
    """[B] → [B, 1, 1]."""
    return x[:, None, None]


@triton.jit
def count_of(columns):
    """How many slots so many columns are, pairs or not."""
    return tl.where(columns > PAIRED, columns - PAIRED, columns)


@triton.jit
def whole_of(slots):
    """[B]: which blocks have no edge; [1] where all are whole."""
    if len(slots) == 0:
        return tl.full([1], 1, tl.int1)
    else:
        return (slots[0] == 8) & (slots[1] == 8)


@triton.jit
def some_slots(slots):
    """[B]: which blocks are no padding; [1] where all are whole."""
    if len(slots) == 0:
        return tl.full([1], 1, tl.int1)
    else:
        return slots[0] * slots[1] > 0


@triton.jit
def inside_slots(slots):
    """[B, 8, 8]: which places are slots; [1, 8, 8] where all are."""
    if len(slots) == 0:
        return tl.full([1, 8, 8], 1, tl.int1)
    else:
        at = tl.arange(0, 8)
        return (at[None, :, None] < expand(slots[0])) & (at[None, None, :] < expand(count_of(slots[1])))


@triton.jit
def load_base(bases, count, BACK: tl.constexpr):
    """[8, B, 8], for `count` [B] slots along an axis: [slot, block, frequency], or BACK, [frequency, block, slot]. Rows
    and columns share them: the bases of one are the other's, transposed."""
    kind: tl.constexpr = (BACK_TO if BACK else INTO) * (2 * PAIRED + 1)
    at = tl.arange(0, 8)
    return tl.load(bases + (((count + kind) * 64)[None, :, None] + 8 * at[:, None, None] + at[None, None, :]))


@triton.jit
def load_basis(bases, slots, AXIS: tl.constexpr, BACK: tl.constexpr):
    """The same for the slots along rows (AXIS 0) or columns (1); [8, 1, 8] where all blocks are whole."""
    if len(slots) == 0:
        return load_base(bases, tl.full([1], 8, tl.int32), BACK)
    else:
        return load_base(bases, slots[AXIS], BACK)


@triton.jit
def along_rows(v, m):
    """Sums of v[b, r, c] m[c, b, k] over c: [B, r, k]."""
    return tl.sum(tl.permute(v, (2, 0, 1))[:, :, :, None] * m[:, :, None, :], axis=0)


@triton.jit
def along_columns(v, m):
    """Sums of m[r, b, j] v[b, r, k] over r: [B, j, k]."""
    return tl.sum(m[:, :, :, None] * tl.permute(v, (1, 0, 2))[:, :, None, :], axis=0)


@triton.jit
def into_intervals(wanted, low, high, bases, slots, margin):
    """Wanted samples moved to the nearest point of the intervals (of the slots there are: about the nearest), their
    ends drawn in by `margin` 128ths of the DCT's unit, or to the middle of narrow ones."""
    value = along_rows(wanted, load_basis(bases, slots, 1, False)) + 4096 >> 13
    value = along_columns(value, load_basis(bases, slots, 0, False)) + 4096 >> 13  # 128 times the DCT
    middle, half = 8 * (low + high), tl.maximum(8 * (high - low + 1) - margin, 0)
    change = tl.minimum(tl.maximum(value, middle - half), middle + half) - value + 4 >> 3
    change = tl.minimum(tl.maximum(change, -15000), 15000)
    change = along_rows(change, load_basis(bases, slots, 1, True)) + 16384 >> 15
    change = along_columns(change, load_basis(bases, slots, 0, True)) + 8192 >> 14
    return wanted + change


@triton.jit
def transform(samples, bases, slots):
    """Samples → their rows' frequencies, and 2^15 times 8 times the DCT, not rounded but between the passes, as libjpeg
    does."""
    exact = along_rows(samples, load_basis(bases, slots, 1, False))
    return exact, along_columns(exact + 1024 >> 11, load_basis(bases, slots, 0, False))


@triton.jit
def excess(found, low, high):
    """How far beyond its interval a coefficient is, as `transform` has it."""
    found = found + 16384 >> 15
    return tl.minimum(tl.maximum(tl.maximum(low - found, found - high), 0), MAX_DISTANCE)


@triton.jit
def judge(found, low, high):
    """[B] each: the sum of squared distances from the intervals, and how many coefficients are outside."""
    far = excess(found, low, high)
    return total(far * far), total(tl.minimum(far, 1))


@triton.jit
def columns(x, first, COLUMNS: tl.constexpr):
    """Columns `first` to `first` + COLUMNS of [B, 8, 8] → [B, 8, COLUMNS]."""
    groups: tl.constexpr = 8 // COLUMNS
    x = tl.reshape(x, [x.shape[0], 8, groups, COLUMNS])
    return tl.sum(tl.where((tl.arange(0, groups) * COLUMNS == first)[:, None], x, 0), axis=2)


@triton.jit
def by_frequency(x, first, COLUMNS: tl.constexpr):
    """The same → [8, COLUMNS, B, 1, 1]."""
    return tl.permute(columns(x, first, COLUMNS), (1, 2, 0))[:, :, :, None, None]


@triton.jit
def measure_steps(exact, found, low, high, bases, slots, turn, COLUMNS: tl.constexpr = AT_ONCE):
    """The cost after each step up, and down: [B, 8, 8] each, by the sample. Coefficients [row, column] frequency come
    first: a thread has all those of a column. turn: [B], of a search."""
    at, some = tl.arange(0, 8), tl.arange(0, COLUMNS)
    spread = tl.permute(load_basis(bases, slots, 0, False), (2, 1, 0))[:, None, :, :, None]
    count = tl.full([1], 8, tl.int32) if len(slots) == 0 else slots[1]
    kind: tl.constexpr = INTO * (2 * PAIRED + 1)
    weights = ((count + kind) * 64)[None, :, None] + 8 * at[None, None, :] + some[:, None, None]
    up, down = exact * 0, exact * 0
    end = 8 + tl.minimum(tl.max(turn, axis=0), 0)  # no constant, or the assembler would unroll the loop
    for first in range(0, end, COLUMNS):
        weight = tl.load(bases + (weights + first))[:, :, None, :]
        base = tl.permute(columns(exact, first, COLUMNS), (2, 0, 1))[:, :, :, None] + 1024
        now = base >> 11
        rise, fall = (base + weight >> 11) - now, (base - weight >> 11) - now
        value = by_frequency(found, first, COLUMNS)
        lowest, highest = by_frequency(low, first, COLUMNS), by_frequency(high, first, COLUMNS)
        far = excess(value + spread * rise[None], lowest, highest)
        up += tl.sum(tl.sum(far * far, axis=0), axis=0)
        far = excess(value + spread * fall[None], lowest, highest)
        down += tl.sum(tl.sum(far * far, axis=0), axis=0)
    return up, down


@triton.jit
def places():
    """[1, 8, 8]: 0 to 63."""
    return 8 * tl.arange(0, 8)[None, :, None] + tl.arange(0, 8)[None, None, :]


@triton.jit
def best_step(samples, least, most, up, down, free, enough):
    """[B]: the rank, 128 cost + step, of the step that leaves the least cost, of those that may be taken: 0 to 63 up,
    64 to 127 down; ties to the first. Samples that are not free only where the cost falls below `enough` [B]."""
    may = (samples < most) & (free | (up < expand(enough)))
    rank = tl.where(may, up * 128 + places(), NONE)
    may = (samples > least) & (free | (down < expand(enough)))
    rank = tl.minimum(rank, tl.where(may, down * 128 + places() + 64, NONE))
    return tl.min(tl.min(rank, axis=2), axis=1)


@triton.jit
def pair_slots(slots):
    """[B, 8, 8] each: which places stand for T >> 1, and which for (T + 1) >> 1, of a sum T."""
    first = slots[1] - PAIRED - 2
    at = tl.arange(0, 8)
    paired = expand(slots[1] > PAIRED) & (at[None, :, None] < expand(slots[0]))
    even, odd = expand(first + (first & 1)), expand(first + 1 - (first & 1))
    return paired & (at[None, None, :] == even), paired & (at[None, None, :] == odd)


@triton.jit
def pair_sums(samples, evens, odds):
    """[B, 8]."""
    return tl.sum(tl.where(evens | odds, samples, 0), axis=2)


@triton.jit
def halve(sums, evens, odds, samples):
    """Samples with the halves of rows' sums [B, 8] in their paired slots."""
    samples = tl.where(evens, (sums >> 1)[:, :, None], samples)
    return tl.where(odds, (sums + 1 >> 1)[:, :, None], samples)


@triton.jit
def bound_pairs(samples, least, most, sums, slots):
    """Least and most that let paired slots take only those steps after which they still are the halves of one sum."""
    evens, odds = pair_slots(slots)
    now = pair_sums(samples, evens, odds)
    rising = evens == ((now & 1) == 1)[:, :, None]
    up, down = (now < sums[1])[:, :, None] & rising, (now > sums[0])[:, :, None] & (rising == 0)
    paired = evens | odds
    return tl.where(paired, samples - down.to(tl.int32), least), tl.where(paired, samples + up.to(tl.int32), most)


@triton.jit
def search(samples, least, most, sums, low, high, bases, slots, going, SETTINGS: tl.constexpr):
    """Mends the samples of blocks `going` [B], each within `least` and `most`, until libjpeg's DCT of them lies in the
    intervals: a tabu search by steps of one. Returns the samples at the best place found, how many coefficients [B] are
    wrong there, and how many turns [B] it took."""
    exact, found = transform(samples, bases, slots)
    best_cost, fewest = judge(found, low, high)
    going &= fewest > 0
    best, free_from = samples, tl.zeros_like(samples)
    turn, fresh = tl.zeros_like(fewest), tl.zeros_like(fewest)
    tenure = turn + SETTINGS.tenure
    if len(slots) > 0:
        tenure = tl.minimum(tenure, slots[0] * count_of(slots[1]) // 4)
    while any_of(going):
        up, down = measure_steps(exact, found, low, high, bases, slots, turn)
        lowest, highest = least, most
        if len(sums) > 0:
            lowest, highest = bound_pairs(samples, least, most, sums, slots)
        rank = best_step(samples, lowest, highest, up, down, free_from <= expand(turn), best_cost)
        going &= rank != NONE
        turn += going.to(tl.int32)
        moved = expand(going) & (places() == expand(rank & 63))
        samples += tl.where(moved, expand(1 - (rank >> 6 & 1) * 2), 0)
        free_from = tl.where(moved, expand(turn + tenure), free_from)
        exact, found = transform(samples, bases, slots)
        cost, wrong = judge(found, low, high)
        better = going & (cost < best_cost)
        best_cost, fewest = tl.where(better, cost, best_cost), tl.where(better, wrong, fewest)
        fresh, best = tl.where(better, turn, fresh), tl.where(expand(better), samples, best)
        going &= (fewest > 0) & (turn < SETTINGS.max_turns) & (turn - fresh < SETTINGS.max_stale_turns)
    return best, fewest, turn
