"""Energy scores, which train a sampler without a critic.

For X and independent samples G, G' of the same file, E‖X - G‖ - ½ E‖G - G'‖ is minimal exactly where G follows the
posterior of X: a strictly proper score (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and
estimation", 2007). The first term rewards accuracy, the second diversity, without a weight to tune. On whole images it
discriminates poorly; here it is the mean over many small vectors: patches of pixels, patches of frequency bands, and
single features.

Samples are [n, K, c, h, w] with K at least 2, and clean images [n, c, h, w], both float32 in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.features import Features

PIXELS = (1, 4, 8)
"""Heights and widths of the patches, in pixels; each patch is one vector."""

FEATURE_WINDOW = 4
"""Height and width of the windows over which features are averaged, in positions of the feature map."""

BANDS, BAND_PIXELS = 3, (1, 4)
"""Number of band-passes, each an octave below the one before, and the heights and widths of their patches."""


def energy_score(samples: Tensor, clean: Tensor, sides: Sequence[int] = (1,)) -> Tensor:
    """[n]: the energy score of each image, the sum over `sides`, heights and widths of square patches, of the mean over
    such patches with all their channels, at a stride of half a patch. Distances are divided by the side to make sizes
    comparable.

    Raises ValueError for a single sample."""
    count = samples.shape[1]
    if count < 2:
        raise ValueError(f"the energy score needs 2 samples or more for each image, got {list(samples.shape)}")
    return score(samples.unbind(1), clean, lambda a, b: _distance(a, b, sides))


def score(draws: Sequence[Tensor], truth: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean distance of the samples to the truth minus half the mean distance between two samples."""
    to_truth = torch.stack([distance(draw, truth) for draw in draws]).mean(0)
    between = torch.stack([distance(a, b) for a, b in combinations(draws, 2)]).mean(0)
    return to_truth - between / 2


def _distance(a: Tensor, b: Tensor, sides: Sequence[int]) -> Tensor:
    """[n, c, h, w] twice → the mean Euclidean distance of patches divided by their side, the sum over sides [n]."""
    squares, total = (a - b).square().sum(1, keepdim=True), []
    for side in sides:
        patches = F.avg_pool2d(squares, side, side // 2) * side**2 if side > 1 else squares
        total.append((patches + 1e-8).sqrt().mean((1, 2, 3)) / side)  # the gradient of the root is infinite at 0
    return torch.stack(total).sum(0)


def pixel_energy(samples: Tensor, clean: Tensor) -> Tensor:
    """The energy scores of pixels and of their band-passes: a third of the sum over all patch sizes. A scalar."""
    scores, count = [energy_score(samples, clean, PIXELS)], samples.shape[:2]
    for ours, theirs in zip(band_passes(samples.flatten(0, 1)), band_passes(clean), strict=True):
        scores.append(energy_score(ours.unflatten(0, count), theirs, BAND_PIXELS))
    return torch.stack(scores).sum(0).mean() / 3


def band_passes(x: Tensor) -> list[Tensor]:
    """[n, c, h, w] → band-passes (image minus blur), the finest octave first, each at half the resolution of the
    last."""
    bands = []
    for _ in range(BANDS):
        blurred = _blur(_blur(x))
        bands.append(x - blurred)
        x = F.avg_pool2d(blurred, 2)
    return bands


def _blur(x: Tensor) -> Tensor:
    """3x3 box filter. Edges are reflected by slicing: the backward pass of F.pad's reflection has no deterministic
    implementation on CUDA. Sums of slices are several times as fast on a CPU as F.avg_pool2d."""
    for dim in (2, 3):
        size = x.shape[dim]
        x = torch.cat((x.narrow(dim, 1, 1), x, x.narrow(dim, -2, 1)), dim)
        x = (x.narrow(dim, 0, size) + x.narrow(dim, 1, size) + x.narrow(dim, 2, size)) / 3
    return x


def feature_energy(samples: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    """The energy score of features, for each channel separately, at each position and averaged over 4x4 positions: the
    mean over levels, channels and both. A scalar.

    samples: levels [n, K, c, h, w]. clean: levels [n, c, h, w]. See `feature_levels`.

    In one dimension the score is sensitive to the whole distribution, in many to little more than mean and variance.
    Channels are divided by their standard deviation in the images given (`channel_moments`), so that the mean over
    micro-batches is not exactly the score of the whole batch."""
    scores = []
    for own, true in zip(samples, clean, strict=True):
        for side in (1, FEATURE_WINDOW):
            averaged, expected = _averaged(own.flatten(0, 1), side), _averaged(true, side)
            scores.append(_channel_energy(averaged.unflatten(0, own.shape[:2]), expected))
    return torch.stack(scores).mean()


def feature_levels(samples: Tensor, clean: Tensor, network: Features) -> tuple[list[Tensor], list[Tensor]]:
    """A frozen network's features, float32: levels [n, K, c, h, w] of the samples and [n, c, h, w] of the clean images.
    Gradients flow to the samples."""
    ours = [level.float().unflatten(0, samples.shape[:2]) for level in network.levels(samples.flatten(0, 1))]
    with torch.no_grad():
        theirs = [level.float() for level in network.levels(clean)]
    return ours, theirs


def channel_moments(samples: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations [c] of the channels of samples [n, K, c, h, w] and clean images [n, c, h, w]
    together, without a gradient, to normalise both.

    By those of the clean images alone, the ones with more detail than samples would count less, and losses be least
    for samples with too little. On a CPU several times as fast as torch.std_mean."""
    images = torch.cat((samples.detach().flatten(0, 1), clean))
    rows = images.movedim(1, -1).flatten(0, 2)
    mean = rows.mean(0)
    return mean, ((rows - mean).square().sum(0) / (len(rows) - 1)).sqrt()


def _averaged(x: Tensor, side: int) -> Tensor:
    """The mean over windows of side x side positions, or over all positions if fewer than two windows fit."""
    if side == 1:
        return x
    return F.avg_pool2d(x, side if min(x.shape[2:]) >= 2 * side else list(x.shape[2:]))


def _channel_energy(samples: Tensor, clean: Tensor) -> Tensor:
    """The energy score of features [n, K, c, h, w] against [n, c, h, w], each a vector of one dimension. A scalar."""
    deviation = channel_moments(samples, clean)[1][:, None, None] + 1e-3
    draws = [draw / deviation for draw in samples.unbind(1)]
    return score(draws, clean / deviation, lambda a, b: (a - b).abs().mean())
