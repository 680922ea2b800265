"""A block with a single row or column of slots, or a single pair in each row: at the image's edges. One step moves many
coefficients far there, and often no other samples than the original's have the file's coefficients.

The samples along the line are integers whose weighted sums lie in a box: the points of a lattice in a box. They are
found as in sphere decoding (Fincke and Pohst 1985; Schnorr and Euchner 1994): among the points of the ellipsoid around
the box, one sample after the other, each nearest to what the samples before it leave as its middle. All is in integers:
the squared distance is sum of scales[n] (x[n] + sum of shares[n, m] x[m], m < n)^2, an LDL decomposition.

Shapes: 64 slots of a block, flat; up to 8 samples, or sums of pairs, along a line, and 8 frequencies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.exact import INTO_COLUMNS, INTO_ROWS, PAIRED, RADIUS, SearchSettings
from kernels.numba_ops.compiler import jit
from kernels.numba_ops.samples import BEST, FOUND, SUMS, Ints, halve, judge, transform

Longs = NDArray[np.int64]


@jit
def limits_of_line(low: Ints, high: Ints, rows: int, columns: int, limits: Longs) -> bool:
    """Between which limits [2, 8] the integer sums along a line lie, see `search_line`. False where coefficients that
    no line has are not 0."""
    along_row, paired = rows == 1, columns > PAIRED
    for i in range(64):
        k = i & 7
        mine = i < 8 if along_row else k == 0 or (paired and k & 1)
        if not mine and (low[i] > 0 or high[i] < 0):
            return False
    for k in range(8):
        if along_row:  # a row's rounded frequencies are half of the coefficients
            limits[0, k], limits[1, k] = ((low[k] + 1) // 2 << 11) - 1024, (high[k] // 2 << 11) + 1023
        else:
            limits[0, k], limits[1, k] = (low[8 * k] << 10) - 512, (high[8 * k] << 10) + 511
            if paired:
                limits[0, k], limits[1, k] = 2 * limits[0, k], 2 * limits[1, k]
    return True


@jit
def factor(weights: Longs, limits: Longs, scales: Longs, shares: Longs) -> bool:
    """The squared distance of x, sixteenths of samples less the middle, with half the limits' distance for unit, as
    sum of scales[n] (x[n] + sum of shares[n, m] x[m] / 2^16 over m < n)^2 / 2^40: an LDL decomposition. weights:
    [slots, 8]. False where limits leave no value."""
    slots = len(weights)
    scaled, gram = np.zeros((slots, 8), np.int64), np.zeros((slots, slots), np.int64)
    for k in range(8):
        if limits[0, k] > limits[1, k]:
            return False
        for n in range(slots):
            scaled[n, k] = (weights[n, k] << 17) // (limits[1, k] - limits[0, k] + 1)
    for n in range(slots):
        for m in range(slots):
            for k in range(8):
                gram[n, m] += scaled[n, k] * scaled[m, k]
    for n in range(slots - 1, -1, -1):
        scales[n] = max(gram[n, n], 1)
        for m in range(n):
            shares[n, m] = (gram[n, m] << 16) // scales[n]
        for m in range(n):
            for j in range(n):
                gram[m, j] -= (shares[n, m] * gram[n, j]) >> 16
    return True


@jit
def search_line(
    samples: Ints, middle: Ints, least: Ints, most: Ints, low: Ints, high: Ints, bases: Ints, rows: int, columns: int,
    settings: SearchSettings, work: Ints,
) -> tuple[bool, int]:  # fmt: skip
    """Finds samples of which no coefficient is wrong, or leaves them as they are. Returns whether it has, and how many
    values it tried. middle: of the intervals, sixteenths [64]. Of pairs the integers are the sums, the slots' middles
    their halves, and SUMS of `work` their bounds."""
    paired = columns > PAIRED
    slots, stride = rows if paired else rows * columns, 1 if rows == 1 else 8
    weights, limits = np.empty((slots, 8), np.int64), np.empty((2, 8), np.int64)
    scales, shares = np.zeros(slots, np.int64), np.zeros((slots, slots), np.int64)
    for n in range(slots):
        for k in range(8):
            weights[n, k] = bases[INTO_COLUMNS, columns, n, k] if rows == 1 else bases[INTO_ROWS, rows, k, n]
    if not limits_of_line(low, high, rows, columns, limits) or not factor(weights, limits, scales, shares):
        return False, 0
    centre, bounds = np.empty(slots, np.int64), np.empty((2, slots), np.int64)
    for n in range(slots):
        centre[n] = middle[8 * n] + middle[8 * n + 1] if paired else middle[n * stride]
        bounds[0, n] = work[SUMS, n] if paired else least[n * stride]
        bounds[1, n] = work[SUMS, 8 + n] if paired else most[n * stride]
    found, offset, tried = np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    distance = np.zeros(slots + 1, np.int64)
    level = nodes = 0
    while level >= 0 and nodes < settings.max_nodes:
        nodes += 1
        nearest = (centre[level] - offset[level] + 8) >> 4
        side = 1 if centre[level] - offset[level] > 16 * nearest else -1
        n = tried[level]
        tried[level] += 1
        found[level] = nearest + side * ((n + 1) // 2 if n % 2 else -(n // 2))
        far = 16 * found[level] - centre[level] + offset[level]
        distance[level + 1] = distance[level] + scales[level] * far * far
        if distance[level + 1] > RADIUS:
            level -= 1
        elif bounds[0, level] <= found[level] <= bounds[1, level]:
            level += 1
            if level == slots:
                if put_line(samples, found, weights, limits, low, high, bases, rows, columns, work):
                    return True, nodes
                level -= 1
                continue
            tried[level], total = 0, 0
            for m in range(level):
                total += shares[level, m] * (16 * found[m] - centre[m])
            offset[level] = total >> 16
    return False, nodes


@jit
def put_line(
    samples: Ints, found: Longs, weights: Longs, limits: Longs, low: Ints, high: Ints, bases: Ints, rows: int,
    columns: int, work: Ints,
) -> bool:  # fmt: skip
    """Writes what has been found along the line into the samples, if no coefficient of it is wrong."""
    for k in range(8):
        total = 0
        for n in range(len(found)):
            total += weights[n, k] * found[n]
        if not limits[0, k] <= total <= limits[1, k]:
            return False
    before = work[BEST]
    for p in range(64):
        before[p] = samples[p]
    for n in range(len(found)):
        if columns > PAIRED:
            halve(found[n], n, columns, samples)
        else:
            samples[n * (1 if rows == 1 else 8)] = found[n]
    if columns <= PAIRED:
        return True
    transform(samples, bases, rows, columns, work)
    if judge(work[FOUND], low, high)[1] == 0:
        return True
    for p in range(64):
        samples[p] = before[p]
    return False
