"""The sliced Wasserstein distance of features against NumPy's order statistics, and what it does and does not see."""

import numpy as np
import pytest
import torch

from train.objectives.distribution import DIRECTIONS, POSITIONS, sliced_wasserstein


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
        positions = torch.randperm(true[:, 0].numel(), generator=random).numpy()[:POSITIONS]

        def projected(x, true=true, vectors=vectors, positions=positions):
            x, true = (y.double().numpy().transpose(0, 2, 3, 1).reshape(-1, y.shape[1]) for y in (x, true))
            return np.sort((x[positions] - true.mean(0)) / (true.std(0, ddof=1) + 1e-3) @ vectors, 0)

        expected.append(np.mean([(projected(own[:, k]) - projected(true)) ** 2 for k in range(3)]))
    assert float(sliced_wasserstein(samples, clean, generator())) == pytest.approx(np.mean(expected), rel=1e-4)


def test_positions_and_images_do_not_matter():
    clean = normal(2, 8, 6, 6)
    moved = clean.flip(0).roll((2, 1), (2, 3))
    assert distance(torch.stack((clean, moved), 1), clean) < 1e-10


def test_it_sees_a_correlation_of_channels():
    """Each channel alone has the originals' distribution."""
    clean = normal(2, 1, 64, 64).expand(-1, 4, -1, -1)
    assert distance(normal(2, 1, 1, 64, 64, seed=2).expand(-1, -1, 4, -1, -1), clean) < 0.02
    assert distance(normal(2, 1, 4, 64, 64, seed=1), clean) > 0.2


def test_its_gradient_leads_to_the_originals_texture():
    """From noise of half the deviation, at places of its own."""
    strength = torch.tensor(0.5, requires_grad=True)
    optimiser = torch.optim.Adam([strength], 2e-2)
    for step in range(100):
        clean, noise = normal(4, 3, 16, 16, seed=2 * step), normal(4, 2, 3, 16, 16, seed=2 * step + 1)
        optimiser.zero_grad()
        sliced_wasserstein([strength * noise], [clean], generator()).backward()
        optimiser.step()
    assert strength.item() == pytest.approx(1, abs=0.05)
