"""The distance between the distributions of features of samples and of originals, whatever and wherever they are.

Over all images and files, samples of the posterior have the distribution of natural images (arXiv 2211.11827, theorem
2). An energy score compares samples with the original at the same position and responds little to texture that is too
weak or of the wrong kind, as most of what it sees cannot be predicted. Here positions do not matter, so that nothing
hides the difference. It says nothing about the file: it must be used with terms that do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DIRECTIONS = 32
"""Random projections of each level's features, at most as many as it has channels."""


def sliced_wasserstein(samples: Sequence[Tensor], clean: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """The squared 2-Wasserstein distance of the distributions of features of one level over all images and positions,
    projected onto random orthonormal directions (Rabin et al., "Wasserstein barycenter and its application to texture
    mixing", 2011): the mean over directions, samples and levels. A scalar.

    samples: levels [n, K, c, h, w]. clean: levels [n, c, h, w]. random: a generator on the CPU. Channels are normalised
    by their mean and standard deviation in the clean images."""
    distances = []
    for own, true in zip(samples, clean, strict=True):
        deviation, mean = torch.std_mean(true, (0, 2, 3))
        directions = _orthonormal(len(mean), random).to(true.device) / (deviation + 1e-3)[:, None]
        theirs = _quantiles(true, mean, directions)
        distances += [(_quantiles(draw, mean, directions) - theirs).square().mean() for draw in own.unbind(1)]
    return torch.stack(distances).mean()


def _orthonormal(channels: int, random: torch.Generator) -> Tensor:
    """Random orthonormal vectors [channels, directions]."""
    vectors: Tensor = torch.linalg.qr(torch.randn(channels, min(channels, DIRECTIONS), generator=random)).Q
    return vectors


def _quantiles(features: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Features [n, c, h, w] → their projections [directions, n h w], each in ascending order."""
    projected = (features.movedim(1, -1).flatten(0, 2) - mean) @ directions
    ordered: Tensor = projected.T.sort(1).values
    return ordered
