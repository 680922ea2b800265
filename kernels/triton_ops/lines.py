"""A block with a single row or column of slots, or a single pair in each row: at the image's edges. One step moves many
coefficients far there, and often no other samples than the original's have the file's coefficients. The twin of
numba_ops/lines.py, which explains the search, to the bit.

Shapes as in samples.py, B blocks; along a line are 8 samples, [B, 8], those that there are first, or as many sums of
pairs. Their weights are [B, 8, 8] int64, by the sample and the frequency.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as constants
from kernels.triton_ops.samples import PAIRED, any_of, expand, halve, judge, load_base, pair_slots, total, transform

RADIUS = tl.constexpr(constants.RADIUS)


@triton.jit
def floor_divide(x, y):
    """int64, y above 0. Triton's own division rounds towards 0."""
    quotient = x // y
    return quotient - (quotient * y > x).to(tl.int64)


@triton.jit
def line_of(x, along_row):
    """[B, 8]: the first row of blocks `along_row` [B], the first column of the others."""
    at = tl.arange(0, 8)
    row = tl.sum(tl.where((at == 0)[None, :, None], x, 0), axis=1)
    return tl.where(along_row[:, None], row, tl.sum(tl.where((at == 0)[None, None, :], x, 0), axis=2))


@triton.jit
def at_level(x, level):
    """[B, 8] → [B]."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, :] == level[:, None], x, 0), axis=1)


@triton.jit
def every(condition):
    """[B, 8] → [B]."""
    return tl.min(condition.to(tl.int32), axis=1) > 0


@triton.jit
def limits_of_line(low, high, slots):
    """Between which limits [B, 8] the integer sums along lines lie; and [B] whether coefficients that no line has are
    0."""
    at, single, paired = tl.arange(0, 8), slots[0] == 1, slots[1] > PAIRED
    mine = (at == 0)[None, None, :] | (expand(paired) & (at & 1 == 1)[None, None, :])
    mine = tl.where(expand(single), (at == 0)[None, :, None], mine)
    possible = total(((low > 0) | (high < 0)) & (mine == 0)) == 0
    single, paired = single[:, None], paired[:, None]
    lowest, highest = line_of(low, slots[0] == 1).to(tl.int64), line_of(high, slots[0] == 1).to(tl.int64)
    twice = tl.where(paired, 2, 1)
    least = tl.where(single, (lowest + 1 >> 1 << 11) - 1024, twice * ((lowest << 10) - 512))
    most = tl.where(single, (highest >> 1 << 11) + 1023, twice * ((highest << 10) + 511))
    return least, most, possible


@triton.jit
def factor(weights, lengths):
    """The LDL decomposition of the squared distance from the box's middle: scales [B, 8] and shares [B, 8, 8]. lengths:
    [B, 8], of the box's sides."""
    at = tl.arange(0, 8)
    scaled = floor_divide(weights << 17, lengths[:, None, :])
    gram = tl.sum(scaled[:, :, None, :] * scaled[:, None, :, :], axis=3)
    scales, shares = tl.zeros_like(lengths), tl.zeros_like(gram)
    for i in range(8):
        n = 7 - i
        row = tl.sum(tl.where((at == n)[None, :, None], gram, 0), axis=1)
        scale = tl.maximum(tl.sum(tl.where((at == n)[None, :], row, 0), axis=1), 1)
        share = tl.where((at < n)[None, :], floor_divide(row << 16, scale[:, None]), 0)
        scales = tl.where((at == n)[None, :], scale[:, None], scales)
        shares = tl.where((at == n)[None, :, None], share[:, None, :], shares)
        gram -= share[:, :, None] * row[:, None, :] >> 16
    return scales, shares


