"""The losses against their formulas in float64."""

import numpy as np
import pytest
import reference
import torch
from jpegs import photograph

from kernels import Subsampling, encode, project, quality_to_tables
from model.critic import Critic, CriticConfig
from train.objectives.losses import (
    REGRESSION_LOSSES,
    consistency,
    critic_loss,
    first_moment,
    generator_loss,
    log_mse,
    mse,
    perceptual,
    r1,
    second_moment,
)

RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.random((6, 3, 16, 24))
RESTORED = CLEAN + RANDOM.normal(0, 1, CLEAN.shape) * np.array([0, 0.003, 0.01, 0.05, 0.2, 0.5])[:, None, None, None]
SAMPLES = CLEAN[:, None] + RANDOM.normal(0, 0.1, (6, 5, *CLEAN.shape[1:]))
LOGITS = RANDOM.normal(0, 3, (2, 7))


def tensors():
    return torch.tensor(RESTORED, dtype=torch.float32, requires_grad=True), torch.tensor(CLEAN, dtype=torch.float32)


def float32(array):
    return torch.tensor(array, dtype=torch.float32)


def test_mse_is_the_mean_over_all_elements():
    assert mse(*tensors()).item() == pytest.approx(np.mean((RESTORED - CLEAN) ** 2), rel=1e-5)


def test_log_mse_is_the_mean_over_images_of_the_logarithm():
    expected = np.mean([np.log(np.mean((r - c) ** 2) + 1e-4) for r, c in zip(RESTORED, CLEAN, strict=True)])
    assert log_mse(*tensors()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", REGRESSION_LOSSES)
def test_they_are_least_and_flat_where_the_image_is_right(name):
    _, clean = tensors()
    right = clean.clone().requires_grad_()
    loss = REGRESSION_LOSSES[name](right, clean)
    loss.backward()
    assert not right.grad.any()
    assert all(loss < REGRESSION_LOSSES[name](clean + step, clean) for step in (-0.1, -1e-3, 1e-3, 0.1))


def test_gradients_are_those_of_the_formulas():
    restored, clean = tensors()
    difference = RESTORED - CLEAN
    mse(restored, clean).backward()
    assert np.allclose(restored.grad, 2 * difference / difference.size, rtol=1e-3, atol=1e-9)
    restored.grad = None
    log_mse(restored, clean).backward()
    errors = (difference**2).mean((1, 2, 3), keepdims=True) + 1e-4
    assert np.allclose(restored.grad, 2 * difference / errors / difference.size, rtol=1e-3, atol=1e-6)


def test_v_is_each_players_own_logistic_loss():
    clean, restored = LOGITS
    critic = np.mean(np.log1p(np.exp(-clean))) + np.mean(np.log1p(np.exp(restored)))
    assert critic_loss(float32(clean), float32(restored)).item() == pytest.approx(critic, rel=1e-5)
    generator = np.mean(np.log1p(np.exp(-restored)))
    assert generator_loss(float32(restored)).item() == pytest.approx(generator, rel=1e-5)


def test_v_pulls_logits_apart_and_the_generators_the_other_way():
    clean, restored = (float32(row).requires_grad_() for row in LOGITS)
    critic_loss(clean, restored).backward()
    assert (clean.grad < 0).all()
    assert (restored.grad > 0).all()
    restored.grad = None
    generator_loss(restored).backward()
    assert (restored.grad < 0).all()


def test_v_is_finite_for_the_largest_logits_and_float32_for_bfloat16():
    far = torch.tensor([-3e4, 3e4], dtype=torch.bfloat16)
    for loss, expected in ((critic_loss(far, -far), 3e4), (generator_loss(far), 1.5e4)):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=0.01)


