"""MCUs plane by plane: the blocks of one plane are settled, and bound the values of the next, as every pixel has to
stay in the gamut. The twin of numba_ops/planes.py, to the bit.

Shapes as in samples.py and mcus.py: G MCUs, B blocks, slots and samples [B, 8, 8], pixels [G, 8, 8, M].
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as constants
from kernels.triton_ops.chroma import average, bound_slots, spread_chroma
from kernels.triton_ops.gamut import bound_chroma, bound_luma, to_ycc
from kernels.triton_ops.lines import search_line
from kernels.triton_ops.mcus import (
    both_twice,
    chroma_slots,
    from_blocks,
    inside_image,
    luma_slots,
    nothing,
    once,
    pair,
    per_mcu,
    per_pixel,
    shifted,
    to_blocks,
    twice,
    unpair,
)
from kernels.triton_ops.samples import (
    PAIRED,
    any_of,
    expand,
    halve,
    inside_slots,
    into_intervals,
    pair_slots,
    pair_sums,
    search,
    some_slots,
    total,
    whole_of,
)

WHOLE_INTERVAL = tl.constexpr(constants.WHOLE_INTERVAL)
CHROMA_FIRST = tl.constexpr(constants.CHROMA_FIRST)
BLUE_SECOND = tl.constexpr(constants.BLUE_SECOND)


@triton.jit
def sum_pixels(x):
    """[G, 8, 8, M] → [G]."""
    return tl.sum(tl.reshape(x.to(tl.int32), [x.shape[0], 64 * x.shape[3]]), axis=1)


@triton.jit
def some(condition, TIMES: tl.constexpr):
    """[G TIMES] → [G], whether it holds for any block of an MCU."""
    return per_mcu(condition.to(tl.int32), TIMES) > 0


@triton.jit
def bring_near(wanted, low, high, bases, slots, margin, going, SETTINGS: tl.constexpr):
    """`into_intervals` of blocks `going` [B]: once, or at edges until nothing moves."""
    if len(slots) == 0:
        return into_intervals(wanted, low, high, bases, slots, margin)
    else:
        moving, done = going, 0
        while any_of(moving) & (done < SETTINGS.edge_projections):
            nearer = into_intervals(wanted, low, high, bases, slots, margin)
            moved = moving & (total(nearer != wanted) > 0)
            wanted = tl.where(expand(moving), nearer, wanted)
            moving = moved & (whole_of(slots) == 0)
            done += 1
        return wanted


@triton.jit
def round_pairs(wanted, samples, sums, slots, rows):
    """Samples with the rounded sums of paired slots, and the sums' bounds. One that stands for a single pixel twice, in
    the last of an odd number of rows, stays as it is from then on. rows: true ones of the blocks' MCUs, [B]."""
    evens, odds = pair_slots(slots)
    rounded = tl.minimum(tl.maximum(pair_sums(wanted, evens, odds) + 8 >> 4, sums[0]), sums[1])
    single = 2 * tl.arange(0, 8)[None, :] + 1 == rows[:, None]
    rounded = tl.where(single, rounded & -2, rounded)
    sums = tl.where(single, rounded, sums[0]), tl.where(single, rounded, sums[1])
    return halve(rounded, evens, odds, samples), sums


@triton.jit
def settle(wanted, least, most, sums, low, high, bases, slots, size, margin, going, SETTINGS: tl.constexpr):
    """Wanted samples of blocks `going` [B] → integers within `least` and `most` whose coefficients lie in the
    intervals. size: of the blocks' MCUs, [B] each; needed only with sums. Returns the samples, how many coefficients
    [B] are wrong, and the turns [B] taken."""
    wanted = bring_near(wanted, low, high, bases, slots, margin, going, SETTINGS)
    rounded = wanted + 8 >> 4
    samples = tl.minimum(tl.maximum(rounded, least), most)
    held = total(tl.abs(rounded - samples))
    if len(sums) > 0:
        samples, sums = round_pairs(wanted, samples, sums, slots, size[0])
    searched = going & (held <= SETTINGS.max_clipping)
    samples, missed, turns = search(samples, least, most, sums, low, high, bases, slots, searched, SETTINGS)
    missed = tl.where(going, missed, 0)
    if len(slots) > 0:
        line = (missed > 0) & ((tl.minimum(slots[0], slots[1]) == 1) | (slots[1] == PAIRED + 2))
        if any_of(line):
            middle = into_intervals(wanted, low, high, bases, slots, WHOLE_INTERVAL)
            samples, solved, nodes = search_line(
                samples, middle, least, most, sums, low, high, bases, slots, line, SETTINGS
            )
            missed, turns = tl.where(solved, 0, missed), turns + nodes // SETTINGS.nodes_per_turn
    return samples, missed, turns


@triton.jit
def touches(samples, least, most, slots):
    """[B]: whether a slot is at an end of its range, or the block at an edge."""
    limited = total(inside_slots(slots) & ((samples == least) | (samples == most))) > 0
    return limited | (whole_of(slots) == 0)


