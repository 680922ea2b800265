"""The exact projection: from a restored image to an 8-bit one that libjpeg-turbo compresses to the very same file.

The problem is solved block by block, in single planes. In each MCU the chroma blocks come first: the wanted samples are
moved to the nearest point of the file's intervals, rounded, and mended one by one until libjpeg's own DCT agrees. Then
chroma at full resolution, with the averages that result; then luma, each sample within what an RGB pixel of that chroma
can have; and the pixels. Where the gamut leaves luma no solution, the wanted MCU is brought into the gamut and the
intervals by alternating projections, and all is tried again with another margin; then with luma first, which bounds
chroma; in the end the pixels themselves are searched. The certificate counts what libjpeg's integers make of them.

Blocks over the image's edge repeat its last true row and column: they have fewer unknowns, and often a single solution.
There attempts alternate in whether chroma or luma comes first and bounds the other, and where the unknowns are one row
or one column, all integers in an ellipsoid around the intervals are tried.

All arithmetic is in integers, so that every device finds the same pixels: wanted values in sixteenths of a gray level.
The CPU's code is in numba_ops/, the GPU's in triton_ops/; here are the settings and tables of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.libjpeg import integer_basis
from kernels.tables import constant

MAX_TURNS_PER_STEP = 1 << 16
"""Of SearchSettings; times the widths of an MCU's intervals it still fits 32 bits."""


@dataclass(frozen=True)
class SearchSettings:
    """How long the exact projection searches, and where. Other settings give other pixels, as certified as these."""

    margins: tuple[int, ...] = (256, 64, 96, 64, 64, 64, 128, 96, 192, 32, 256, 48, 384, 64, 112, 80)
    """Of each attempt on an MCU: how far the ends of the intervals are drawn in, in 128ths of the DCT's unit. The first
    attempt, after which nearly all MCUs are right, has a large one: nearer to the middle samples have less error, and
    are no less sharp."""

    alternations: int = 12
    """Projections onto the gamut and the intervals before each further attempt."""

    early_alternations: int = 3
    """Projections after which those are given up that are `early_factor` times `max_gamut_distance` apart."""

    early_factor: int = 4

    max_gamut_distance: int = 16
    """Sixteenths of a gray level, on average. No image has intervals that are farther from the gamut."""

    turns_per_step: int = 64
    """Limit of the turns on an MCU, after which it is given no further attempt: so many for each block and each unit of
    its intervals' mean width in quantisation steps, where each counts up to WIDE_STEP. In narrow intervals what is not
    found soon is hardly ever found."""

    edge_projections: int = 192
    """Onto the intervals of a block at an edge, whose repeated places one projection does not bring to the nearest
    point."""

    max_clipping: int = 256
    """Gray levels, all samples together, by which luma's limits may clip the rounded samples of a block that is
    searched: beyond it, the wanted MCU has to come nearer to the gamut first."""

    max_turns: int = 80
    """Of the tabu search over a block's samples (Glover, "Tabu search", ORSA J. Computing 1989)."""

    max_stale_turns: int = 32
    """Turns without progress after which that search ends."""

    tenure: int = 8
    """Turns for which a sample that has moved stays, at most a quarter of the slots, unless moving it gives a new
    minimum."""

    max_pixel_turns: int = 64
    """Of the tabu search over an MCU's pixels."""

    max_stale_pixel_turns: int = 24

    pixel_tenure: int = 20

    first_pixel_attempt: int = 5
    """The first attempt, from 0, after which pixels are searched. In the two further ones before it, luma comes first
    in whole MCUs."""

    turns_per_pixel_turn: int = 4
    """What a turn over pixels counts for."""

    max_nodes: int = 20_000
    """Of the search along a line: how many values of samples it tries."""

    nodes_per_turn: int = 64
    """How many of them count for a turn."""

    def __post_init__(self) -> None:
        for name in ("first_pixel_attempt", "edge_projections", "max_turns", "max_stale_turns"):
            if (value := getattr(self, name)) < 1:  # the GPU's loops have a first turn in any case
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if not 0 <= self.turns_per_step <= MAX_TURNS_PER_STEP:
            raise ValueError(f"turns_per_step: expected 0 to {MAX_TURNS_PER_STEP}, got {self.turns_per_step}")


DEFAULT_SETTINGS = SearchSettings()

WIDE_STEP = 8
"""Width of an interval above which the limit of turns no longer grows."""

WHOLE_INTERVAL = 1 << 20
"""A margin that leaves no interval any width: its middle."""

MAX_STEP = 4096
"""Quantisation steps above it are taken for it: no coefficient of an image is as large as half of it."""

MAX_DISTANCE = 255
"""What a coefficient's distance from its interval counts for at most, so that sums of squares fit 24 bits."""

RADIUS = 9 << 40
"""Of the ellipsoid in which a line is searched: the squared distance from the box's middle to a corner of it, with its
8 half sides for units, 2^-40 of them for scale, and for roundings a little more."""

CHROMA_FIRST, BLUE_SECOND, RED_SECOND = range(3)
"""Orders of an attempt's planes. Chroma usually comes first, as its blocks have more solutions, and bounds luma; in the
other two luma bounds chroma. At the image's edges attempts alternate between the orders, as blocks with few slots have
few solutions or a single one; elsewhere each is tried once."""

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
