"""The exact projection: from a restored image to an 8-bit one that libjpeg-turbo compresses to the very same file.

The problem falls apart into 8x8 blocks of single planes. In each MCU the chroma blocks come first: the wanted samples
are moved to the nearest point of the file's intervals, rounded, and mended one by one until libjpeg's own DCT agrees.
Then chroma at full resolution, with the averages that this has given; then luma, each sample within what an RGB pixel
of that chroma can have; and the pixels. Where the gamut leaves luma no way, the wanted MCU is brought into the gamut
and the intervals by alternating projections, and all is tried again with the intervals drawn in further; in the end the
pixels themselves are searched. What libjpeg's integers make of the pixels is counted.

Blocks over the image's edge repeat its last true row and column: they have fewer unknowns, and often a single solution.
There attempts take turns in whether chroma or luma comes first and bounds the other, and where the unknowns are one row
or one column, all integers in an ellipsoid around the intervals are tried.

All is in integers, so that every device finds the same pixels: wanted values in sixteenths of a gray level. The CPU's
code is in numba_ops/, the GPU's in triton_ops/; here are the settings and tables of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.libjpeg import integer_basis
from kernels.tables import constant

DRAWS = (256, 64, 128, 96, 192, 384, 64, 256, 128, 192, 96, 512)
"""How far the intervals are drawn in at each attempt on an MCU, in 128ths of the DCT's unit. The first one, which
nearly all MCUs are right after, is far in: nearer to the middle samples have less error, and are no less sharp."""

ALTERNATIONS = 20
"""Projections onto the gamut and the intervals before each further attempt."""

PATIENCE = 384
"""Turns for each block of an MCU, all together, after which it is given no further attempt."""

EDGE_PASSES = 16
"""Over a block at an edge, whose repeated places one projection does not bring to the nearest point."""

TO_THE_MIDDLE = 1 << 20
"""A draw that leaves no interval any width."""

HELD = 256
"""Gray levels, all samples together, by which luma's limits may hold back the rounded samples of a block that is
searched: beyond it, the wanted MCU has to come nearer to the gamut first."""

APART = 16
"""Sixteenths of a gray level, in the mean: where the intervals and the gamut are farther apart, no image has them."""

SOON, FAR = 3, 4
"""After so few projections already, so many times as far."""

FARTHEST = 4096
"""Steps above it are taken for it: no coefficient of an image is as large as half of it."""

CAPPED = 255
"""What a coefficient's distance from its interval counts for at most, so that sums of squares fit 24 bits."""

TURNS, STALE, TENURE = 80, 32, 8
"""Of a search over a block's samples: most turns, most without progress, and turns for which a sample that has moved
stays, or as many as a quarter of the slots, unless moving it is better than all before (Glover, "Tabu search", ORSA J.
Computing 1989)."""

PIXEL_TURNS, PIXEL_STALE, PIXEL_TENURE = 100, 40, 20
"""The same of the search over an MCU's pixels."""

LATE = 6
"""The first attempt after which pixels are searched."""

PIXEL_TURN = 4
"""What a turn over pixels counts for."""

NODES, NODES_OF_A_TURN = 20_000, 64
"""Of a search along a line: how many values of samples it tries, and how many of them count for a turn."""

RADIUS = 9 << 40
"""Of the ellipsoid in which a line is searched: the squared distance from the box's middle to a corner of it, with its
8 half sides for units, 2^-40 of them for scale, and for roundings a little more."""

CHROMA_FIRST, BLUE_SECOND, RED_SECOND = range(3)
"""Orders of an attempt's planes. Chroma comes first as a rule, as its blocks have more ways, and bounds luma; in the
other two luma bounds chroma. Attempts take turns at the image's edges, where blocks with few slots have few solutions
or a single one, and once elsewhere."""

DOUBT = 1
"""Gray levels by which a chroma component may end up beside what is wanted, when it bounds the other one."""

NEAR = 2
"""How far, in each channel, the pixel of a triple (Y, Cb, Cr) lies from the decoder's formulas at most."""

INTO_COLUMNS, INTO_ROWS, BACK_TO_COLUMNS, BACK_TO_ROWS = range(4)
"""Places in `edge_bases`."""

PAIRED = 8
"""Added to the count of columns of slots whose last two are the halves of one sum."""


@constant
def edge_bases(device: torch.device | str = "cpu") -> Tensor:
    """[4, 17, 8, 8] int32, each for 1 to 8 slots along an axis, of which the last stands for all places that repeat it,
    and for 2 to 8, PAIRED more, of which the last two do, one for the even places and one for the odd: INTO_COLUMNS
    [column, frequency] and INTO_ROWS [frequency, row], for samples; BACK_TO_COLUMNS [frequency, column] and
    BACK_TO_ROWS [row, frequency], for a change, of which a slot gets the mean of its places."""
    basis = integer_basis()
    bases = torch.zeros(4, 2 * PAIRED + 1, 8, 8, dtype=torch.int32)
    for n in range(1, 9):
        for code, own, apart in ((n, n - 1, 1), (n + PAIRED, n - 2, 2)):
            for slot in range(n if own >= 0 else 0):
                places = basis[:, slot : slot + 1] if slot < own else basis[:, slot::apart]
                bases[INTO_ROWS, code, :, slot] = places.sum(1).int()
                bases[BACK_TO_COLUMNS, code, :, slot] = places.mean(1).round().int()
    bases[INTO_COLUMNS], bases[BACK_TO_ROWS] = bases[INTO_ROWS].mT, bases[BACK_TO_COLUMNS].mT
    return bases.to(device)


@constant
def ranges_of(component: int, device: torch.device | str = "cpu") -> Tensor:
    """[256, 256, 2] int16: of a component, at the two others, each plus 128 and in their order, the least and the
    largest value of an RGB pixel that has these; the least above the largest where there is none. Y, Cb and Cr are
    components 0 to 2, and all less 128.

    libjpeg-turbo's integers map the 2^24 pixels to 4,007,200 triples. For each (Cb, Cr) the Y that occur are an
    interval, and nearly all triples come back from the decoder's formulas: so planes may be changed on their own as
    long as each sample stays in its interval."""
    least = torch.full((1 << 16,), 127, dtype=torch.int32, device=device)
    most = torch.full_like(least, -128)
    green, blue = torch.arange(256, device=device).int()[:, None], torch.arange(256, device=device).int()
    for red in range(256):
        triple = [
            19595 * red + 38470 * green + 7471 * blue + 32768 >> 16,
            -11059 * red - 21709 * green + 32768 * blue + 8421375 >> 16,
            32768 * red - 27439 * green - 5329 * blue + 8421375 >> 16,
        ]
        value = triple.pop(component).flatten() - 128
        place = (256 * triple[0] + triple[1]).long().flatten()
        least.scatter_reduce_(0, place, value, "amin")
        most.scatter_reduce_(0, place, value, "amax")
    return torch.stack((least, most), 1).to(torch.int16).reshape(256, 256, 2)


@constant
def gamut_ranges(device: torch.device | str = "cpu") -> Tensor:
    """[3, 256, 256, 2] int16: `ranges_of` each component."""
    return torch.stack([ranges_of(component, device) for component in range(3)])
