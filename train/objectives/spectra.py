"""Losses of the spectra of flat areas, where texture that is too regular or too weak is seen first.

Both take windows of Y, Cb and Cr of the difference to the regression's output, weighted by how flat that output is
there. Samples are [n, K, 3, h, w] and clean images and regression outputs [n, 3, h, w], float32 in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.torch_ops.colour import rgb_to_ycc
from train.objectives.energy_score import score

WINDOW, STRIDE = 16, 8
"""Height and width of the windows whose spectra are compared, and the step from one to the next, in pixels."""

ROUNDING = 0.25
"""Gray levels squared, added to the power of a window: about that of rounding errors, so that weaker frequencies have
no influence."""

TINY = 1e-4
"""Gray levels squared, added to a mean power, so that its logarithm is finite."""

FLAT = 4.0
"""Gray levels. A window in which the luma of the regression's image has this standard deviation has half the weight of
a flat one."""


def spectral_energy(samples: Tensor, clean: Tensor, mean: Tensor) -> Tensor:
    """The energy score of the shape of spectra. A scalar.

    Takes the logarithm of each window's power at every frequency minus its mean over frequencies. The strength of
    detail is left to the other terms; their gradient in flat areas is too weak to shape its spectrum, which without
    this term was concentrated in a few frequencies and visible as hatching."""
    weights = _flatness(mean)

    def shapes(x: Tensor) -> Tensor:
        logs = (_power(x - mean) + ROUNDING).log()
        return logs - logs.mean((-2, -1), keepdim=True)

    draws = [shapes(draw) for draw in samples.unbind(1)]
    return score(draws, shapes(clean), lambda a, b: ((a - b).abs().mean((1, -2, -1)) * weights).sum())


def power_difference(samples: Tensor, clean: Tensor, mean: Tensor) -> Tensor:
    """The squared difference between the logarithms of the power of the samples and of the clean images, each the
    weighted mean over all images and windows: the mean over frequencies and channels. A scalar.

    Detail of flat areas hardly changes an image's features, hence is weaker than the originals' without this term."""
    weights = _flatness(mean)[:, None, :, :, None, None]

    def level(x: Tensor) -> Tensor:
        return ((_power(x - mean) * weights).sum((0, 2, 3)) + TINY).log()

    true = level(clean)
    return torch.stack([(level(draw) - true).square().mean() for draw in samples.unbind(1)]).mean()


def _flatness(x: Tensor) -> Tensor:
    """[n, 3, h, w] → weights of the windows [n, rows, columns], with a sum of 1."""
    luma = rgb_to_ycc(*(255 * x).unbind(1))[0]
    weights = 1 / (1 + _windows(luma).var((-2, -1)) / FLAT**2)
    return weights / weights.sum()


def _power(x: Tensor) -> Tensor:
    """[n, 3, h, w] → power spectra of the windows of Y, Cb, Cr, gray levels squared, [n, 3, rows, columns, 16, 9]."""
    windows = _windows(torch.stack(rgb_to_ycc(*(255 * x).unbind(1)), 1))
    hann = torch.hann_window(WINDOW, device=x.device)
    windows = (windows - windows.mean((-2, -1), keepdim=True)) * hann * hann[:, None]
    power: Tensor = torch.view_as_real(torch.fft.rfft2(windows)).square().sum(-1) / hann.square().sum() ** 2
    return power


def _windows(x: Tensor) -> Tensor:
    """[..., h, w] → [..., rows, columns, 16, 16], a view."""
    return x.unfold(-2, WINDOW, STRIDE).unfold(-2, WINDOW, STRIDE)