def test_r1_of_a_known_gradient():
    """D(x) = Σ a x² / 2 has the gradient a x."""
    a = torch.tensor(RANDOM.normal(0, 1, CLEAN.shape[1:]), requires_grad=True)
    clean = torch.tensor(CLEAN)
    for gamma in (1.0, 10.0):
        penalty = r1(lambda x: (a * x.square()).flatten(1).sum(1) / 2, clean, gamma)
        squares = (a.detach().numpy() * CLEAN) ** 2
        assert penalty.item() == pytest.approx(gamma / 2 * np.mean(squares.sum((1, 2, 3))), rel=1e-12)
        (gradient,) = torch.autograd.grad(penalty, a)
        assert np.allclose(gradient, gamma * a.detach().numpy() * np.mean(CLEAN**2, axis=0))
    assert not clean.requires_grad


def small_critic(dtype=torch.float64):
    torch.manual_seed(1)
    return Critic(CriticConfig(features=4, most_features=6, halvings=1)).to(dtype)


def test_r1_of_a_critic_by_finite_differences():
    critic, clean, step = small_critic(), torch.tensor(CLEAN[:2, :, :8, :8]), 1e-6
    shifts = step * torch.eye(clean[0].numel(), dtype=torch.float64).reshape(-1, *clean.shape[1:])
    with torch.no_grad():
        slopes = [(critic(image + shifts) - critic(image - shifts)) / (2 * step) for image in clean]
    expected = 3 / 2 * torch.stack([slope.square().sum() for slope in slopes]).mean()
    assert r1(critic, clean, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_r1s_gradient_by_finite_differences_and_a_step_along_it_flattens_the_critic():
    critic, clean, step = small_critic(), torch.tensor(CLEAN[:2]), 1e-8
    penalty = r1(critic, clean, 1.0)
    gradient = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in critic.parameters()]
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))

    def moved(length, along):
        with torch.no_grad():
            for p, d in zip(critic.parameters(), along, strict=True):
                p.add_(d, alpha=length)
        return r1(critic, clean, 1.0).item()

    ahead, behind = moved(step, direction), moved(-2 * step, direction)
    assert (ahead - behind) / (2 * step) == pytest.approx(slope.item(), rel=1e-4)
    length = 0.2 * penalty.item() / sum(float(g.square().sum()) for g in gradient)
    assert moved(-length, gradient) < 0.9 * penalty.item()


def test_r1_is_float32_within_autocast():
    critic, clean = small_critic(torch.float32), float32(CLEAN)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = r1(critic, clean, 1.0)
    assert penalty.dtype == torch.float32
    assert penalty.item() == r1(critic, clean, 1.0).item()


def case(sampling, qualities=(10, 60), spread=0.5):
    """Clean crops, 0..1, and each one's tables."""
    crops = np.stack([photograph(32, 48, seed) for seed in range(len(qualities))]).transpose(0, 3, 1, 2) / 255
    tables = torch.stack([quality_to_tables(quality, sampling.components) for quality in qualities])
    return float32(0.5 + spread * (crops - 0.5)), tables


def as_coded(x, sampling):
    return x.mean(1, keepdim=True) if sampling is Subsampling.GRAY else x


def disturbed(clean, deviation=0.05):
    return clean + deviation * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sampling", Subsampling)
def test_consistency_is_its_equation(sampling):
    clean, tables = case(sampling)
    restored = disturbed(clean)
    sides = [reference.roundtrip(as_coded(255 * x.double(), sampling), tables, sampling) for x in (clean, restored)]
    ours, theirs = (side.clamp(0, 255).numpy() / 255 for side in sides)
    value = consistency(restored, clean, tables, sampling)
    assert value.item() == pytest.approx(np.mean((theirs - ours) ** 2), rel=1e-3)
    assert value > 1e-5


@pytest.mark.parametrize("sampling", Subsampling)
def test_consistency_is_zero_on_consistent_images_only(sampling):
    clean, tables = case(sampling)
    c = encode(as_coded(255 * clean, sampling), tables, sampling)
    other = project(as_coded(255 * disturbed(clean), sampling), c, margin=0.01) / 255
    other = other.expand(-1, 3, -1, -1)
    assert float((other - clean).abs().mean()) > 0.01
    assert consistency(clean, clean, tables, sampling) == 0
    assert consistency(other, clean, tables, sampling) == 0
    assert consistency(other, clean, tables.flip(0), sampling) > 1e-6


