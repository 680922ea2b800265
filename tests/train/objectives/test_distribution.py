"""The sliced Wasserstein distance of features against NumPy's order statistics, and what it does and does not see."""

from itertools import combinations

import numpy as np
import pytest
import torch

from train.objectives.distribution import DIRECTIONS, POSITIONS, sliced_wasserstein
from train.objectives.energy_score import feature_energy


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator():
    return torch.Generator().manual_seed(9)


def distance(samples, clean):
    return float(sliced_wasserstein([samples], [clean], generator()))


def test_it_is_that_of_its_definition():
    """Of two levels, one with more positions than are compared, one with more channels than directions."""
    clean = [3 + normal(2, 5, 64, 40), normal(2, DIRECTIONS + 8, 3, 3, seed=1)]
    samples = [normal(2, 3, *x.shape[1:], seed=2 + n) for n, x in enumerate(clean)]
    random, expected = generator(), []
    for own, true in zip(samples, clean, strict=True):
        channels = true.shape[1]
        drawn = torch.randn(channels, min(channels, DIRECTIONS), generator=random)
        vectors = np.linalg.qr(drawn.double().numpy())[0]
        chosen = torch.randperm(true[:, 0].numel(), generator=random).numpy()[:POSITIONS]
        truth, *draws = (x.double().numpy().transpose(0, 2, 3, 1).reshape(-1, channels) for x in (true, *own.unbind(1)))
        together = np.concatenate((truth, *draws))
        normaliser = vectors / (together.std(0, ddof=1) + 1e-3)[:, None]
        truth, *draws = (np.sort((x[chosen] - together.mean(0)) @ normaliser, 0) for x in (truth, *draws))
        near = np.mean([(draw - truth) ** 2 for draw in draws])
        apart = np.mean([(a - b) ** 2 for a, b in combinations(draws, 2)])
        expected.append(near - apart / 2)
    assert float(sliced_wasserstein(samples, clean, generator())) == pytest.approx(np.mean(expected), rel=1e-4)


def test_positions_and_images_do_not_matter():
    clean = normal(2, 8, 6, 6)
    moved = clean.flip(0).roll((2, 1), (2, 3))
    assert distance(torch.stack((clean, moved), 1), clean) < 1e-10


def test_it_sees_a_correlation_of_channels():
    """Each channel alone has the originals' distribution."""
    clean = normal(2, 1, 64, 64).expand(-1, 4, -1, -1)
    assert distance(normal(2, 2, 1, 64, 64, seed=2).expand(-1, -1, 4, -1, -1), clean) < 0.02
    assert distance(normal(2, 2, 4, 64, 64, seed=1), clean) > 0.2


def energy(samples, clean, random):
    return feature_energy(samples, clean)


@pytest.mark.parametrize(("loss", "side"), [(sliced_wasserstein, 5), (energy, 8)])
def test_of_few_positions_it_is_least_for_the_originals_strength(loss, side):
    """So is the energy score of features. From noise at other places than the originals'; strong and weak images."""
    slopes = []
    for strength in (0.8, 1.0, 1.25):
        factor, random = torch.tensor(strength, requires_grad=True), torch.Generator().manual_seed(3)
        for _ in range(500):
            image = 1 + torch.rand(1, 1, 1, 1, generator=random)
            clean, noise = (torch.randn(1, *n, side, side, generator=random) * image for n in ((3,), (2, 3)))
            loss([factor * noise], [clean], random).backward()
        slopes.append(factor.grad.item() / 500)
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.15 * (slopes[2] - slopes[0])
