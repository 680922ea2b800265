"""The energy score against its definition in float64, and what it is for: it is least where the samples' distribution
is the truth's, and its gradient alone leads there."""

import numpy as np
import pytest
import torch

from model.features import EfficientNetLite0
from train.objectives.energy_score import (
    BANDS,
    band_passes,
    energy_score,
    feature_energy,
    feature_levels,
    pixel_energy,
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sides", [(1,), (1, 4)])
@pytest.mark.parametrize("draws", [2, 3])
def test_the_score_is_that_of_its_definition(sides, draws):
    samples, clean = rand(2, draws, 3, 12, 10), rand(2, 3, 12, 10, seed=1)

    def vectors(x, patch):
        step = max(1, patch // 2)
        x = x.double().numpy()
        corners = [(i, j) for i in range(0, 12 - patch + 1, step) for j in range(0, 10 - patch + 1, step)]
        return np.stack([x[..., i : i + patch, j : j + patch].reshape(*x.shape[:-2], -1) for i, j in corners], -2)

    def distance(a, b):
        return np.sqrt(((a - b) ** 2).sum((-3, -1))).mean()

    expected = 0
    for side in sides:
        truth, own = vectors(clean, side), vectors(samples, side)
        near = np.mean([distance(own[:, k], truth) for k in range(draws)])
        apart = np.mean([distance(own[:, k], own[:, m]) for k in range(draws) for m in range(k)])
        expected += (near - apart / 2) / side
    assert float(energy_score(samples, clean, sides).mean()) == pytest.approx(expected, rel=1e-4)


def test_one_sample_has_no_energy_score():
    with pytest.raises(ValueError, match="2 samples or more"):
        energy_score(rand(2, 1, 3, 8, 8), rand(2, 3, 8, 8))


def scores(mean, deviation, correlated):
    """Of many samples, for truths whose neighbouring pixels are equal, mean 0.5, deviation 0.1."""
    random = torch.Generator().manual_seed(5)

    def draw(n, same):
        z = torch.randn(n, 3, 32, 32, generator=random)
        return z.repeat_interleave(2, 3)[..., :32] if same else z

    clean = 0.5 + 0.1 * draw(64, True)
    samples = mean + deviation * draw(128, correlated).unflatten(0, (64, 2))
    return float(pixel_energy(samples, clean))


def test_it_is_least_for_the_truths_own_distribution():
    best = scores(0.5, 0.1, True)
    for other in ((0.53, 0.1, True), (0.5, 0.08, True), (0.5, 0.125, True), (0.5, 0.0, True), (0.5, 0.1, False)):
        assert scores(*other) > best + 2e-4, other


def test_its_gradient_leads_to_the_posterior():
    """X given Y is Y plus noise of deviation 0.1: from a sampler with a bias and almost no variety."""
    random = torch.Generator().manual_seed(6)
    shift, spread = torch.tensor(0.1, requires_grad=True), torch.tensor(0.01, requires_grad=True)
    optimiser = torch.optim.Adam([shift, spread], 5e-3)
    for _ in range(150):
        known = torch.rand(8, 3, 16, 16, generator=random)
        clean = known + 0.1 * torch.randn(8, 3, 16, 16, generator=random)
        samples = known[:, None] + shift + spread * torch.randn(8, 2, 3, 16, 16, generator=random)
        optimiser.zero_grad()
        pixel_energy(samples, clean).backward()
        optimiser.step()
    assert abs(shift.item()) < 0.01
    assert spread.item() == pytest.approx(0.1, abs=0.015)


def test_band_passes_see_no_constant_and_halve():
    bands = band_passes(torch.full((1, 3, 32, 48), 0.3))
    assert [tuple(band.shape[2:]) for band in bands] == [(32 >> n, 48 >> n) for n in range(BANDS)]
    assert all(band.abs().max() < 1e-6 for band in bands)
    fine = torch.zeros(1, 1, 32, 32)
    fine[..., ::2] = 1
    first, *others = band_passes(fine)
    assert first.std() > 10 * others[0].std()


def test_energy_of_features():
    network = EfficientNetLite0.load()
    clean = rand(2, 3, 64, 64)
    levels = network.levels(clean)
    assert torch.equal(levels[-1], network(clean))
    assert [level.shape[2] for level in levels] == [32, 32, 16, 8, 4, 4]
    exact = float(feature_energy(*feature_levels(torch.stack((clean, clean), 1), clean, network)))
    samples = torch.stack([clean + 0.1 * torch.randn(clean.shape) for _ in range(2)], 1).requires_grad_()
    score = feature_energy(*feature_levels(samples, clean, network))
    score.backward()
    assert abs(exact) < 1e-3
    assert float(score.detach()) > 0.05
    assert samples.grad.abs().sum() > 0


def test_features_of_one_small_crop_have_a_finite_score():
    """Its coarsest level has fewer positions than two windows, which leaves one mean without a deviation."""
    levels = [rand(1, 2, 5, side, side) for side in (12, 6)]
    assert torch.isfinite(feature_energy(levels, [rand(1, 5, side, side, seed=1) for side in (12, 6)]))