@pytest.mark.parametrize("sampling", Subsampling)
def test_its_gradient_alone_makes_an_inconsistent_image_consistent(sampling):
    clean, tables = case(sampling, qualities=(10, 50, 90))
    image = disturbed(clean)
    first, steps = consistency(image, clean, tables, sampling), 0
    while consistency(image, clean, tables, sampling) > 0 and steps < 200:
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(consistency(image, clean, tables, sampling), image)
        image, steps = (image - 0.1 * image.numel() * gradient).detach(), steps + 1
    assert first > 1e-4
    assert steps < 200
    ours, theirs = (encode(as_coded(255 * x, sampling), tables, sampling).planes for x in (image, clean))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_consistency_is_float32_within_autocast():
    clean, tables = case(Subsampling.S420)
    restored = disturbed(clean).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = consistency(restored, clean, tables, Subsampling.S420)
    assert value.dtype == torch.float32
    assert value.item() == consistency(restored.float(), clean, tables, Subsampling.S420).item()


def test_first_moment_is_its_equation():
    variance = np.var(SAMPLES, axis=1, ddof=1)
    expected = np.mean((CLEAN - SAMPLES.mean(1)) ** 2)
    assert first_moment(float32(SAMPLES), float32(CLEAN), unbiased=False).item() == pytest.approx(expected, rel=1e-5)
    expected -= np.mean(variance) / SAMPLES.shape[1]
    found = first_moment(float32(SAMPLES), float32(CLEAN), unbiased=True)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("draws", [2, 3, 8])
def test_only_the_unbiased_first_moment_does_not_depend_on_how_many_samples(draws):
    """2^16 images of three pixels whose true mean is 0.1 off: the estimate's deviation is below 2e-4."""
    generator, deviation = torch.Generator().manual_seed(draws), 0.2
    samples = 0.5 + deviation * torch.randn(1 << 16, draws, 3, 1, 1, generator=generator)
    clean = torch.full((1 << 16, 3, 1, 1), 0.6)
    assert first_moment(samples, clean, unbiased=True).item() == pytest.approx(0.1**2, abs=1e-3)
    extra = deviation**2 / draws
    assert first_moment(samples, clean, unbiased=False).item() == pytest.approx(0.1**2 + extra, abs=1e-3)


def test_second_moment_is_its_equation():
    mmse = CLEAN + RANDOM.normal(0, 0.1, CLEAN.shape)
    expected = np.mean(np.abs((CLEAN - mmse) ** 2 - np.var(SAMPLES, axis=1, ddof=1)))
    samples = float32(SAMPLES).requires_grad_()
    frozen = float32(mmse).requires_grad_()
    found = second_moment(samples, float32(CLEAN), frozen)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert frozen.grad is None
    assert samples.grad.any()


def test_second_moment_widens_samples_that_are_too_alike():
    samples = float32(CLEAN)[:, None] + 0.01 * float32(SAMPLES - CLEAN[:, None])
    samples.requires_grad_()
    second_moment(samples, float32(CLEAN), float32(CLEAN) + 0.1).backward()
    centred = samples.detach() - samples.detach().mean(1, keepdim=True)
    assert ((samples.grad * centred).sum(1) < 0).all()


def test_a_variance_takes_two_samples():
    one = float32(SAMPLES[:, :1])
    assert first_moment(one, float32(CLEAN), unbiased=False) > 0
    for loss in (lambda: first_moment(one, one[:, 0], unbiased=True), lambda: second_moment(one, one[:, 0], one[:, 0])):
        with pytest.raises(ValueError, match="2 samples"):
            loss()


def test_perceptual_is_the_mean_squared_difference_and_moves_the_restored_only():
    restored, clean = (float32(x).requires_grad_() for x in (RESTORED, CLEAN))
    loss = perceptual(restored, clean)
    assert loss.item() == pytest.approx(np.mean((RESTORED - CLEAN) ** 2), rel=1e-5)
    loss.backward()
    assert clean.grad is None
    assert np.allclose(restored.grad, 2 * (RESTORED - CLEAN) / CLEAN.size, rtol=1e-3, atol=1e-9)
