"""A search over the pixels of an MCU, luma and chroma together: for the few where the gamut lets no plane change alone,
such as highlights in which two channels are at 255.

A step changes one pixel's channels by -1, 0 or 1 each. What it does to a block is nothing, or one step of one of its
samples: so the tables by which `samples.search` ranks its steps, kept for all blocks at once, rank these.

Shapes: P pixels of an MCU, flat, by row, [3, P]; its blocks, luma's first, with 64 samples each, flat.
"""

from __future__ import annotations

import numpy as np
from numba import int64
from numpy.typing import NDArray

from kernels.exact import INTO_COLUMNS, INTO_ROWS, SearchSettings
from kernels.numba_ops.chroma import bias_of
from kernels.numba_ops.compiler import jit
from kernels.numba_ops.gamut import blue_of, luma_of, red_of, to_triples
from kernels.numba_ops.mcus import place_of
from kernels.numba_ops.samples import (
    COST_DOWN,
    COST_UP,
    FOUND,
    SAFE_DISTANCE,
    Ints,
    judge,
    measure_steps,
    take_step,
    transform,
    weigh_row,
)

STEPS = 27
"""Of a pixel, its own place (13) among them."""

NOTHING = 13
"""The code of a step that changes no sample, or leads out of 0..255."""


@jit
def encode_steps(
    p: int,
    rgb: Ints,
    ycc: Ints,
    sums: Ints,
    samples: Ints,
    vertical: int,
    horizontal: int,
    codes: NDArray[np.int8],
) -> None:
    """What each step of a pixel does to its luma sample and to the chroma samples over it: three digits to the base 3,
    each the change plus 1."""
    count = vertical * horizontal
    _, _, g = place_of(p, vertical, horizontal)
    bias = bias_of(vertical, horizontal, g & 7)
    for n in range(STEPS):
        red, green, blue = rgb[0, p] + n // 9 - 1, rgb[1, p] + n // 3 % 3 - 1, rgb[2, p] + n % 3 - 1
        codes[p, n] = NOTHING
        if min(red, green, blue) >= 0 and max(red, green, blue) <= 255:
            y = luma_of(red, green, blue) - ycc[0, p]
            cb = (sums[0, g] + blue_of(red, green, blue) - ycc[1, p] + bias) // count - samples[count, g]
            cr = (sums[1, g] + red_of(red, green, blue) - ycc[2, p] + bias) // count - samples[count + 1, g]
            codes[p, n] = 9 * y + 3 * cb + cr + NOTHING


@jit
def gather(rgb: Ints, ycc: Ints, vertical: int, horizontal: int, sums: Ints, samples: Ints) -> None:
    """Pixels [3, P] → their YCbCr [3, P], the sums of chroma [2, 64] under each sample, and all samples
    [blocks, 64]."""
    count = vertical * horizontal
    to_triples(rgb, ycc)
    for g in range(64):
        sums[0, g] = sums[1, g] = 0
    for p in range(rgb.shape[1]):
        block, at, g = place_of(p, vertical, horizontal)
        samples[block, at] = ycc[0, p]
        sums[0, g] += ycc[1, p]
        sums[1, g] += ycc[2, p]
    for g in range(64):
        bias = bias_of(vertical, horizontal, g & 7)
        samples[count, g], samples[count + 1, g] = (sums[0, g] + bias) // count, (sums[1, g] + bias) // count


