"""Losses of the spectra of flat areas, where texture that is too regular or too weak is seen first.

Both take windows of Y, Cb and Cr of the difference to the regression's output, weighted by how flat that output is
there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.tables import constant
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


class FlatSpectra(NamedTuple):
    """Power spectra of the windows, gray levels squared, [n, 3, rows, columns, 16, 9] each."""

    samples: list[Tensor]  # K of them
    clean: Tensor
    weights: Tensor  # flatness of the windows [n, rows, columns], with a sum of 1


def flat_spectra(samples: Tensor, clean: Tensor, mean: Tensor) -> FlatSpectra:
    """samples: [n, K, 3, h, w]. clean, mean: [n, 3, h, w], the clean images and the regression's output. All float32,
    0..1."""
    return FlatSpectra([_power(draw - mean) for draw in samples.unbind(1)], _power(clean - mean), _flatness(mean))


def spectral_energy(spectra: FlatSpectra) -> Tensor:
    """The energy score of the shape of spectra. A scalar.

    Takes the logarithm of each window's power at every frequency minus its mean over frequencies. The strength of
    detail is left to the other terms; their gradient in flat areas is too weak to shape its spectrum, which without
    this term was concentrated in a few frequencies and visible as hatching."""

    def shape(power: Tensor) -> Tensor:
        logs = (power + ROUNDING).log()
        return logs - logs.mean((-2, -1), keepdim=True)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).abs().mean((1, -2, -1)) * spectra.weights).sum()

    return score([shape(draw) for draw in spectra.samples], shape(spectra.clean), distance)


def power_difference(spectra: FlatSpectra) -> Tensor:
    """The squared difference between the logarithms of the power of the samples and of the clean images, each the
    weighted mean over all images and windows: the mean over frequencies and channels, minus half that of two samples.
    A scalar.

    Detail of flat areas hardly changes an image's features, hence is weaker than the originals' without this term."""
    weights = spectra.weights[:, None, :, :, None, None]

    def level(power: Tensor) -> Tensor:
        return ((power * weights).sum((0, 2, 3)) + TINY).log()

    levels = [level(draw) for draw in spectra.samples]
    return score(levels, level(spectra.clean), lambda a, b: (a - b).square().mean())


def _flatness(x: Tensor) -> Tensor:
    """[n, 3, h, w] → weights of the windows [n, rows, columns], with a sum of 1."""
    luma = rgb_to_ycc(*(255 * x).unbind(1))[0]
    weights = 1 / (1 + _windows(luma).var((-2, -1)) / FLAT**2)
    return weights / weights.sum()


def _power(x: Tensor) -> Tensor:
    """[n, 3, h, w] → power spectra of the windows of Y, Cb, Cr, gray levels squared, [n, 3, rows, columns, 16, 9]."""
    windows = _windows(torch.stack(rgb_to_ycc(*(255 * x).unbind(1)), 1)).flatten(-2)
    real, imaginary = (windows @ part for part in _fourier(x.device))
    power: Tensor = (real.square() + imaginary.square()).unflatten(-1, (WINDOW, WINDOW // 2 + 1))
    return power


@constant
def _fourier(device: torch.device | str = "cpu") -> Tensor:
    """[2, 256, 144]: real and imaginary part of the spectrum of a window minus its mean under a Hann window, scaled so
    that powers are in the window's units squared. A product of matrices is several times as fast as these steps."""
    hann = torch.hann_window(WINDOW, dtype=torch.float64)
    unit = torch.eye(WINDOW**2, dtype=torch.float64).unflatten(1, (WINDOW, WINDOW))
    windows = (unit - unit.mean((-2, -1), keepdim=True)) * hann * hann[:, None]
    spectra = torch.view_as_real(torch.fft.rfft2(windows) / hann.square().sum())
    return spectra.flatten(1, 2).movedim(2, 0).float().contiguous().to(device)


def _windows(x: Tensor) -> Tensor:
    """[..., h, w] → [..., rows, columns, 16, 16], a view."""
    return x.unfold(-2, WINDOW, STRIDE).unfold(-2, WINDOW, STRIDE)
