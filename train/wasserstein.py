"""The sliced Wasserstein distance between the patches of two sets of images, octave by octave (Karras et al.,
"Progressive growing of GANs for improved quality, stability, and variation", 2018, section 5).

Patches of 7x7 pixels come from three levels of a Laplacian pyramid: two band-passes and the low-pass at a quarter of
the resolution. Both sets are normalised by the originals' mean and standard deviation of each channel of a level (the
paper normalises each set by its own), so that a lack of contrast counts as well as a difference in shape. Both are
projected onto the same random directions; the mean difference of the sorted projections is the Wasserstein-1 distance
along a direction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 3

PATCH = 7
"""Height and width of a patch, pixels."""

PATCHES, MAX_PATCHES = 1024, 32768
"""Patches of an image at a level, and of a set at a level. Where the set would have more, the number per image is
halved. A set takes 58 MB at most (RGB) for up to MAX_PATCHES images."""

MIN_SIDE = 2 ** (LEVELS - 1) * (PATCH - 1) + 1
"""Pixels. Smallest side of an image whose last level still holds a patch."""

DIRECTIONS, DIRECTION_BATCH = 256, 64
"""Number of random directions, and of those projected at once, which bounds the memory."""

SEED = 0
"""Seed of the directions."""

SCALE = 1000
"""Factor of the distances, as in the paper."""

EPSILON = 1e-3
"""Gray levels: lower bound of the deviation, for sets without detail."""

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class PatchSet:
    """Patches of a set of images, collected image by image. Their random positions depend only on the image's size and
    its position in the set, so that two sets with the same content have their patches at the same positions."""

    def __init__(self) -> None:
        self._each = PATCHES
        self._levels: list[list[Tensor]] = [[] for _ in range(LEVELS)]

    def add(self, position: int, image: Tensor) -> None:
        """The image [C, H, W], 0..255, at `position` in the set. An image smaller than MIN_SIDE adds nothing."""
        if min(image.shape[1:]) < MIN_SIDE:
            return
        random = torch.Generator().manual_seed(position)
        for kept, level in zip(self._levels, pyramid(image.cpu().float()), strict=True):
            corners = level.unfold(1, PATCH, 1).unfold(2, PATCH, 1)
            y, x = (torch.randint(side, (PATCHES,), generator=random)[: self._each] for side in corners.shape[1:3])
            kept.append(corners[:, y, x].transpose(0, 1).contiguous())
        if self._each * len(self._levels[0]) > MAX_PATCHES and self._each > 1:
            self._each //= 2
            self._levels = [[patches[: self._each].clone() for patches in kept] for kept in self._levels]

    def distance(self, other: PatchSet) -> float | None:
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
        return SCALE * sum(distances) / LEVELS

    def _stacked(self) -> Iterator[Tensor]:
        """The patches [n, C, 7, 7] of each level."""
        for patches in self._levels:
            yield torch.cat(patches) if patches else torch.empty(0)


def pyramid(image: Tensor) -> list[Tensor]:
    """[C, H, W] → a Laplacian pyramid of LEVELS levels, each half the size of the one before (rounded up); the last is
    the low-pass."""
    levels, x = [], image[:, None]
    for _ in range(LEVELS - 1):
        smaller = _blur(x)[..., ::2, ::2]
        enlarged = torch.zeros_like(x)
        enlarged[..., ::2, ::2] = smaller
        levels.append((x - 4 * _blur(enlarged))[:, 0])
        x = smaller
    return [*levels, x[:, 0]]


def _blur(x: Tensor) -> Tensor:
    """Binomial filter of [C, 1, h, w] with reflection at the edges."""
    kernel = torch.tensor(BINOMIAL, dtype=x.dtype)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.outer(kernel, kernel)[None, None])


def sliced_wasserstein(first: Tensor, second: Tensor, seed: int) -> float:
    """Two sets of points [n, d] float32 → the mean over random directions of the Wasserstein-1 distance."""
    directions = torch.randn(DIRECTIONS, first.shape[1], generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for batch in F.normalize(directions).split(DIRECTION_BATCH):
        ours, theirs = ((batch @ points.mT).sort(1).values for points in (first, second))
        total += float((ours - theirs).abs().mean(1).sum())
    return total / DIRECTIONS
