"""Chroma of MCUs: libjpeg's averages of the pixels, and pixels of given averages. The twin of
numba_ops/chroma.py, to the bit; shapes as in mcus.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.mcus import chroma_slots, coordinates, inside_image, per_pixel
from kernels.triton_ops.samples import PAIRED, any_of, expand, inside_slots


@triton.jit
def group_heights(size, V: tl.constexpr):
    """[K, 8]: how many true rows of pixels are under each row of chroma samples; [1, 8] where all MCUs are whole."""
    if len(size) == 0:
        return tl.full([1, 8], V, tl.int32)
    else:
        return tl.minimum(tl.maximum(size[0][:, None] - V * tl.arange(0, 8)[None, :], 0), V)


@triton.jit
def bias_of(V: tl.constexpr, H: tl.constexpr):
    """[1, 1, 8]: what libjpeg adds to the sum of the pixels under a chroma sample before it divides."""
    odd = tl.arange(0, 8)[None, None, :] & 1
    return odd * (H - 1) + (V - 1)


@triton.jit
def last_pixels(x, size, V: tl.constexpr, H: tl.constexpr):
    """Pixels → [K, 8, M]: those of the last true column, at all pixels of a group's row alike."""
    column = coordinates(size, V, H)[1]
    x = tl.sum(tl.where(column == per_pixel(size[1]) - 1, x, 0), axis=2)
    if H == 1:
        return x
    else:
        x = tl.sum(tl.reshape(x, [x.shape[0], 8, V, H]), axis=3)
        return tl.reshape(tl.broadcast_to(x[:, :, :, None], [x.shape[0], 8, V, H]), [x.shape[0], 8, V * H])


