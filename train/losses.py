"""The losses. Inside them images are in 0..1 and every term is a mean over all elements."""

from __future__ import annotations

from torch import Tensor


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error: its minimiser is the posterior's mean, E[X | Y]."""
    return (restored - clean).square().mean()


def log_mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean over images of the logarithm of their mean squared error: PSNR, up to sign and scale. The same minimiser as
    `mse` where an image's error is known from its file, but qualities and textures weigh alike, and the gradient does
    not swing with the hardest crop. Errors below 40 dB count little, so that flat crops do not take over."""
    return ((restored - clean).square().flatten(1).mean(1) + 1e-4).log().mean()


LOSSES = {"mse": mse, "log_mse": log_mse}
