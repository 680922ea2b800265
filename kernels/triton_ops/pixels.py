"""A search over the pixels of whole MCUs, luma and chroma together: for the few where the gamut lets no plane change
alone, such as highlights in which two channels are at 255. The twin of numba_ops/pixels.py, to the bit.

A step changes one pixel's channels by -1, 0 or 1 each. What it does to a block is nothing, or one step of one of its
samples: so the costs by which `samples.search` ranks its steps, measured for all blocks at once, rank these.

Shapes as in mcus.py: G MCUs, pixels [G, 8, 8, M], K blocks [K, 8, 8].
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.chroma import bias_of, chroma_samples
from kernels.triton_ops.gamut import limited, to_triples
from kernels.triton_ops.mcus import coordinates, from_blocks, pair, per_mcu, per_pixel, to_blocks, unpair
from kernels.triton_ops.samples import any_of, expand, judge, measure_steps, transform

NOWHERE = tl.constexpr(1 << 30)


@triton.jit
def least_of(x):
    """The minimum of each MCU's pixels: [G, 8, 8, M] → [G]."""
    return tl.min(tl.reshape(x, [x.shape[0], 64 * x.shape[3]]), axis=1)


@triton.jit
def gain_of(change, gains):
    """What a sample's change, -1, 0 or 1, does to the cost. gains: of a step up and of one down."""
    return tl.where(change == 0, 0, tl.where(change > 0, gains[0], gains[1]))


@triton.jit
def as_plane(x):
    """Blocks [K, 8, 8] → pixels [K, 8, 8, 1]."""
    return tl.reshape(x, [x.shape[0], 8, 8, 1])


@triton.jit
def weigh(samples, ends, bases, turn):
    """Whole blocks → their costs [K], wrong coefficients [K], and what a step of each sample, up and down, adds to the
    cost. turn: of the search, [G]."""
    exact, found = transform(samples, bases, ())
    cost, wrong = judge(found, ends[0], ends[1])
    up, down = measure_steps(exact, found, ends[0], ends[1], bases, (), turn)
    return cost, wrong, up - expand(cost), down - expand(cost)


@triton.jit
def best_steps(
    red, green, blue, triples, luma_gains, blue_gains, red_gains, free, enough, steps, V: tl.constexpr, H: tl.constexpr
):
    """Of each pixel [G, 8, 8, M]: the least that one of its 27 `steps` adds to the cost, and the first such step; of
    one that is not `free` only where that is less than `enough` [G]."""
    y, cb, cr = triples
    shift: tl.constexpr = V * H >> 1
    offset = bias_of(V, H)
    blue_sums, red_sums = tl.sum(cb, axis=3) + offset, tl.sum(cr, axis=3) + offset
    blueness, redness = (blue_sums >> shift)[:, :, :, None], (red_sums >> shift)[:, :, :, None]
    blue_sums, red_sums = blue_sums[:, :, :, None], red_sums[:, :, :, None]
    best, chosen = tl.full(y.shape, NOWHERE, tl.int32), tl.zeros_like(y)
    for n in range(steps):
        r, g, b = red + n // 9 - 1, green + n // 3 % 3 - 1, blue + n % 3 - 1
        luma, new_blue, new_red = to_triples(r, g, b)
        luma -= y
        new_blue = (blue_sums + new_blue - cb >> shift) - blueness
        new_red = (red_sums + new_red - cr >> shift) - redness
        gain = gain_of(luma, luma_gains) + gain_of(new_blue, blue_gains) + gain_of(new_red, red_gains)
        possible = (limited(r, 255) == r) & (limited(g, 255) == g) & (limited(b, 255) == b)
        possible &= ((luma | new_blue | new_red) != 0) & (free | (gain < per_pixel(enough))) & (gain < best)
        best, chosen = tl.where(possible, gain, best), tl.where(possible, n, chosen)
    return best, chosen


@triton.jit
def search_pixels(
    red, green, blue, luma_ends, chroma_ends, bases, going, SETTINGS: tl.constexpr, V: tl.constexpr, H: tl.constexpr
):
    """Mends the pixels of whole MCUs `going` [G] by steps of one of them; a tabu search like `samples.search`. Returns
    the pixels at the best place found, how many coefficients [G] are wrong there, and how many turns [G] it took. Ends:
    low and high."""
    row, column = coordinates((), V, H)
    number = row * (8 * H) + column
    best_red, best_green, best_blue, free_from = red, green, blue, tl.zeros_like(red)
    best_cost, fewest = tl.full(going.shape, NOWHERE, tl.int32), tl.zeros(going.shape, tl.int32)
    turn, fresh = tl.zeros_like(fewest), tl.zeros_like(fewest)
    while any_of(going):
        y, cb, cr = to_triples(red, green, blue)
        luma = weigh(to_blocks(y, V, H), luma_ends, bases, turn)
        luma_cost, luma_wrong, luma_up, luma_down = luma
        chroma = weigh(chroma_samples(pair(cb, cr), (), V, H), chroma_ends, bases, turn)
        chroma_cost, chroma_wrong, up, down = chroma
        cost = per_mcu(luma_cost, V * H) + per_mcu(chroma_cost, 2)
        better = going & (cost < best_cost)
        best_cost, fresh = tl.where(better, cost, best_cost), tl.where(better, turn, fresh)
        fewest = tl.where(better, per_mcu(luma_wrong, V * H) + per_mcu(chroma_wrong, 2), fewest)
        chosen = per_pixel(better)
        best_red, best_green = tl.where(chosen, red, best_red), tl.where(chosen, green, best_green)
        best_blue = tl.where(chosen, blue, best_blue)
        going &= (fewest > 0) & (turn < SETTINGS.max_pixel_turns) & (turn - fresh < SETTINGS.max_stale_pixel_turns)
        luma_gains = from_blocks(luma_up, V, H), from_blocks(luma_down, V, H)
        blue_up, red_up = unpair(as_plane(up))
        blue_down, red_down = unpair(as_plane(down))
        steps = 27 + tl.minimum(tl.max(turn, axis=0), 0)  # as in `measure_steps`
        gain, step = best_steps(
            red, green, blue, (y, cb, cr), luma_gains, (blue_up, blue_down), (red_up, red_down),
            free_from <= per_pixel(turn), best_cost - cost, steps, V, H,
        )  # fmt: skip
        least = least_of(gain)
        going &= least < NOWHERE
        turn += going.to(tl.int32)
        first = least_of(tl.where(gain == per_pixel(least), number, NOWHERE))
        moved = per_pixel(going) & (number == per_pixel(first))
        red += tl.where(moved, step // 9 - 1, 0)
        green += tl.where(moved, step // 3 % 3 - 1, 0)
        blue += tl.where(moved, step % 3 - 1, 0)
        free_from = tl.where(moved, per_pixel(turn + SETTINGS.pixel_tenure), free_from)
    return best_red, best_green, best_blue, fewest, turn
