"""The Fréchet distance between two sets of features, each taken for a Gaussian's: FID, where they are Inception's
(Heusel et al., "GANs trained by a two time-scale update rule", 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Features [n, d] and [m, d] of two sets of images → the squared distance, as FID is given. In float64.

    Raises ValueError for sets of fewer than 2, and for different d."""
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            "two sets of features: expected [n, d] and [m, d], n and m at least 2, "
            f"got {list(first.shape)} and {list(second.shape)}"
        )
    (mean, covariance), (other_mean, other_covariance) = moments(first), moments(second)
    return gaussian_distance(mean, covariance, other_mean, other_covariance)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] → mean [d] and covariance [d, d], with n - 1, float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.mT @ centred / (len(features) - 1)


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|m - m'|² + tr(S + S' - 2 (S S')^1/2), float64. Never below 0 by rounding.

    The product's root has the trace of (R S' R)^1/2 with R = S^1/2, which is symmetric: its eigenvalues stay real and
    accurate where covariances are singular, as those of fewer images than features are."""
    root = _square_root(covariance)
    product = root @ other_covariance @ root
    cross = torch.linalg.eigvalsh((product + product.mT) / 2).clamp_min(0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, float((mean - other_mean).square().sum() + spread))


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric, non-negative root."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    return root
