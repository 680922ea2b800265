"""The distance between the distributions of features of samples and of originals, whatever and wherever they are.

Over all images and files, samples of the posterior have the distribution of natural images (arXiv 2211.11827, theorem
2). An energy score compares samples with the original at the same position and responds little to texture that is too
weak or of the wrong kind, as most of what it sees cannot be predicted. Here positions do not matter, so that nothing
hides the difference. It says nothing about the file: it must be used with terms that do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.distributed import to_device
from train.objectives.energy_score import channel_moments, score

DIRECTIONS = 32
"""Random projections of each level's features, at most as many as it has channels."""

POSITIONS = 4096
"""Maximum number of positions compared in each level. 8 crops of 96x96 pixels have 4.5 times as many at half their
resolution."""


def sliced_wasserstein(samples: Sequence[Tensor], clean: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """The squared 2-Wasserstein distance of the distributions of features of one level over all images and positions,
    or over random ones if there are many, projected onto random orthonormal directions (Rabin et al., "Wasserstein
    barycenter and its application to texture mixing", 2011): the mean over directions, samples and levels, minus half
    that of two samples. A scalar.

    It is, in expectation, the squared difference of the originals' quantiles and the samples' expected ones. Without
    the second term it is not: of finite sets, the distance is least for samples that vary less than the originals.

    samples: levels [n, K, c, h, w], K at least 2. clean: levels [n, c, h, w]. random: a generator on the CPU. Channels
    are normalised by their mean and standard deviation in all images given (`channel_moments`)."""
    distances = []
    for own, true in zip(samples, clean, strict=True):
        mean, deviation = channel_moments(own, true)
        directions = to_device(_orthonormal(len(mean), random), true.device) / (deviation + 1e-3)[:, None]
        positions = to_device(torch.randperm(true[:, 0].numel(), generator=random)[:POSITIONS], true.device)
        theirs = _quantiles(true, positions, mean, directions)
        ours = [_quantiles(draw, positions, mean, directions) for draw in own.unbind(1)]
        distances.append(score(ours, theirs, lambda a, b: (a - b).square().mean()))
    return torch.stack(distances).mean()


def _orthonormal(channels: int, random: torch.Generator) -> Tensor:
    """Random orthonormal vectors [channels, directions]."""
    vectors: Tensor = torch.linalg.qr(torch.randn(channels, min(channels, DIRECTIONS), generator=random)).Q
    return vectors


def _quantiles(features: Tensor, positions: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Features [n, c, h, w] → their projections at some of the n h w positions, [directions, len(positions)], each in
    ascending order."""
    projected = (features.movedim(1, -1).flatten(0, 2)[positions] - mean) @ directions
    return _sorted(projected.T.contiguous())


def _sorted(rows: Tensor) -> Tensor:
    """Each row in ascending order. On a CPU by NumPy, whose vectorised sort is some ten times as fast as PyTorch's."""
    if rows.device.type != "cpu":
        return rows.sort(1).values
    return rows.gather(1, torch.from_numpy(np.argsort(rows.detach().numpy(), axis=1)))