@triton.jit
def put_line(samples, found, slots, PAIRS: tl.constexpr):
    """Samples with what has been found along lines, [B, 8]. PAIRS: whether there may be any."""
    at, single, paired = tl.arange(0, 8), expand(slots[0] == 1), expand(slots[1] > PAIRED)
    first = tl.where(single, (at == 0)[None, :, None], (at == 0)[None, None, :])
    first = first & (paired == 0) & (at[None, :, None] < expand(slots[0])) & (at[None, None, :] < expand(slots[1]))
    line = tl.where(single, found[:, None, :], found[:, :, None])
    samples = tl.where(first, line, samples)
    if PAIRS:
        evens, odds = pair_slots(slots)
        samples = halve(found, evens, odds, samples)
    return samples


@triton.jit
def search_line(samples, middle, least, most, sums, low, high, bases, slots, going, SETTINGS: tl.constexpr):
    """For blocks `going` [B]. Returns samples of which no coefficient is wrong, or those given; [B] which it is; and
    how many values [B] it tried. middle: of the intervals, sixteenths."""
    at, single, paired = tl.arange(0, 8), slots[0] == 1, slots[1] > PAIRED
    count = tl.where(paired, slots[0], slots[0] * slots[1])
    lowest, highest, possible = limits_of_line(low, high, slots)
    going &= possible & every(lowest <= highest)
    weights = tl.permute(load_base(bases, tl.where(single, slots[1], slots[0]), False), (1, 0, 2)).to(tl.int64)
    weights = tl.where((at[None, :] < count[:, None])[:, :, None], weights, 0)
    scales, shares = factor(weights, tl.maximum(highest - lowest + 1, 1))
    along_row = single & (paired == 0)
    centre, least, most = line_of(middle, along_row), line_of(least, along_row), line_of(most, along_row)
    if len(sums) > 0:
        second = tl.sum(tl.where((at == 1)[None, None, :], middle, 0), axis=2)
        centre += tl.where(paired[:, None], second, 0)
        least, most = tl.where(paired[:, None], sums[0], least), tl.where(paired[:, None], sums[1], most)
    centre = centre.to(tl.int64)
    pairs: tl.constexpr = len(sums) > 0
    level, nodes, solved = tl.zeros_like(count), tl.zeros_like(count), count < 0
    tried, found = tl.zeros_like(least), tl.zeros_like(centre)
    offset, distance = tl.zeros_like(centre), tl.zeros_like(centre)
    while any_of(going):
        here = (at[None, :] == level[:, None]) & going[:, None]
        n, goal = at_level(tried, level), at_level(centre - offset, level)
        nearest = goal + 8 >> 4
        side = tl.where(goal > 16 * nearest, 1, -1)
        value = nearest + side * tl.where(n % 2 == 1, (n + 1) // 2, -(n // 2))
        tried, found = tried + here.to(tl.int32), tl.where(here, value[:, None], found)
        nodes += going.to(tl.int32)
        far = 16 * value - goal
        reached = at_level(distance, level) + at_level(scales, level) * far * far
        near = going & (reached <= RADIUS)
        good = near & (value >= at_level(least, level)) & (value <= at_level(most, level))
        full = good & (level == count - 1)
        if any_of(full):
            line = tl.sum(weights * found[:, :, None], axis=1)
            full &= every((line >= lowest) & (line <= highest))
            judged = transform(put_line(samples, found.to(tl.int32), slots, pairs), bases, slots)[1]
            solved |= full & (judge(judged, low, high)[1] == 0)
        deeper = good & (level < count - 1)
        level += deeper.to(tl.int32) - (going & (near == 0)).to(tl.int32)
        going &= (solved == 0) & (level >= 0) & (nodes < SETTINGS.max_nodes)
        here = (at[None, :] == level[:, None]) & deeper[:, None]
        share = tl.sum(tl.where(here[:, :, None], shares, 0), axis=1)
        moved = tl.sum(share * (16 * found - centre), axis=1) >> 16
        tried, distance = tl.where(here, 0, tried), tl.where(here, reached[:, None], distance)
        offset = tl.where(here, moved[:, None], offset)
    return tl.where(expand(solved), put_line(samples, found.to(tl.int32), slots, pairs), samples), solved, nodes
