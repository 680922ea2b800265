"""The energy score: what a sampler alone can minimise, without a critic.

For X and independent draws G, G' of the same file, E‖X - G‖ - ½ E‖G - G'‖ is least exactly where G follows the
posterior of X: a strictly proper score (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and
estimation", 2007). The first part calls for closeness, the second for variety, and neither has a weight to tune. Of a
whole image it would be blunt; here it is the mean over many small vectors: patches of pixels, patches of frequency
bands, and single features.

Samples are [n, K, c, h, w], K at least 2, and clean images [n, c, h, w], both in 0..1; all is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.torch_ops.colour import rgb_to_ycc
from model.features import Features

PIXELS = (1, 4, 8)
"""Sides of the patches of which each is one vector."""

FEATURE_PLACES = 4
"""Side of the squares over which features are averaged."""

BANDS, BAND_PIXELS = 3, (1, 4)
"""How many band-passes, each an octave below the one before, and the sides of their patches."""


def energy_score(samples: Tensor, clean: Tensor, patch: int = 1) -> Tensor:
    """[n]: the mean over all patches, half overlapping, of `patch` places a side with all their channels; divided by
    that side, so that sizes compare. Raises ValueError for a single sample."""
    count = samples.shape[1]
    if count < 2:
        raise ValueError(f"an energy score takes 2 samples or more for each image, got {list(samples.shape)}")
    return _score(samples.unbind(1), clean, lambda a, b: _distance(a, b, patch))


def _score(draws: Sequence[Tensor], truth: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean distance of the draws from the truth, less half of that between two of them."""
    near = torch.stack([distance(draw, truth) for draw in draws]).mean(0)
    apart = torch.stack([distance(a, b) for a, b in combinations(draws, 2)]).mean(0)
    return near - apart / 2


def _distance(a: Tensor, b: Tensor, patch: int) -> Tensor:
    squares = (a - b).square().sum(1, keepdim=True)
    if patch > 1:
        squares = F.avg_pool2d(squares, patch, patch // 2) * patch**2
    return (squares + 1e-8).sqrt().mean((1, 2, 3)) / patch  # the root's slope at 0 is infinite


def pixel_energy(samples: Tensor, clean: Tensor) -> Tensor:
    """Of pixels and of their band-passes: a third of the sum over all sizes of patches."""
    scores = [energy_score(samples, clean, patch) for patch in PIXELS]
    count = samples.shape[:2]
    bands = zip(band_passes(samples.flatten(0, 1)), band_passes(clean), strict=True)
    for ours, theirs in bands:
        own = ours.unflatten(0, count)
        scores += [energy_score(own, theirs, patch) for patch in BAND_PIXELS]
    return torch.stack(scores).sum(0).mean() / 3


def band_passes(x: Tensor) -> list[Tensor]:
    """[n, c, h, w] → what a blur takes away, the finest octave first, each at half the resolution of the last."""
    bands = []
    for _ in range(BANDS):
        blurred = _blur(_blur(x))
        bands.append(x - blurred)
        x = F.avg_pool2d(blurred, 2)
    return bands


def _blur(x: Tensor) -> Tensor:
    """The mean of 3x3 places. Edges are reflected by slices: the backward pass of F.pad's reflection has no
    deterministic implementation on CUDA."""
    for dim in (2, 3):
        x = torch.cat((x.narrow(dim, 1, 1), x, x.narrow(dim, -2, 1)), dim)
    return F.avg_pool2d(x, 3, 1)


WINDOW, STRIDE = 16, 8
"""Pixels of the sides of the windows whose spectra are compared, and from one to the next."""

FLOOR = 0.25
"""Gray levels squared: power of about that of rounding, below which frequencies do not count."""

FLAT = 4.0
"""Gray levels: a window counts half as much where the luma of the regression's image deviates by so much."""


def spectral_energy(samples: Tensor, clean: Tensor, mean: Tensor) -> Tensor:
    """Of the shape of spectra in flat areas: in windows of Y, Cb and Cr of what is added to the regression's output
    `mean` [n, 3, h, w], how the logarithms of the power at each frequency differ from their mean over all. How strong
    the detail is, is up to the other terms, which feel the faint detail of flat areas too little to give it more than a
    few frequencies: it came as hatching. Windows are weighted by how flat `mean` is there."""
    weights = _flatness(mean)
    draws = [_spectra(draw - mean) for draw in samples.unbind(1)]
    return _score(draws, _spectra(clean - mean), lambda a, b: ((a - b).abs().mean((1, -2, -1)) * weights).sum())


def _flatness(x: Tensor) -> Tensor:
    """[n, 3, h, w] → each window's weight, [n, rows, columns]; their sum is 1."""
    luma = rgb_to_ycc(*(255 * x).unbind(1))[0]
    weights = 1 / (1 + _windows(luma).var((-2, -1)) / FLAT**2)
    return weights / weights.sum()


def _spectra(x: Tensor) -> Tensor:
    """[n, 3, h, w] → [n, 3, rows, columns of windows, 16, 9]."""
    windows = _windows(torch.stack(rgb_to_ycc(*(255 * x).unbind(1)), 1))
    hann = torch.hann_window(WINDOW, device=x.device)
    windows = (windows - windows.mean((-2, -1), keepdim=True)) * hann * hann[:, None]
    power = torch.view_as_real(torch.fft.rfft2(windows)).square().sum(-1) / hann.square().sum() ** 2
    logs = (power + FLOOR).log()
    return logs - logs.mean((-2, -1), keepdim=True)


def _windows(x: Tensor) -> Tensor:
    """[..., h, w] → [..., rows, columns, 16, 16], a view."""
    return x.unfold(-2, WINDOW, STRIDE).unfold(-2, WINDOW, STRIDE)


def feature_energy(samples: Tensor, clean: Tensor, network: Features) -> Tensor:
    """Of a frozen network's features, each channel by itself, at each place and averaged over 4x4 places: the mean over
    levels, channels and both. In one dimension the score feels the whole distribution, in many hardly more than mean
    and variance. Channels are measured by their deviation in the clean images at hand, so that a batch in parts is not
    quite the whole one."""
    count = samples.shape[:2]
    ours = network.levels(samples.flatten(0, 1))
    with torch.no_grad():
        theirs = network.levels(clean)
    scores = []
    for own, true in zip(ours, theirs, strict=True):
        for side in (1, FEATURE_PLACES):
            scores.append(
                _channel_energy(_averaged(own.float(), side).unflatten(0, count), _averaged(true.float(), side))
            )
    return torch.stack(scores).mean()


def _averaged(x: Tensor, side: int) -> Tensor:
    """Over squares of `side` places, or over all where there are not two of them."""
    return F.avg_pool2d(x, side if min(x.shape[2:]) >= 2 * side or side == 1 else list(x.shape[2:]))


def _channel_energy(samples: Tensor, clean: Tensor) -> Tensor:
    deviation = clean.std((0, 2, 3), keepdim=True) + 1e-3
    draws = [draw / deviation for draw in samples.unbind(1)]
    return _score(draws, clean / deviation, lambda a, b: (a - b).abs().mean())