@triton.jit
def own_pixels(size, V: tl.constexpr, H: tl.constexpr):
    """[K, 8, 8, 1]: which chroma samples average pixels of their own; at edges H is 2 or there are no others."""
    at = tl.arange(0, 8)[None, None, :, None]
    return at < per_pixel(size[1] // H)


@triton.jit
def last_true(size, V: tl.constexpr, H: tl.constexpr):
    """[K, 8, 8, M]: the pixels of the last true column, where chroma samples beyond it average it alone."""
    last = coordinates(size, V, H)[1] == per_pixel(size[1]) - 1
    return last & inside_image(size, V, H) & per_pixel(size[1] < 8 * H)


@triton.jit
def sum_last(x, size, V: tl.constexpr, H: tl.constexpr):
    """Pixels → [K, 8, 1]: their sums over the last true column under each row of chroma samples."""
    return tl.sum(tl.sum(tl.where(last_true(size, V, H), x, 0), axis=3), axis=2)[:, :, None]


@triton.jit
def slot_at(x, place):
    """Of slots [K, 8, 8] those of one column [K], 0 beyond the last: [K, 8, 1]."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, None, :] == expand(place), x, 0), axis=2)[:, :, None]


@triton.jit
def average(x, size, V: tl.constexpr, H: tl.constexpr):
    """Wanted chroma pixels [K, 8, 8, M] → the slots [K, 8, 8] of its blocks."""
    heights = group_heights(size, V)[:, :, None]
    sums = tl.sum(tl.where(inside_image(size, V, H), x, 0), axis=3) >> (heights * H >> 1)
    if len(size) == 0:
        return sums
    else:
        if H == 2:
            own = tl.arange(0, 8)[None, None, :] < expand(size[1] // H)
            sums = tl.where(own, sums, sum_last(x, size, V, H) >> (heights >> 1))
        return tl.where(inside_slots(chroma_slots(size, V, H)), sums, 0)


@triton.jit
def share(wanted, there, low, high):
    """Of groups of pixels the members that are `there`, [K, 8, 8, M]: moved together so that the sum can be one of low
    to high [K, 8, 8], then rounded to integers whose sum is; ties to the first."""
    sums = tl.sum(tl.where(there, wanted, 0), axis=3)
    count = tl.sum(there.to(tl.int32), axis=3)
    shift = tl.minimum(tl.maximum(sums, 16 * low), 16 * high) - sums >> (count >> 1)
    wanted += shift[:, :, :, None]
    out = wanted + 8 >> 4
    left = tl.sum(tl.where(there, out, 0), axis=3)
    member = tl.arange(0, wanted.shape[3])[None, None, None, :]
    for _ in range(3):
        sign = (left < low).to(tl.int32) - (left > high).to(tl.int32)
        left += sign
        gain = tl.where(there, sign[:, :, :, None] * (wanted - out * 16), -(1 << 30))
        first = tl.where(gain == tl.max(gain, axis=3)[:, :, :, None], member, 4)
        out += tl.where(member == tl.min(first, axis=3)[:, :, :, None], sign[:, :, :, None], 0)
    return out


@triton.jit
def mend_groups(x, there, low, high, least, most):
    """Brings the members of groups of pixels that are `there`, [K, 8, 8, M], each within its bounds, and then as near
    as these allow to a sum of low to high [K, 8, 8]: by steps of one of the member that has most room; ties to the
    first."""
    x = tl.where(there, tl.minimum(tl.maximum(x, least), most), x)
    sums = tl.sum(tl.where(there, x, 0), axis=3)
    member, going = tl.arange(0, x.shape[3])[None, None, None, :], (sums < low) | (sums > high)
    while any_of(going):
        sign = tl.where(sums < low, 1, -1)
        room = tl.where(there, tl.where(sign[:, :, :, None] > 0, most - x, x - least), 0)
        widest = tl.max(room, axis=3)
        going &= widest > 0
        sign = tl.where(going, sign, 0)
        first = tl.min(tl.where(room == widest[:, :, :, None], member, 4), axis=3)
        x += tl.where(member == first[:, :, :, None], sign[:, :, :, None], 0)
        sums += sign
        going &= (sums < low) | (sums > high)
    return x


@triton.jit
def share_bounded(wanted, there, low, high, least, most, bounded):
    """`share`, each pixel within its limits, least to most, if bounded."""
    out = share(wanted, there, low, high)
    if bounded:
        out = mend_groups(out, there, low, high, least, most)
    return out


@triton.jit
def last_sums(samples, size, V: tl.constexpr, H: tl.constexpr):
    """Between which values the sum of the last true column's pixels lies in each row of chroma blocks whose slots
    beyond their own columns stand for it: [K, 8, 1] each."""
    inner, heights = size[1] // H, group_heights(size, V)[:, :, None]
    sums = heights * slot_at(samples, inner)
    paired = expand(chroma_slots(size, V, H)[1] > PAIRED) & (heights == 2)
    sums = tl.where(paired, slot_at(samples, inner) + slot_at(samples, inner + 1), sums)
    rounded_up = expand((V == 2) & (inner == 7)) & (heights == 2)  # (T + 1) >> 1 alone
    return sums - rounded_up.to(tl.int32), sums


@triton.jit
def spread_chroma(samples, wanted, least, most, bounded, size, V: tl.constexpr, H: tl.constexpr):
    """Full-resolution chroma [K, 8, 8, M] near the wanted pixels, libjpeg's averages of it the blocks' slots [K, 8, 8];
    each pixel, if bounded, within its limits, least to most [K, 8, 8, M], as long as there is such a one."""
    if V * H == 1:
        own = tl.reshape(samples, wanted.shape)
        if bounded:
            own = tl.minimum(tl.maximum(own, least), most)
        return own
    else:
        inside = tl.broadcast_to(inside_image(size, V, H), wanted.shape)
        weight = (group_heights(size, V) < V).to(tl.int32)[:, :, None]
        lowest = V * H * samples - bias_of(V, H)
        low, high = -(-lowest >> weight), lowest + V * H - 1 >> weight
        if len(size) == 0 or H == 1:
            return share_bounded(wanted, inside, low, high, least, most, bounded)
        else:  # the last true column first, where samples stand for it alone
            last, out = last_true(size, V, H), wanted
            if any_of(last):
                lowest, highest = last_sums(samples, size, V, H)
                lowest, highest = tl.broadcast_to(lowest, low.shape), tl.broadcast_to(highest, low.shape)
                out = share_bounded(wanted, last, lowest, highest, least, most, bounded)
            settled = tl.sum(tl.where(last, out, 0), axis=3)
            there = inside & (last == 0) & own_pixels(size, V, H)
            own = share_bounded(wanted, there, low - settled, high - settled, least, most, bounded)
            return tl.where(last, out, own)


@triton.jit
def bound_slots(lowest, highest, size, V: tl.constexpr, H: tl.constexpr):
    """What chroma blocks' slots can be when each pixel keeps its limits, lowest to highest [K, 8, 8, M]: least and most
    [K, 8, 8]; and of paired ones, the least and the largest sum of each row, [K, 8] each."""
    count: tl.constexpr = V * H >> 1
    inside, heights = inside_image(size, V, H), group_heights(size, V)
    times = V // tl.maximum(heights, 1)
    lowest, highest = tl.where(inside, lowest, 0), tl.where(inside, highest, 0)
    least = tl.sum(lowest, axis=3) * times[:, :, None] + bias_of(V, H) >> count
    most = tl.sum(highest, axis=3) * times[:, :, None] + bias_of(V, H) >> count
    if len(size) == 0:
        return least, most, tl.sum(least, axis=2), tl.sum(most, axis=2)  # there are no pairs
    else:
        lowest, highest = sum_last(lowest, size, V, H), sum_last(highest, size, V, H)
        lowest, highest = lowest * times[:, :, None], highest * times[:, :, None]
        own = tl.arange(0, 8)[None, None, :] < expand(size[1] // H)
        least = tl.where(own, least, -(-lowest * H >> count))
        most = tl.where(own, most, highest * H >> count)
        within = inside_slots(chroma_slots(size, V, H))
        least, most = tl.where(within, least, 0), tl.where(within, most, 0)
        return least, most, tl.reshape(lowest, heights.shape), tl.reshape(highest, heights.shape)


@triton.jit
def move_chroma(x, change, size, V: tl.constexpr, H: tl.constexpr):
    """Adds a change of chroma blocks' slots [K, 8, 8] to the pixels [K, 8, 8, M] that they average."""
    moved = tl.broadcast_to(change[:, :, :, None], x.shape)
    if len(size) == 0:
        return x + moved
    else:
        if H == 2:
            inner, column = size[1] // 2, coordinates(size, V, H)[1]
            edge = slot_at(change, inner)
            twice = expand(chroma_slots(size, V, H)[1] > PAIRED)
            edge = tl.where(twice, edge + slot_at(change, inner + 1) >> 1, edge)[:, :, :, None]
            partly = per_pixel(size[1] < 16)
            moved = tl.where(partly & (column // 2 >= per_pixel(inner)), edge, moved)
            beside = partly & per_pixel(size[1] % 2 == 0) & (column // 2 == per_pixel(inner) - 1)
            last = column == per_pixel(size[1]) - 1  # it has its own mean
            moved = tl.where(beside, tl.where(last, edge, 2 * moved - edge), moved)
        return x + tl.where(inside_image(size, V, H), moved, 0)


@triton.jit
def chroma_samples(x, size, V: tl.constexpr, H: tl.constexpr):
    """Chroma pixels [K, 8, 8, M] → what libjpeg averages, [K, 8, 8], over the edge too: it repeats the last column, the
    last row up to the sampling factor, and then the last row of averages."""
    if len(size) == 0:
        return tl.sum(x, axis=3) + bias_of(V, H) >> (V * H >> 1)
    else:
        return repeated_samples(x, size, V, H)


@triton.jit
def repeated_samples(x, size, V: tl.constexpr, H: tl.constexpr):
    """The same over the edge."""
    row, column = coordinates(size, V, H)
    x = tl.where(column < per_pixel(size[1]), x, last_pixels(x, size, V, H)[:, :, None, :])
    if V == 2:
        y = tl.reshape(x, [x.shape[0], 8, 8, V, H])
        upper = tl.sum(tl.where(tl.arange(0, V)[None, None, None, :, None] == 0, y, 0), axis=3)
        upper = tl.broadcast_to(upper[:, :, :, None, :], [x.shape[0], 8, 8, V, H])
        x = tl.where(row < per_pixel(size[0]), x, tl.reshape(upper, x.shape))
    samples = tl.sum(x, axis=3) + bias_of(V, H) >> (V * H >> 1)
    at, end = tl.arange(0, 8)[None, :, None], expand((size[0] + V - 1) // V)
    last = tl.sum(tl.where(at == end - 1, samples, 0), axis=1)[:, None, :]
    return tl.where(at < end, samples, last)
