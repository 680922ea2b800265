"""MCUs' geometry: their pixels and blocks, libjpeg's averages of chroma, and the ways from the image and from the file.
The twin of numba_ops/mcu.py, to the bit.

A program works on G MCUs, numbered `mcus` [G]. K entries are those of G MCUs in order: V H blocks of luma or two of
chroma each. Pixels are [K, 8, 8, M] int32: the M = V H under each chroma sample, row by row. `size` are an MCU's true
rows and columns of pixels, [K] each, 0 where there is no MCU; None where all MCUs are whole.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as settings
from kernels.triton_ops.samples import PAIRED, any_of, expand, inside_slots, places

FARTHEST = tl.constexpr(settings.FARTHEST)


@triton.jit
def repeat(x, TIMES: tl.constexpr):
    """[G] → [G TIMES]."""
    return tl.reshape(tl.broadcast_to(x[:, None], [x.shape[0], TIMES]), [x.shape[0] * TIMES])


@triton.jit
def per_mcu(x, TIMES: tl.constexpr):
    """[G TIMES] → sums, [G]."""
    return tl.sum(tl.reshape(x, [x.shape[0] // TIMES, TIMES]), axis=1)


@triton.jit
def twice(x):
    """[K, ...] → [2 K, ...], each entry twice; or None."""
    if x is None:
        return None
    elif len(x.shape) == 1:
        return repeat(x, 2)
    elif len(x.shape) == 2:
        return tl.reshape(tl.broadcast_to(x[:, None, :], [x.shape[0], 2, 8]), [2 * x.shape[0], 8])
    else:
        return tl.reshape(tl.broadcast_to(x[:, None, :, :], [x.shape[0], 2, 8, 8]), [2 * x.shape[0], 8, 8])


@triton.jit
def both_twice(x):
    """Of two tensors, or None."""
    if x is None:
        return None
    else:
        return twice(x[0]), twice(x[1])


@triton.jit
def once(x):
    """The inverse of `twice`, of [2 K]."""
    return tl.max(tl.reshape(x, [x.shape[0] // 2, 2]), axis=1)


@triton.jit
def whole_mcus(n, rows, columns, height, width, V: tl.constexpr, H: tl.constexpr):
    """The numbers [G] of whole MCUs, the n-th [G] of all images' each. rows and columns: of MCUs of an image."""
    full_rows, full_columns = height // (8 * V), width // (8 * H)
    image, n = n // (full_rows * full_columns), n % (full_rows * full_columns)
    return (image * rows + n // full_columns) * columns + n % full_columns


@triton.jit
def edge_mcus(n, rows, columns, height, width, V: tl.constexpr, H: tl.constexpr):
    """The same of those over the edge: of an image first the last column's, then the last row's."""
    full_rows, full_columns = height // (8 * V), width // (8 * H)
    count, right = rows * columns - full_rows * full_columns, full_rows * (columns - full_columns)
    image, n = n // count, n % count
    place = tl.where(n < right, n * columns + columns - 1, full_rows * columns + n - right)
    return image * rows * columns + place


@triton.jit
def sizes(mcus, there, rows, columns, height, width, V: tl.constexpr, H: tl.constexpr):
    """The true rows and columns [G] of the MCUs that are `there` [G]."""
    down = tl.minimum(height - mcus // columns % rows * (8 * V), 8 * V)
    across = tl.minimum(width - mcus % columns * (8 * H), 8 * H)
    return tl.where(there, down, 0), tl.where(there, across, 0)


@triton.jit
def nothing(turns):
    """0, but not for the compiler: what follows from numbers with it added is computed again instead of kept in
    registers through a loop. turns: [G], a count that changes in the loop."""
    return tl.min(tl.minimum(turns, 0), axis=0)


@triton.jit
def shifted(x, zero):
    """Two tensors, or None, with it added."""
    if x is None:
        return None
    else:
        return x[0] + zero, x[1] + zero


@triton.jit
def luma_slots(size, V: tl.constexpr, H: tl.constexpr):
    """Sizes of MCUs [G] → rows and columns of slots of their luma blocks, [G V H]."""
    if size is None:
        return None
    else:
        down, across = repeat(size[0], V * H), repeat(size[1], V * H)
        n = tl.arange(0, down.shape[0]) % (V * H)
        down, across = down - 8 * (n // H), across - 8 * (n % H)
        return tl.minimum(tl.maximum(down, 0), 8), tl.minimum(tl.maximum(across, 0), 8)


@triton.jit
def chroma_slots(size, V: tl.constexpr, H: tl.constexpr):
    """Rows and columns of slots of MCUs' chroma blocks. Beyond the samples that average pixels of their own, if chroma
    is halved across, all average the last true column alone: one slot stands for them. But where they are the halves of
    a sum T of two of its pixels there are two; not if there is one such sample, nor in a single row, which has no odd
    sums."""
    if size is None:
        return None
    else:
        inner = size[1] // H
        outer = (H == 2) & (size[1] < 16)
        twice = outer & (V == 2) & (inner < 7) & (size[0] > 1)
        return (size[0] + V - 1) // V, inner + outer.to(tl.int32) + twice.to(tl.int32) * (1 + PAIRED)


@triton.jit
def coordinates(size, V: tl.constexpr, H: tl.constexpr):
    """Of MCUs' pixels: row [K, 8, 1, M] and column [K, 1, 8, M]; K is 1 where all MCUs are whole."""
    at, m = tl.arange(0, 8), tl.arange(0, V * H)
    down, across = at[None, :, None, None], at[None, None, :, None]
    if size is not None:  # depends on it, as `nothing` explains
        zero = per_pixel(tl.minimum(size[0], 0))
        down, across = down + zero, across + zero
    return V * down + m // H, H * across + m % H


@triton.jit
def per_pixel(x):
    """[K] → [K, 1, 1, 1]."""
    return x[:, None, None, None]


@triton.jit
def to_blocks(x, V: tl.constexpr, H: tl.constexpr):
    """Pixels [G, 8, 8, M] → luma blocks [G V H, 8, 8]."""
    if V * H == 1:
        return tl.reshape(x, [x.shape[0], 8, 8])
    else:
        x = tl.permute(tl.reshape(x, [x.shape[0], 8, 8, V, H]), (0, 1, 3, 2, 4))
        x = tl.permute(tl.reshape(x, [x.shape[0], V, 8, H, 8]), (0, 1, 3, 2, 4))
        return tl.reshape(x, [x.shape[0] * V * H, 8, 8])


@triton.jit
def from_blocks(x, V: tl.constexpr, H: tl.constexpr):
    """The inverse."""
    if V * H == 1:
        return tl.reshape(x, [x.shape[0], 8, 8, 1])
    else:
        x = tl.permute(tl.reshape(x, [x.shape[0] // (V * H), V, H, 8, 8]), (0, 1, 3, 2, 4))
        x = tl.permute(tl.reshape(x, [x.shape[0], 8, V, 8, H]), (0, 1, 3, 2, 4))
        return tl.reshape(x, [x.shape[0], 8, 8, V * H])


@triton.jit
def pair(cb, cr):
    """Two planes' pixels [G, 8, 8, M] → [2 G, 8, 8, M], an MCU's side by side."""
    x = tl.permute(tl.join(cb, cr), (0, 4, 1, 2, 3))
    return tl.reshape(x, [2 * cb.shape[0], 8, 8, cb.shape[3]])


@triton.jit
def unpair(x):
    """The inverse."""
    x = tl.reshape(x, [x.shape[0] // 2, 2, 8, 8, x.shape[3]])
    return tl.split(tl.permute(x, (0, 2, 3, 4, 1)))


@triton.jit
def load_intervals(plane, tables, image, place, component, C: tl.constexpr):
    """Blocks' coefficients → what libjpeg's quantiser, rounding half away from zero, takes for them, of 8 times the
    DCT: low and high [K, 8, 8]. plane: [K] pointers. place: which block of the plane. component: [K], or one of all."""
    step = tl.load(tables + (expand((image * C + component) * 64) + places()))
    value = tl.load(expand(plane + place.to(tl.int64) * 64) + places()).to(tl.int32)
    step = tl.minimum(step, FARTHEST)
    value = tl.where(step == FARTHEST, tl.minimum(tl.maximum(value, -1), 1), value)
    middle = 8 * value * step
    low, high = middle - 4 * step + (value <= 0).to(tl.int32), middle + 4 * step - (value >= 0).to(tl.int32)
    limit: tl.constexpr = 1 << 20
    return tl.minimum(tl.maximum(low, -limit), limit), tl.minimum(tl.maximum(high, -limit), limit)


@triton.jit
def luma_intervals(plane, tables, mcus, rows, columns, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """Of MCUs' luma blocks."""
    of = repeat(mcus, V * H)
    n = tl.arange(0, of.shape[0]) % (V * H)
    place = (of // columns * V + n // H).to(tl.int64) * (columns * H) + of % columns * H + n % H
    return load_intervals(plane + tl.zeros_like(of), tables, of // (rows * columns), place, 0, C)


@triton.jit
def chroma_intervals(blue_plane, red_plane, tables, mcus, rows, columns, C: tl.constexpr):
    """Of MCUs' chroma blocks, two each."""
    of = repeat(mcus, 2)
    red = tl.arange(0, of.shape[0]) % 2 == 1
    plane = tl.where(red, red_plane, blue_plane)
    return load_intervals(plane, tables, of // (rows * columns), of, 1 + red.to(tl.int32), C)


@triton.jit
def load_channel(x, inside):
    """Values limited to 0..255, in sixteenths; 0 beyond the image and for what is no number."""
    value = tl.load(x, mask=inside, other=0).to(tl.float32)
    value = tl.minimum(tl.where(value > 0, value, 0.0), 255.0)
    return (value * 16.0 + 0.5).to(tl.int32)


@triton.jit
def addresses(x, mcus, size, rows, columns, stride_n, stride_h, stride_w, V: tl.constexpr, H: tl.constexpr):
    """Pointers [G, 8, 8, M] to one channel's pixels of MCUs."""
    row, column = coordinates(size, V, H)
    row = per_pixel(mcus // columns % rows * (8 * V)) + row
    column = per_pixel(mcus % columns * (8 * H)) + column
    corner = x + per_pixel((mcus // (rows * columns)).to(tl.int64) * stride_n)
    return corner + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w


@triton.jit
def inside_image(size, V: tl.constexpr, H: tl.constexpr):
    """[K, 8, 8, M]: which pixels the image has; [1, 8, 8, M] where all MCUs are whole."""
    if size is None:
        return tl.full([1, 8, 8, V * H], 1, tl.int1)
    else:
        row, column = coordinates(size, V, H)
        return (row < per_pixel(size[0])) & (column < per_pixel(size[1]))


@triton.jit
def swap(x):
    """An MCU's two planes [2 G, 8, 8, M] the other way round."""
    blue, red = unpair(x)
    return pair(red, blue)


@triton.jit
def load_pixels(
    x, mcus, size, rows, columns, stride_n, stride_c, stride_h, stride_w,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The channels [G, 8, 8, M] of MCUs, in sixteenths; of gray images the one thrice."""
    where, inside = (
        addresses(x, mcus, size, rows, columns, stride_n, stride_h, stride_w, V, H),
        inside_image(size, V, H),
    )
    red = load_channel(where, inside)
    if C == 1:
        return red, red, red
    else:
        return red, load_channel(where + stride_c, inside), load_channel(where + stride_c + stride_c, inside)


@triton.jit
def store_pixels(
    out, red, green, blue, chosen, mcus, size, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Writes the pixels of MCUs `chosen` [G] into contiguous uint8 images."""
    area = height.to(tl.int64) * width
    where = addresses(out, mcus, size, rows, columns, C * area, width, 1, V, H)
    mask = inside_image(size, V, H) & per_pixel(chosen)
    tl.store(where, red.to(tl.uint8), mask=mask)
    if C == 3:
        tl.store(where + area, green.to(tl.uint8), mask=mask)
        tl.store(where + area + area, blue.to(tl.uint8), mask=mask)


@triton.jit
def group_heights(size, V: tl.constexpr):
    """[K, 8]: how many true rows of pixels are under each row of chroma samples; [1, 8] where all MCUs are whole."""
    if size is None:
        return tl.full([1, 8], V, tl.int32)
    else:
        return tl.minimum(tl.maximum(size[0][:, None] - V * tl.arange(0, 8)[None, :], 0), V)


@triton.jit
def bias(V: tl.constexpr, H: tl.constexpr):
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
    if size is None:
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
        lowest = V * H * samples - bias(V, H)
        low, high = -(-lowest >> weight), lowest + V * H - 1 >> weight
        if size is None or H == 1:
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
    least = tl.sum(lowest, axis=3) * times[:, :, None] + bias(V, H) >> count
    most = tl.sum(highest, axis=3) * times[:, :, None] + bias(V, H) >> count
    if size is None:
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
    if size is None:
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
    if size is None:
        return tl.sum(x, axis=3) + bias(V, H) >> (V * H >> 1)
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
    samples = tl.sum(x, axis=3) + bias(V, H) >> (V * H >> 1)
    at, end = tl.arange(0, 8)[None, :, None], expand((size[0] + V - 1) // V)
    last = tl.sum(tl.where(at == end - 1, samples, 0), axis=1)[:, None, :]
    return tl.where(at < end, samples, last)
