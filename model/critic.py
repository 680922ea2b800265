"""The critic: image → one logit, high for natural images. It never sees the JPEG: the game matches the distribution of
restored images to that of natural ones, and consistency does the rest (arXiv 2211.11827, theorem 2).

The residual network of Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?" (ICML
2018), two blocks at each resolution: no normalisation of any kind, R1 keeps it in bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky ReLUs below zero."""

RESIDUAL = 0.1
"""What a block's change counts for."""

GRID = 4
"""Places a side on which the last layer looks."""


@dataclass(frozen=True)
class CriticConfig:
    """features: width at full resolution; it doubles with each halving. most_features: where the doubling stops.
    halvings: of the resolution; 5 take 128x128 pixels to the 4x4 places of the last layer, the paper's.

    Raises ValueError for widths below 1 and a negative count."""

    features: int = 64
    most_features: int = 1024
    halvings: int = 5

    def __post_init__(self) -> None:
        if min(self.features, self.most_features) < 1:
            raise ValueError(f"features: expected more than 0, got {self.features}, at most {self.most_features}")
        if self.halvings < 0:
            raise ValueError(f"halvings: expected 0 or more, got {self.halvings}")


class CriticBlock(nn.Module):
    """shortcut(x) + 0.1 · conv(act(conv(act(x)))); the shortcut is 1x1 where the width changes."""

    def __init__(self, features: int, wanted: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, min(features, wanted), 3, padding=1)
        self.second = nn.Conv2d(min(features, wanted), wanted, 3, padding=1)
        self.shortcut = nn.Conv2d(features, wanted, 1, bias=False) if features != wanted else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))
        total: Tensor = self.shortcut(x) + RESIDUAL * change
        return total


class Critic(nn.Module):
    """See the module. Any size of image will do: what is left of it after the halvings is averaged to 4x4 places, which
    changes nothing for the size that the halvings are meant for."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        if min(config.features, config.most_features, config.halvings + 1) < 1:
            raise ValueError(f"a critic needs features, and 0 halvings or more, got {config}")
        self.config = config
        widths = [min(config.features << level, config.most_features) for level in range(config.halvings + 2)]
        self.head = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(CriticBlock(width, width), CriticBlock(width, following))
            for width, following in pairwise(widths)
        )
        self.last = nn.Linear(widths[-1] * GRID**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W], 0..1, any size (multiples of 2 to the power of the halvings lose no edge) → logits [N].

        Differentiable twice. Raises ValueError for other shapes."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"the critic takes [N, 3, H, W], got {list(images.shape)}")
        x = self.head(images - 0.5)
        for number, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 3, stride=2, padding=1) if number else x)
        x = F.leaky_relu(x, SLOPE)
        if x.shape[2:] != (GRID, GRID):
            x = F.adaptive_avg_pool2d(x, GRID)
        logits: Tensor = self.last(x.flatten(1)).squeeze(1)
        return logits
