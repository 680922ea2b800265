"""The Fréchet distance against closed forms."""

import pytest
import torch

from train.frechet import FeatureMoments, gaussian_distance


def features(images, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, width, generator=generator, dtype=torch.float64)


def moments(*batches):
    found = FeatureMoments()
    for batch in batches:
        found.add(batch)
    return found


def frechet_distance(first, second):
    return moments(first).distance(moments(second))


def rotation(width, seed=0):
    return torch.linalg.qr(features(width, width, seed)).Q


def test_gaussians_with_diagonal_covariance():
    """|m - m'|² + Σ (s - s')²."""
    mean, other_mean = features(2, 40)
    deviation, other_deviation = features(2, 40, seed=1).abs()
    deviation[:5] = 0
    expected = (mean - other_mean).square().sum() + (deviation - other_deviation).square().sum()
    found = gaussian_distance(mean, deviation.square().diag(), other_mean, other_deviation.square().diag())
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_commuting_covariances():
    mean, turn = torch.zeros(40, dtype=torch.float64), rotation(40)
    deviation, other_deviation = features(2, 40, seed=1).abs()
    covariances = [turn * d.square() @ turn.T for d in (deviation, other_deviation)]
    found = gaussian_distance(mean, covariances[0], mean, covariances[1])
    assert found == pytest.approx(float((deviation - other_deviation).square().sum()), rel=1e-9)


def test_covariances_of_two_dimensions_that_do_not_commute():
    """tr (A B)^1/2 = (tr A B + 2 (det A B)^1/2)^1/2."""
    first, second = ((x @ x.T) for x in (features(2, 2, seed=3), features(2, 2, seed=4)))
    product, mean = first @ second, torch.zeros(2, dtype=torch.float64)
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = first.trace() + second.trace() - 2 * cross
    assert gaussian_distance(mean, first, mean, second) == pytest.approx(float(expected), rel=1e-9)


def test_mean_and_covariance_of_a_set():
    x = features(9, 4)
    mean, covariance = moments(x[:5].float(), x[5:].float()).gaussian()
    assert covariance.dtype == torch.float64
    assert torch.allclose(mean, x.mean(0), atol=1e-6)
    assert torch.allclose(covariance, torch.cov(x.T), atol=1e-6)


@pytest.mark.parametrize("images", [2000, 100])
def test_sets_as_large_as_evaluation_has_them(images):
    """Also with fewer images than features, where the covariance is singular. A shift and a scaling are known exactly:
    scaled by a about the mean, a set is at (1 - a)² tr S."""
    x = features(images, 320) @ torch.diag(torch.logspace(-4, 1, 320, dtype=torch.float64)) @ rotation(320).T
    mean, covariance = moments(x).gaussian()
    total = float(covariance.trace())
    assert frechet_distance(x, x) <= 1e-6 * total
    assert frechet_distance(x, x.flip(0)) <= 1e-6 * total
    assert frechet_distance(x, x + 0.3) == pytest.approx(320 * 0.3**2, rel=1e-6, abs=1e-6 * total)
    scaled = mean + 1.5 * (x - mean)
    assert frechet_distance(x, scaled) == pytest.approx(0.25 * total, rel=1e-5)
    assert frechet_distance(scaled, x) == pytest.approx(frechet_distance(x, scaled), rel=1e-5)


def test_a_set_of_one_has_no_distance():
    assert frechet_distance(features(1, 3), features(5, 3)) is None
    assert frechet_distance(features(5, 3), features(0, 3)) is None
