"""The losses: V, R1 and equations 4 to 7 of arXiv 2211.11827, and those of the regression.

Images are [n, 3, h, w], 0..1, and samples [n, K, 3, h, w], K for each image. Each loss is a scalar: the mean over all
elements (R1: the squared norm summed over an image), computed in at least float32 also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Subsampling, roundtrip


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error; its minimiser is the posterior mean E[X | Y]."""
    return (restored - clean).square().mean()


def log_mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean over images of the logarithm of their mean squared error: PSNR up to sign and scale.

    Its minimiser is that of `mse` where the error of an image is a function of its file, but all qualities and textures
    have a similar weight, and the hardest crops do not dominate the gradient. The offset reduces the weight of images
    above 40 dB, so that flat crops do not dominate either."""
    return ((restored - clean).square().flatten(1).mean(1) + 1e-4).log().mean()


REGRESSION_LOSSES = {"mse": mse, "log_mse": log_mse}


def critic_loss(clean_logits: Tensor, restored_logits: Tensor) -> Tensor:
    """V for the critic: softplus(-D(X)) + softplus(D(G)), each averaged over its logits [N]. It is minimised; equation
    9 maximises the negative."""
    return F.softplus(-_precise(clean_logits)).mean() + F.softplus(_precise(restored_logits)).mean()


def generator_loss(restored_logits: Tensor) -> Tensor:
    """V for the generator, in its non-saturating form: softplus(-D(G)), averaged over the logits [N]. It is
    minimised."""
    return F.softplus(-_precise(restored_logits)).mean()


def r1(critic: Callable[[Tensor], Tensor], clean: Tensor, gamma: float) -> Tensor:
    """R1: gamma / 2 · E‖∇D(X)‖², added to the critic's loss (equation 9 maximises, so that its sign is negative there).
    The squared norm is summed over an image and averaged over images.

    Its gradient is a second derivative: autocast is disabled, and `critic` must be the plain module, neither compiled
    nor wrapped in DDP."""
    with torch.autocast(clean.device.type, enabled=False):
        images = _precise(clean.detach()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        penalty: Tensor = gamma / 2 * gradient.square().flatten(1).sum(1).mean()
    return penalty


def consistency(restored: Tensor, clean: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """C, equation 4: the mean of (JPEG(X) - JPEG(G))², with `roundtrip` on both sides, so that it is 0 wherever G is
    consistent. Rounding has a straight-through gradient.

    restored, clean: images of one sampling; for gray the mean of the three planes is taken.
    tables: [n, 1 or 3, 8, 8] int32, for each image."""
    with torch.autocast(restored.device.type, enabled=False):
        images = [_precise(restored), _precise(clean.detach())]
        if sampling is Subsampling.GRAY:
            images = [x.mean(1, keepdim=True) for x in images]
        ours, theirs = (roundtrip(255 * x, tables, sampling) / 255 for x in images)
        return (theirs - ours).square().mean()


def first_moment(samples: Tensor, clean: Tensor, unbiased: bool) -> Tensor:
    """FM, equation 5: the mean of (X - mean of K samples)². Its expectation includes Var / K, which penalises the
    variance of samples; `unbiased` subtracts an estimate of it, so that the result may be negative.

    Raises ValueError for an unbiased estimate from one sample."""
    samples = _precise(samples)
    distance = (clean - samples.mean(1)).square().mean()
    if not unbiased:
        return distance
    return distance - _variance(samples).mean() / samples.shape[1]


def perceptual(restored: Tensor, clean: Tensor) -> Tensor:
    """P, equation 6: the mean squared difference of the features [n, c, h, w] of G and X (model/features.py)."""
    return (_precise(restored) - _precise(clean.detach())).square().mean()


def second_moment(samples: Tensor, clean: Tensor, mmse: Tensor) -> Tensor:
    """SM, equation 7: the mean of |(X - X̄)² - Var_Z(G)|, with the unbiased variance over K samples. X̄, `mmse`, is the
    output of a frozen regression network.

    Raises ValueError for one sample."""
    samples = _precise(samples)
    return ((clean - mmse.detach()).square() - _variance(samples)).abs().mean()


def _variance(samples: Tensor) -> Tensor:
    """[n, K, 3, h, w] → the unbiased variance of each pixel over the samples [n, 3, h, w]. Raises ValueError for K =
    1."""
    if samples.shape[1] < 2:
        raise ValueError(f"the variance needs 2 samples or more for each image, got {list(samples.shape)}")
    return (samples - samples.mean(1, keepdim=True)).square().sum(1) / (samples.shape[1] - 1)  # faster than var


def _precise(x: Tensor) -> Tensor:
    """In float32, or float64 if it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
