"""8x8 blocks of samples: libjpeg's integer DCT, the nearest point of the intervals, and the search for integers inside
them, many blocks side by side. The twin of numba_ops/block.py, to the bit.

Blocks are [B, 8, 8] int32, for (block, row, column), samples less 128, wanted ones in sixteenths of a gray level.
Intervals, low and high [B, 8, 8] int32, are of 8 times the DCT. `slots` are two [B] int32: how many rows and columns of
a block are unknowns of its own, the last of which stand for all places that repeat it (kernels.exact.edge_bases); a
block of padding has none. Bases are [8, B, 8]: what is summed comes first, so that a thread holds all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as settings
from kernels.triton_ops.launch import INTERPRETED

INTO = tl.constexpr(settings.INTO_COLUMNS)
BACK_TO = tl.constexpr(settings.BACK_TO_COLUMNS)
CAPPED = tl.constexpr(settings.CAPPED)
TURNS = tl.constexpr(settings.TURNS)
STALE = tl.constexpr(settings.STALE)
TENURE = tl.constexpr(settings.TENURE)
LINE_TURNS = tl.constexpr(settings.LINE_TURNS)
SIDEWAYS = tl.constexpr(settings.SIDEWAYS)
NODES = tl.constexpr(settings.NODES)
EDGE_PASSES = tl.constexpr(settings.EDGE_PASSES)
TO_THE_MIDDLE = tl.constexpr(settings.TO_THE_MIDDLE)
HELD = tl.constexpr(settings.HELD)

AT_ONCE = tl.constexpr(8 if INTERPRETED else 1)
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
def inside_slots(slots):
    """[B, 8, 8]: which places are slots."""
    at = tl.arange(0, 8)
    return (at[None, :, None] < expand(slots[0])) & (at[None, None, :] < expand(slots[1]))


@triton.jit
def load_basis(bases, count, BACK: tl.constexpr):
    """[8, B, 8], for `count` [B] slots along an axis: [slot, block, frequency], or BACK, [frequency, block, slot]. Rows
    and columns share them: the bases of one are the other's, transposed."""
    kind: tl.constexpr = BACK_TO if BACK else INTO
    at = tl.arange(0, 8)
    return tl.load(bases + ((count + 9 * kind) * 64)[None, :, None] + 8 * at[:, None, None] + at[None, None, :])


@triton.jit
def along_rows(v, m):
    """Sums of v[b, r, c] m[c, b, k] over c: [B, r, k]."""
    return tl.sum(tl.permute(v, (2, 0, 1))[:, :, :, None] * m[:, :, None, :], axis=0)


@triton.jit
def along_columns(v, m):
    """Sums of m[r, b, j] v[b, r, k] over r: [B, j, k]."""
    return tl.sum(m[:, :, :, None] * tl.permute(v, (1, 0, 2))[:, :, None, :], axis=0)


@triton.jit
def into_intervals(wanted, low, high, bases, slots, draw):
    """Wanted samples moved to the nearest point of the intervals (of the slots there are: about the nearest), their
    ends drawn in by `draw` 128ths of the DCT's unit, or to the middle of narrow ones."""
    value = along_rows(wanted, load_basis(bases, slots[1], False)) + 4096 >> 13
    value = along_columns(value, load_basis(bases, slots[0], False)) + 4096 >> 13  # 128 times the DCT
    middle, half = 8 * (low + high), tl.maximum(8 * (high - low + 1) - draw, 0)
    change = tl.minimum(tl.maximum(value, middle - half), middle + half) - value + 4 >> 3
    change = tl.minimum(tl.maximum(change, -15000), 15000)
    change = along_rows(change, load_basis(bases, slots[1], True)) + 16384 >> 15
    change = along_columns(change, load_basis(bases, slots[0], True)) + 8192 >> 14
    return wanted + change


@triton.jit
def transform(samples, bases, slots):
    """Samples → their rows' frequencies, and 2^15 times 8 times the DCT, not rounded but between the passes, as libjpeg
    does."""
    exact = along_rows(samples, load_basis(bases, slots[1], False))
    return exact, along_columns(exact + 1024 >> 11, load_basis(bases, slots[0], False))