@jit
def best_steps(
    codes: NDArray[np.int8], gains: Ints, free_from: Ints, turn: int, enough: int, vertical: int, horizontal: int
) -> int:
    """The step, STEPS p + n, after which the cost has risen least; ties to the first; one of a pixel that is not free
    only where it falls below `enough`. gains: [blocks, 3, 64], of a sample's step down, none, and up. -1: there is
    none."""
    count = vertical * horizontal
    best, chosen = 1 << 30, -1
    for p in range(codes.shape[0]):
        block, at, g = place_of(p, vertical, horizontal)
        for n in range(STEPS):
            code = int(codes[p, n])
            gain = gains[block, code // 9, at] + gains[count, code // 3 % 3, g] + gains[count + 1, code % 3, g]
            if code != NOTHING and gain < best and (free_from[p] <= turn or gain < enough):
                best, chosen = gain, STEPS * p + n
    return chosen


@jit
def search_pixels(
    rgb: Ints, low: Ints, high: Ints, vertical: int, horizontal: int, bases: Ints, spread: Ints,
    settings: SearchSettings, works: Ints,
) -> tuple[int, int]:  # fmt: skip
    """Mends the pixels [3, P] of a whole MCU by steps of one of them; a tabu search like `samples.search`. Returns how
    many coefficients are wrong at the best place found, where it leaves the pixels, and how many turns it took.
    works: [blocks, WORK, 64]."""
    pixels, blocks, count = rgb.shape[1], low.shape[0], vertical * horizontal
    by_column, by_row = bases[INTO_COLUMNS, 8], bases[INTO_ROWS, 8]
    ycc, sums, samples = np.empty((3, pixels), np.int32), np.empty((2, 64), np.int32), np.empty((blocks, 64), np.int32)
    gains, codes = np.zeros((blocks, 3, 64), np.int32), np.empty((pixels, STEPS), np.int8)
    costs, wrongs, free_from = np.zeros(blocks, np.int32), np.zeros(blocks, np.int32), np.zeros(pixels, np.int32)
    changed, best = np.ones(blocks, np.int32), np.empty((3, pixels), np.int32)
    gather(rgb, ycc, vertical, horizontal, sums, samples)
    for b in range(blocks):
        transform(samples[b], bases, int64(8), int64(8), works[b])
        for r in range(8):
            weigh_row(r, by_column, works[b])
    for p in range(pixels):
        encode_steps(p, rgb, ycc, sums, samples, vertical, horizontal, codes)
    best_cost, fewest, turn, fresh = 1 << 30, 1 << 20, int64(0), int64(0)
    while True:
        for b in range(blocks):
            if changed[b]:
                costs[b], wrongs[b] = judge(works[b, FOUND], low[b], high[b])
        if costs.sum() < best_cost:
            best_cost, fewest, fresh = costs.sum(), wrongs.sum(), turn
            for p in range(pixels):
                best[0, p], best[1, p], best[2, p] = rgb[0, p], rgb[1, p], rgb[2, p]
        if fewest == 0 or turn == settings.max_pixel_turns or turn - fresh == settings.max_stale_pixel_turns:
            break
        for b in range(blocks):
            if changed[b]:
                measure_steps(low[b], high[b], spread, int64(SAFE_DISTANCE), works[b])
                for p in range(64):
                    gains[b, 0, p] = works[b, COST_DOWN, p] - costs[b]
                    gains[b, 2, p] = works[b, COST_UP, p] - costs[b]
                changed[b] = 0
        chosen = best_steps(codes, gains, free_from, turn, best_cost - costs.sum(), vertical, horizontal)
        if chosen < 0:
            break
        turn += 1
        p, n = chosen // STEPS, chosen % STEPS
        block, at, g = place_of(p, vertical, horizontal)
        code = int(codes[p, n])
        for b, digit, sample in ((block, code // 9, at), (count, code // 3 % 3, g), (count + 1, code % 3, g)):
            if digit != 1:
                take_step(samples[b], sample if digit == 2 else sample + 64, by_column, by_row, works[b])
                weigh_row(sample >> 3, by_column, works[b])
                changed[b] = 1
        rgb[0, p] += n // 9 - 1
        rgb[1, p] += n // 3 % 3 - 1
        rgb[2, p] += n % 3 - 1
        sums[0, g] -= ycc[1, p]
        sums[1, g] -= ycc[2, p]
        ycc[0, p] = luma_of(rgb[0, p], rgb[1, p], rgb[2, p])
        ycc[1, p] = blue_of(rgb[0, p], rgb[1, p], rgb[2, p])
        ycc[2, p] = red_of(rgb[0, p], rgb[1, p], rgb[2, p])
        sums[0, g] += ycc[1, p]
        sums[1, g] += ycc[2, p]
        free_from[p] = turn + settings.pixel_tenure
        first = (g >> 3) * vertical * 8 * horizontal + (g & 7) * horizontal
        for i in range(count):
            encode_steps(
                first + i // horizontal * 8 * horizontal + i % horizontal,
                rgb,
                ycc,
                sums,
                samples,
                vertical,
                horizontal,
                codes,
            )
    for p in range(pixels):
        rgb[0, p], rgb[1, p], rgb[2, p] = best[0, p], best[1, p], best[2, p]
    return fewest, turn
