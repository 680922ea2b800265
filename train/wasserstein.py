"""The sliced Wasserstein distance between the patches of two sets of images, octave by octave (Karras et al.,
"Progressive growing of GANs for improved quality, stability, and variation", 2018, section 5).

Patches of 7x7 pixels come from three levels of a Laplacian pyramid: two band-passes and the low-pass at a quarter of
the resolution. Both sets are normalised by the mean and deviation of each channel of a level over all patches of the
originals (in that paper each set by its own): so too little contrast counts, and not shape alone. Both are projected
onto the same random directions; the mean difference of the sorted projections is the Wasserstein distance along one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 3

PATCH = 7
"""Pixels a side."""

PATCHES, MOST = 1024, 32768
"""Of each image and level, and of the whole set and level: where it were more, there are half as many of each image. So
a set takes 58 MB at most (RGB), however many images it has up to MOST."""

SMALLEST = 2 ** (LEVELS - 1) * (PATCH - 1) + 1
"""Pixels a side of an image whose last level is as large as a patch."""

DIRECTIONS, AT_ONCE = 256, 64
"""How many, and how many of them at once in memory."""

SEED = 0
"""Of the directions."""

UNIT = 1000
"""Distances are given times this, as in the paper."""

EPSILON = 1e-3
"""Gray levels: the least deviation, that of a set without detail."""

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class Patches:
    """Patches of a set of images that come one at a time. Their places in an image are random, but depend on nothing
    except its size and its place in the set: two sets that show the same things have their patches at the same places.
    """

    def __init__(self) -> None:
        self._each = PATCHES
        self._levels: list[list[Tensor]] = [[] for _ in range(LEVELS)]

    def add(self, place: int, image: Tensor) -> None:
        """The image at `place` of the set, [C, H, W], 0..255. A smaller one than SMALLEST adds nothing."""
        if min(image.shape[1:]) < SMALLEST:
            return
        random = torch.Generator().manual_seed(place)
        for kept, level in zip(self._levels, pyramid(image.cpu().float()), strict=True):
            corners = level.unfold(1, PATCH, 1).unfold(2, PATCH, 1)
            y, x = (torch.randint(side, (PATCHES,), generator=random)[: self._each] for side in corners.shape[1:3])
            kept.append(corners[:, y, x].transpose(0, 1).contiguous())
        if self._each * len(self._levels[0]) > MOST and self._each > 1:
            self._each //= 2
            self._levels = [[patches[: self._each].clone() for patches in kept] for kept in self._levels]

    def distance(self, other: Patches) -> float | None:
        """From this set, the originals, to the other: the mean over levels and directions, times 1000; 0 for equal
        sets. None without patches. Raises ValueError for sets of different numbers of images, or of gray and RGB."""
        if not self._levels[0] and not other._levels[0]:
            return None
        distances = []
        for level, (originals, theirs) in enumerate(zip(self._stacked(), other._stacked(), strict=True)):
            if originals.shape != theirs.shape:
                shapes = f"{list(originals.shape)} and {list(theirs.shape)}"
                raise ValueError(f"two sets of patches: expected the same shape, got {shapes}")
            deviation, mean = torch.std_mean(originals, (0, 2, 3), keepdim=True, correction=0)
            deviation = deviation.clamp_min(EPSILON)
            first, second = (((patches - mean) / deviation).flatten(1) for patches in (originals, theirs))
            distances.append(sliced_wasserstein(first, second, SEED + level))
        return UNIT * sum(distances) / LEVELS

    def _stacked(self) -> Iterator[Tensor]:
        """Each level's [n, C, 7, 7]."""
        for patches in self._levels:
            yield torch.cat(patches) if patches else torch.empty(0)


def pyramid(image: Tensor) -> list[Tensor]:
    """[C, H, W] → LEVELS of them, each half as large as the one before (rounded up): what the blur to the next takes
    away, and in the end what is left."""
    levels, x = [], image[:, None]
    for _ in range(LEVELS - 1):
        smaller = _blur(x)[..., ::2, ::2]
        enlarged = torch.zeros_like(x)
        enlarged[..., ::2, ::2] = smaller
        levels.append((x - 4 * _blur(enlarged))[:, 0])
        x = smaller
    return [*levels, x[:, 0]]


def _blur(x: Tensor) -> Tensor:
    """[C, 1, h, w], reflected at its edges."""
    kernel = torch.tensor(BINOMIAL, dtype=x.dtype)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.outer(kernel, kernel)[None, None])


def sliced_wasserstein(first: Tensor, second: Tensor, seed: int) -> float:
    """Two sets [n, d] of points → the mean over random directions of the Wasserstein-1 distance along each."""
    directions = torch.randn(DIRECTIONS, first.shape[1], generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for some in F.normalize(directions).split(AT_ONCE):
        ours, theirs = ((some @ points.mT).sort(1).values for points in (first, second))
        total += float((ours - theirs).abs().mean(1).sum())
    return total / DIRECTIONS