@triton.jit
def settle_luma(
    y, chroma, luma_first, size, ends, margin, bases, ranges, SETTINGS: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Luma's blocks, bounded by chroma unless luma comes first. Returns the plane; how many coefficients [G] are wrong,
    pixels outside the gamut counted too; the turns [G]; and [G] whether the gamut, or an edge, may be the cause."""
    slots, inside = luma_slots(size, V, H), inside_image(size, V, H)
    wanted = to_blocks(tl.where(inside, y, 0), V, H)
    least, most = tl.where(inside, y * 0 - 128, 0), tl.where(inside, y * 0 + 127, 0)
    outside = tl.zeros([y.shape[0]], tl.int32)
    if C == 3:
        cb, cr = unpair(chroma)
        lowest, highest, none = bound_luma(cb, cr, inside, ranges)
        least, most = tl.where(luma_first, least, lowest), tl.where(luma_first, most, highest)
        outside = tl.where(luma_first, 0, sum_pixels(none))
    least, most = to_blocks(least, V, H), to_blocks(most, V, H)
    going = tl.broadcast_to(some_slots(slots), [wanted.shape[0]])
    samples, missed, turns = settle(
        wanted, least, most, (), ends[0], ends[1], bases, slots, (), margin, going, SETTINGS
    )
    constrained = some((missed > 0) & (touches(samples, least, most, slots) | luma_first), V * H) | (outside > 0)
    return from_blocks(samples, V, H), per_mcu(missed, V * H) + outside, per_mcu(turns, V * H), constrained


@triton.jit
def settle_chroma(
    y, chroma, found, settled, luma_first, mine, size, ends, margin, bases, ranges, SETTINGS: tl.constexpr,
    V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The blocks of the components `mine` [2 G], if luma comes first bounded by it and each by the other component, as
    it is `found` if that is settled. Returns both planes; how many coefficients [G] are wrong; the turns [G]; and [G]
    each whether the gamut, or an edge, may be the cause, and whether there are wrong blocks where neither is."""
    slots = chroma_slots(size, V, H)
    wanted, inside = average(chroma, size, V, H), inside_slots(slots)
    least, most = tl.where(inside, wanted * 0 - 128, 0), tl.where(inside, wanted * 0 + 127, 0)
    least_sum, most_sum = tl.full([wanted.shape[0], 8], -256, tl.int32), tl.full([wanted.shape[0], 8], 254, tl.int32)
    if luma_first:
        lowest, highest = bound_chroma(y, chroma, found, settled, ranges)
        least, most, least_sum, most_sum = bound_slots(lowest, highest, size, V, H)
    sums = (least_sum, most_sum) if V * H == 4 and len(size) > 0 else ()
    going = mine & some_slots(slots)
    if V * H == 4:  # as many blocks as of luma: so these share registers with luma's, and threads would do the same
        samples, missed, turns = settle(
            twice(wanted), twice(least), twice(most), both_twice(sums), twice(ends[0]), twice(ends[1]), bases,
            both_twice(slots), both_twice(size), margin, twice(going), SETTINGS,
        )  # fmt: skip
        samples = tl.max(tl.reshape(samples, [wanted.shape[0], 2, 8, 8]), axis=1)
        missed, turns = once(missed), once(turns)
    else:
        samples, missed, turns = settle(
            wanted, least, most, sums, ends[0], ends[1], bases, slots, size, margin, going, SETTINGS
        )
    lowest, highest = chroma * 0, chroma * 0
    if luma_first:  # again, not to keep them during the search
        lowest, highest = bound_chroma(y, chroma, found, settled, ranges)
    spread = spread_chroma(samples, chroma, lowest, highest, luma_first, size, V, H)
    bounded = touches(samples, least, most, slots) | luma_first
    constrained, narrow = some((missed > 0) & bounded, 2), some((missed > 0) & (bounded == 0), 2)
    return tl.where(per_pixel(mine), spread, found), per_mcu(missed, 2), per_mcu(turns, 2), constrained, narrow


@triton.jit
def attempt(
    wanted, size, luma_ends, chroma_ends, margin, order, bases, ranges, SETTINGS: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One attempt on MCUs: the three channels wanted, in sixteenths → their Y, Cb and Cr in integers. order:
    CHROMA_FIRST, when it bounds luma; BLUE_SECOND or RED_SECOND, when luma bounds it. Returns with the planes how many
    coefficients [G] are wrong, pixels outside the gamut counted too; the turns [G] taken; and [G] whether the gamut,
    or an edge, may be the cause of what is wrong."""
    luma_first = order != CHROMA_FIRST
    red, green, blue = wanted
    if C == 1:
        y, chroma = to_ycc(red, green, blue, C)
        y, wrong, turns, tight = settle_luma(
            y, y, luma_first, size, luma_ends, margin, bases, ranges, SETTINGS, C, V, H
        )
        return y, chroma, wrong, turns, tight
    else:
        found, theirs = red * 0, pair(red, red) * 0
        wrong, turns = tl.zeros([red.shape[0]], tl.int32), tl.zeros([red.shape[0]], tl.int32)
        tight, narrow = wrong > 0, wrong > 0
        number = tl.arange(0, theirs.shape[0]) % 2
        for stage in range(tl.where(luma_first, 3, 2)):
            if len(size) > 0:
                zero = nothing(turns)
                red, size, luma_ends = red + zero, shifted(size, zero), shifted(luma_ends, zero)
                chroma_ends = shifted(chroma_ends, zero)
            if (stage == 0) == luma_first:
                y = to_ycc(red, green, blue, C)[0]
                found, missed, took, constrained = settle_luma(
                    y, theirs, luma_first, size, luma_ends, margin, bases, ranges, SETTINGS, C, V, H
                )
                wrong, turns, tight = wrong + missed, turns + took, tight | constrained
            else:
                chroma = to_ycc(red, green, blue, C)[1]
                mine = (number == ((order - BLUE_SECOND) ^ (stage - 1))) | (order == CHROMA_FIRST)
                theirs, missed, took, constrained, unbounded = settle_chroma(
                    found, chroma, theirs, stage == 2, luma_first, mine, both_twice(size), chroma_ends, margin, bases,
                    ranges, SETTINGS, V, H,
                )  # fmt: skip
                wrong, turns, tight, narrow = wrong + missed, turns + took, tight | constrained, narrow | unbounded
        return found, theirs, wrong, turns, tight & (narrow == 0)