@triton.jit
def excess(found, low, high):
    """How far beyond its interval a coefficient is, as `transform` has it."""
    found = found + 16384 >> 15
    return tl.minimum(tl.maximum(tl.maximum(low - found, found - high), 0), CAPPED)


@triton.jit
def judge(found, low, high):
    """[B] each: the sum of squared distances from the intervals, and how many coefficients are outside."""
    far = excess(found, low, high)
    return total(far * far), total(tl.minimum(far, 1))


@triton.jit
def columns(x, first):
    """Columns `first` to `first` + AT_ONCE of [B, 8, 8] → [B, 8, AT_ONCE]."""
    groups: tl.constexpr = 8 // AT_ONCE
    x = tl.reshape(x, [x.shape[0], 8, groups, AT_ONCE])
    return tl.sum(tl.where((tl.arange(0, groups) * AT_ONCE == first)[:, None], x, 0), axis=2)


@triton.jit
def by_frequency(x, first):
    """The same → [8, AT_ONCE, B, 1, 1]."""
    return tl.permute(columns(x, first), (1, 2, 0))[:, :, :, None, None]


@triton.jit
def measure_steps(exact, found, low, high, bases, slots):
    """The cost after each step up, and down: [B, 8, 8] each, by the sample. Coefficients [row, column] frequency come
    first: a thread has all those of a column."""
    at, some = tl.arange(0, 8), tl.arange(0, AT_ONCE)
    spread = tl.permute(load_basis(bases, slots[0], False), (2, 1, 0))[:, None, :, :, None]
    weights = bases + ((slots[1] + 9 * INTO) * 64)[None, :, None] + 8 * at[None, None, :] + some[:, None, None]
    up, down = exact * 0, exact * 0
    end = 8 + tl.minimum(tl.max(slots[0], axis=0), 0)  # no constant, or the assembler would unroll the loop
    for first in range(0, end, AT_ONCE):
        weight = tl.load(weights + first)[:, :, None, :]
        base = tl.permute(columns(exact, first), (2, 0, 1))[:, :, :, None] + 1024
        now = base >> 11
        rise, fall = (base + weight >> 11) - now, (base - weight >> 11) - now
        value, lowest, highest = by_frequency(found, first), by_frequency(low, first), by_frequency(high, first)
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
def search(samples, least, most, low, high, bases, slots, going):
    """Mends the samples of blocks `going` [B], each within `least` and `most`, until libjpeg's DCT of them lies in the
    intervals: a tabu search by steps of one. Returns the samples at the best place found, how many coefficients [B] are
    wrong there, and how many turns [B] it took."""
    exact, found = transform(samples, bases, slots)
    best_cost, fewest = judge(found, low, high)
    going &= fewest > 0
    best, free_from = samples, tl.zeros_like(samples)
    tenure = tl.minimum(TENURE, slots[0] * slots[1] // 4)
    turn, fresh = tl.zeros_like(fewest), tl.zeros_like(fewest)
    while any_of(going):
        up, down = measure_steps(exact, found, low, high, bases, slots)
        rank = best_step(samples, least, most, up, down, free_from <= expand(turn), best_cost)
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
        going &= (fewest > 0) & (turn < TURNS) & (turn - fresh < STALE)
    return best, fewest, turn


@triton.jit
def line_of(x, lying):
    """[B, 8]: the first row of blocks `lying` [B], the first column of the others."""
    at = tl.arange(0, 8)
    row = tl.sum(tl.where((at == 0)[None, :, None], x, 0), axis=1)
    return tl.where(lying[:, None], row, tl.sum(tl.where((at == 0)[None, None, :], x, 0), axis=2))


@triton.jit
def at_level(x, level):
    """[B, 8] → [B]."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, :] == level[:, None], x, 0), axis=1)


@triton.jit
def search_line(samples, middle, least, most, low, high, bases, slots, going):
    """For blocks of a single row or column of slots, those `going` [B], where one step moves many coefficients far. The
    DCT is one of a line, and what libjpeg makes of it is in the intervals where integer sums of the samples are within
    limits. All integers up to SIDEWAYS from the intervals' middle, sixteenths, are tried, nearer ones first, but for
    those whose rest cannot reach the limits (as in sphere decoding: Fincke and Pohst 1985, in Schnorr and Euchner's
    order); at most NODES are. Returns samples of which no coefficient is wrong, or those given; and [B] which it is."""
    at = tl.arange(0, 8)
    lying = slots[0] == 1
    first = tl.where(expand(lying), (at == 0)[None, :, None], (at == 0)[None, None, :])
    going &= total(((low > 0) | (high < 0)) & (first == 0)) == 0  # all others are 0
    shift = tl.where(lying, 11, 10)[:, None]
    lowest, highest = line_of(low, lying).to(tl.int64), line_of(high, lying).to(tl.int64)
    lowest = tl.where(lying[:, None], lowest + 1 >> 1, lowest)  # of a row's line, twice the rounded frequency
    highest = tl.where(lying[:, None], highest >> 1, highest)
    half = tl.where(lying, 1024, 512)[:, None]
    lowest, highest = 16 * ((lowest << shift) - half), 16 * ((highest << shift) + half - 1)
    middle, least, most = line_of(middle, lying), line_of(least, lying), line_of(most, lying)
    count = slots[0] * slots[1]
    weights = load_basis(bases, tl.maximum(slots[0], slots[1]), False).to(tl.int64)
    start = tl.sum(weights * tl.permute(middle, (1, 0))[:, :, None], axis=0)
    level, nodes = tl.zeros_like(count), tl.zeros_like(count)
    tried, values, solved = tl.zeros_like(middle), tl.zeros_like(middle), going & (count < 0)
    while any_of(going):
        here = at[None, :] == level[:, None]
        n, centre = at_level(tried, level), at_level(middle, level)
        tried += (here & going[:, None]).to(tl.int32)
        over = n > 2 * SIDEWAYS
        nearest = centre + 8 >> 4
        side = tl.where(centre > 16 * nearest, 1, -1)
        value = nearest + side * tl.where(n % 2 == 1, (n + 1) // 2, -(n // 2))
        possible = going & (over == 0)
        nodes += possible.to(tl.int32)
        values = tl.where(here & possible[:, None], value[:, None], values)
        decided = tl.permute(at[None, :] <= level[:, None], (1, 0))[:, :, None]
        offset = tl.permute(16 * values - middle, (1, 0))[:, :, None]
        sums = start + tl.sum(tl.where(decided, weights * offset, 0), axis=0)
        rest = tl.sum(tl.where(decided, 0, tl.abs(weights) * (16 * SIDEWAYS + 8)), axis=0)
        out = (sums - rest > highest) | (sums + rest < lowest)
        possible &= (value >= at_level(least, level)) & (value <= at_level(most, level))
        possible &= tl.max(out.to(tl.int32), axis=1) == 0
        level += possible.to(tl.int32) - (going & over).to(tl.int32)
        tried = tl.where(possible[:, None] & (at[None, :] == level[:, None]), 0, tried)
        solved |= possible & (level == count)
        going &= (solved == 0) & (level >= 0) & (nodes < NODES)
    within = first & inside_slots(slots) & expand(solved)
    found = tl.where(expand(lying), values[:, None, :], values[:, :, None])
    return tl.where(within, found, samples), solved


@triton.jit
def solve(wanted, least, most, low, high, bases, slots, draw):
    """Wanted samples → integers within `least` and `most` whose coefficients lie in the intervals. Returns them, how
    many coefficients [B] are wrong, and the turns [B] taken."""
    count = slots[0] * slots[1]
    passes = tl.where(any_of((count > 0) & (count < 64)), EDGE_PASSES, 1)
    for n in range(passes):
        nearer = into_intervals(wanted, low, high, bases, slots, draw)
        wanted = tl.where((n == 0) | expand(count < 64), nearer, wanted)
    rounded = wanted + 8 >> 4
    samples = tl.minimum(tl.maximum(rounded, least), most)
    held = total(tl.abs(rounded - samples))
    samples, missed, turns = search(samples, least, most, low, high, bases, slots, (count > 0) & (held <= HELD))
    missed = tl.where(count > 0, missed, 0)
    line = (missed > 0) & (tl.minimum(slots[0], slots[1]) == 1)
    if any_of(line):
        middle = into_intervals(wanted, low, high, bases, slots, TO_THE_MIDDLE)
        samples, solved = search_line(samples, middle, least, most, low, high, bases, slots, line)
        missed, turns = tl.where(solved, 0, missed), turns + tl.where(line, LINE_TURNS, 0)
    return samples, missed, turns
