"""The critic: image → one logit, high for natural images. It is not conditioned on the JPEG: it compares the
distributions of restored and natural images, and the consistency terms tie a restoration to its file
(arXiv 2211.11827, theorem 2).

The residual network of Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?" (ICML
2018), with two blocks at each resolution and without normalisation layers; the R1 penalty regularises it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""

RESIDUAL_SCALE = 0.1
"""Factor of a block's residual branch."""

GRID = 4
"""Height and width of the feature map that the last layer takes."""


@dataclass(frozen=True)
class CriticConfig:
    """Size of the critic; the defaults are the paper's. Raises ValueError for widths below 1 and negative counts."""

    features: int = 64  # channels at full resolution; each halving doubles them
    most_features: int = 1024  # largest number of channels
    halvings: int = 5  # of the resolution: 5 reduce 128x128 pixels to the 4x4 positions of the last layer

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("most_features", 1), ("halvings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")


class CriticBlock(nn.Module):
    """shortcut(x) + 0.1 · conv(act(conv(act(x)))); the shortcut is a 1x1 convolution where the width changes."""

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, min(features, out_features), 3, padding=1)
        self.second = nn.Conv2d(min(features, out_features), out_features, 3, padding=1)
        self.shortcut = nn.Conv2d(features, out_features, 1, bias=False) if features != out_features else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] → [N, out_features, h, w]."""
        residual = self.second(F.leaky_relu(self.first(F.leaky_relu(x, NEGATIVE_SLOPE)), NEGATIVE_SLOPE))
        total: Tensor = self.shortcut(x) + RESIDUAL_SCALE * residual
        return total


class Critic(nn.Module):
    """See the module's docstring. Accepts images of any size: feature maps of another size than 4x4 are average-pooled
    to it before the last layer."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.features << level, config.most_features) for level in range(config.halvings + 2)]
        self.head = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(CriticBlock(width, width), CriticBlock(width, following))
            for width, following in pairwise(widths)
        )
        self.last = nn.Linear(widths[-1] * GRID**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] float32, 0..1 → logits [N]. Twice differentiable.

        Raises ValueError for other shapes."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"the critic takes [N, 3, H, W], got {list(images.shape)}")
        x = self.head(images - 0.5)
        for number, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 3, stride=2, padding=1) if number else x)
        x = F.leaky_relu(x, NEGATIVE_SLOPE)
        if x.shape[2:] != (GRID, GRID):
            x = pool_to_grid(x)
        logits: Tensor = self.last(x.flatten(1)).squeeze(1)
        return logits


def pool_to_grid(x: Tensor) -> Tensor:
    """[N, C, h, w] → [N, C, 4, 4], the mean over the windows of F.adaptive_avg_pool2d, whose backward pass is not
    deterministic on CUDA."""
    height, width = x.shape[2:]
    if height % GRID == 0 and width % GRID == 0:
        return F.avg_pool2d(x, (height // GRID, width // GRID))
    rows, columns = (
        [slice(k * size // GRID, -(-(k + 1) * size // GRID)) for k in range(GRID)] for size in (height, width)
    )
    means = [x[:, :, row, column].mean((2, 3)) for row in rows for column in columns]
    return torch.stack(means, 2).reshape(*x.shape[:2], GRID, GRID)
