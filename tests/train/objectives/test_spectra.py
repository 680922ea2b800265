"""The losses of spectra against NumPy, and what they do and do not see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.objectives.spectra import flat_spectra, power_difference, spectral_energy

CORNERS = [(i, j) for i in (0, 8) for j in (0, 8, 16, 24)]


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def images():
    """Three samples, a clean image and the regression's output, which is flatter at the left."""
    return rand(1, 3, 3, 24, 40), rand(1, 3, 24, 40, seed=1), torch.linspace(0, 0.1, 40) * rand(1, 3, 24, 40, seed=2)


def flatness(mean):
    luma = np.tensordot([0.299, 0.587, 0.114], 255 * mean[0].double().numpy(), 1)
    weights = np.array([1 / (1 + luma[i : i + 16, j : j + 16].var(ddof=1) / 16) for i, j in CORNERS])
    return weights / weights.sum()


def power(x):
    """[3, windows, 16, 9]."""
    x = x.double().numpy()[0] * 255
    luma = np.tensordot([0.299, 0.587, 0.114], x, 1)
    hann = np.sin(np.pi * np.arange(16) / 16) ** 2
    found = []
    for plane in (luma, (x[2] - luma) / 1.772, (x[0] - luma) / 1.402):
        windows = np.stack([plane[i : i + 16, j : j + 16] for i, j in CORNERS])
        windows = (windows - windows.mean((1, 2), keepdims=True)) * np.outer(hann, hann)
        found.append(np.abs(np.fft.rfft2(windows)) ** 2 / (hann**2).sum() ** 2)
    return np.stack(found)


def test_the_score_is_that_of_its_definition():
    samples, clean, mean = images()

    def shapes(x):
        logs = np.log(power(x - mean) + 0.25)
        return logs - logs.mean((2, 3), keepdims=True)

    def distance(a, b):
        return np.abs(a - b).mean((0, 2, 3)) @ flatness(mean)

    truth, own = shapes(clean), [shapes(samples[:, k]) for k in range(3)]
    near = np.mean([distance(x, truth) for x in own])
    apart = np.mean([distance(own[k], own[m]) for k in range(3) for m in range(k)])
    assert float(spectral_energy(flat_spectra(samples, clean, mean))) == pytest.approx(near - apart / 2, rel=1e-4)


def test_the_difference_of_powers_is_that_of_its_definition():
    samples, clean, mean = images()

    def level(x):
        return np.log(np.einsum("cwij,w->cij", power(x - mean), flatness(mean)) + 1e-4)

    own = [level(samples[:, k]) for k in range(3)]
    near = np.mean([(x - level(clean)) ** 2 for x in own])
    apart = np.mean([(own[k] - own[m]) ** 2 for k in range(3) for m in range(k)])
    assert float(power_difference(flat_spectra(samples, clean, mean))) == pytest.approx(near - apart / 2, rel=1e-4)


def faint(n, deviation, blur, random):
    """[n, 3, 32, 32]: noise around 0.5, white or blurred."""
    z = torch.randn(n, 3, 33, 33, generator=random)
    return 0.5 + deviation * (F.avg_pool2d(z, 2, 1) * 2 if blur else z[..., :32, :32])


def loss(of, deviation, blur):
    """Of many samples, for truths of blurred noise of deviation 0.02."""
    random = torch.Generator().manual_seed(5)
    samples = faint(128, deviation, blur, random).unflatten(0, (64, 2))
    return float(of(flat_spectra(samples, faint(64, 0.02, True, random), torch.full((64, 3, 32, 32), 0.5))))


def test_the_score_is_least_for_the_truths_own_spectrum_however_faint():
    assert loss(spectral_energy, 0.02, False) > loss(spectral_energy, 0.02, True) + 0.05
    assert loss(spectral_energy, 0.04, True) < loss(spectral_energy, 0.02, False) - 0.05  # strength costs little


def test_the_difference_of_powers_is_least_for_the_truths_own_strength_and_spectrum():
    best = loss(power_difference, 0.02, True)
    assert best < 0.01
    for deviation, blur in ((0.018, True), (0.022, True), (0.02, False)):
        assert loss(power_difference, deviation, blur) > best + 0.02


def test_a_gradient_alone_leads_to_the_truths_strength():
    strength, random = torch.tensor(0.005, requires_grad=True), torch.Generator().manual_seed(7)
    optimiser, flat = torch.optim.Adam([strength], 5e-4), torch.full((8, 3, 32, 32), 0.5)
    for _ in range(100):
        samples = 0.5 + strength * torch.randn(8, 2, 3, 32, 32, generator=random)
        optimiser.zero_grad()
        power_difference(flat_spectra(samples, faint(8, 0.02, False, random), flat)).backward()
        optimiser.step()
    assert strength.item() == pytest.approx(0.02, rel=0.1)
