"""The losses against their formulas in float64."""

import numpy as np
import pytest
import torch

from train.losses import LOSSES, log_mse, mse

RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.random((6, 3, 16, 24))
RESTORED = CLEAN + RANDOM.normal(0, 1, CLEAN.shape) * np.array([0, 0.003, 0.01, 0.05, 0.2, 0.5])[:, None, None, None]


def tensors():
    return torch.tensor(RESTORED, dtype=torch.float32, requires_grad=True), torch.tensor(CLEAN, dtype=torch.float32)


def test_mse_is_the_mean_over_all_elements():
    assert mse(*tensors()).item() == pytest.approx(np.mean((RESTORED - CLEAN) ** 2), rel=1e-5)


def test_log_mse_is_the_mean_over_images_of_the_logarithm():
    expected = np.mean([np.log(np.mean((r - c) ** 2) + 1e-4) for r, c in zip(RESTORED, CLEAN, strict=True)])
    assert log_mse(*tensors()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_they_are_least_and_flat_where_the_image_is_right(name):
    _, clean = tensors()
    right = clean.clone().requires_grad_()
    loss = LOSSES[name](right, clean)
    loss.backward()
    assert not right.grad.any()
    assert all(loss < LOSSES[name](clean + step, clean) for step in (-0.1, -1e-3, 1e-3, 0.1))


def test_gradients_are_those_of_the_formulas():
    restored, clean = tensors()
    difference = RESTORED - CLEAN
    mse(restored, clean).backward()
    assert np.allclose(restored.grad, 2 * difference / difference.size, rtol=1e-3, atol=1e-9)
    restored.grad = None
    log_mse(restored, clean).backward()
    errors = (difference**2).mean((1, 2, 3), keepdims=True) + 1e-4
    assert np.allclose(restored.grad, 2 * difference / errors / difference.size, rtol=1e-3, atol=1e-6)
