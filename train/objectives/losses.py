"""The losses: V, R1 and equations 4 to 7 of arXiv 2211.11827, and those of a regression.

Inside them images are in 0..1 and every term is a mean over all elements (R1's squared norm is summed over an image),
in at least float32 whatever the networks computed in. Samples are [n, K, 3, h, w]: K draws for each of n images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Subsampling, roundtrip


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error: its minimiser is the posterior's mean, E[X | Y]."""
    return (restored - clean).square().mean()


def log_mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean over images of the logarithm of their mean squared error: PSNR, up to sign and scale. The same minimiser as
    `mse` where an image's error is known from its file, but qualities and textures weigh alike, and the gradient does
    not swing with the hardest crop. Errors below 40 dB count little, so that flat crops do not take over."""
    return ((restored - clean).square().flatten(1).mean(1) + 1e-4).log().mean()


REGRESSION_LOSSES = {"mse": mse, "log_mse": log_mse}


def critic_loss(clean_logits: Tensor, restored_logits: Tensor) -> Tensor:
    """V as the critic minimises it: softplus(-D(X)) + softplus(D(G)), each averaged over its logits [N]. Equation 9
    maximises the negative."""
    return F.softplus(-_precise(clean_logits)).mean() + F.softplus(_precise(restored_logits)).mean()


def generator_loss(restored_logits: Tensor) -> Tensor:
    """V as the generator minimises it, not saturating: softplus(-D(G)), averaged over the logits [N]."""
    return F.softplus(-_precise(restored_logits)).mean()


def r1(critic: Callable[[Tensor], Tensor], clean: Tensor, gamma: float) -> Tensor:
    """R1: gamma / 2 · E‖∇D(X)‖², to be added to what the critic minimises (equation 9 maximises, so that there its sign
    is minus). The squared norm is summed over an image and averaged over images [N, 3, h, w].

    Its gradient is a second derivative: autocast is off inside, and `critic` is to be the plain module, neither
    compiled nor wrapped for several processes."""
    with torch.autocast(clean.device.type, enabled=False):
        images = _precise(clean.detach()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        penalty: Tensor = gamma / 2 * gradient.square().flatten(1).sum(1).mean()
    return penalty


def consistency(restored: Tensor, clean: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """C, equation 4: the mean of (JPEG(X) - JPEG(G))², `roundtrip` on both sides, so that it is 0 wherever G is
    consistent. Rounding's backward pass is the identity.

    restored, clean: [n, 3, h, w] of one sampling; gray is the mean of the three planes, as the decoder writes it.
    tables: [n, 1 or 3, 8, 8] int32, each image's own. Batches of several samplings: average by their numbers of images.
    """
    with torch.autocast(restored.device.type, enabled=False):
        images = [_precise(restored), _precise(clean.detach())]
        if sampling is Subsampling.GRAY:
            images = [x.mean(1, keepdim=True) for x in images]
        ours, theirs = (roundtrip(255 * x, tables, sampling) / 255 for x in images)
        return (theirs - ours).square().mean()


def first_moment(samples: Tensor, clean: Tensor, unbiased: bool) -> Tensor:
    """FM, equation 5: the mean of (X - average of K samples)². Its expectation holds an extra Var / K, which pulls
    variety down; `unbiased` subtracts it (sample variance with K - 1), and one estimate may then be negative.

    clean: [n, 3, h, w]. Raises ValueError for an unbiased estimate from one sample."""
    samples = _precise(samples)
    distance = (clean - samples.mean(1)).square().mean()
    if not unbiased:
        return distance
    return distance - _variance(samples).mean() / samples.shape[1]


def perceptual(restored: Tensor, clean: Tensor) -> Tensor:
    """P, equation 6: the mean squared difference of the features (model/features.py) of G and of X."""
    return (_precise(restored) - _precise(clean.detach())).square().mean()


def second_moment(samples: Tensor, clean: Tensor, mmse: Tensor) -> Tensor:
    """SM, equation 7: the mean of |(X - X̄)² - Var over Z of G|, variance with K - 1. X̄, `mmse` [n, 3, h, w], is the
    estimate of a trained and frozen regression network.

    Raises ValueError for one sample."""
    samples = _precise(samples)
    return ((clean - mmse.detach()).square() - _variance(samples)).abs().mean()


def _variance(samples: Tensor) -> Tensor:
    """[n, K, 3, h, w] → the variance of each pixel over its K samples, [n, 3, h, w]. Raises ValueError for K = 1."""
    if samples.shape[1] < 2:
        raise ValueError(f"a variance takes 2 samples or more for each image, got {list(samples.shape)}")
    return (samples - samples.mean(1, keepdim=True)).square().sum(1) / (samples.shape[1] - 1)  # faster than var


def _precise(x: Tensor) -> Tensor:
    """float32, or float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
