"""The frozen networks whose features are compared by P (game.py) and by the energy score (energy.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.features import VGG19, EfficientNetLite0, Features, FeaturesError
from train.checks import ConfigError

if TYPE_CHECKING:
    from train.config import Config

LITE0 = "lite0"
"""The network that comes with a package; other names are paths of VGG-19's weights."""


def load_features(name: str, key: str, config: Config, device: torch.device) -> Features:
    """name: lite0, or a path. key: where the configuration has it. Raises ConfigError where there are no weights."""
    try:
        features = EfficientNetLite0.load() if name == LITE0 else VGG19.load(name)
    except FeaturesError as error:
        raise ConfigError(f"{key}: {error}") from error
    features.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    if config.run.compile:
        features.compile()
    return features
