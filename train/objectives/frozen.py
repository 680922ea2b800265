"""Frozen networks that objectives use: feature networks, and the regression whose output is X̄ of equation 7
(arXiv 2211.11827)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.features import VGG19, EfficientNetLite0, Features, FeaturesError
from model.generator import Generator
from model.weights import WeightsError, load
from train.checks import ConfigError

if TYPE_CHECKING:
    from train.config import Config

LITE0 = "lite0"
"""Name of the network that is installed as a package; other names are paths of VGG-19's weights."""


def load_features(name: str, key: str, config: Config, device: torch.device) -> Features:
    """A feature network. name: lite0, or the path of VGG-19's weights. key: the configuration key for error messages.
    Raises ConfigError for missing weights."""
    try:
        features = EfficientNetLite0.load() if name == LITE0 else VGG19.load(name)
    except FeaturesError as error:
        raise ConfigError(f"{key}: {error}") from error
    features.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    if config.run.compile:
        features.compile()
        features.levels = torch.compile(features.levels)  # type: ignore[method-assign]  # Module.compile leaves it
    return features


def load_regression(weights: str, key: str, device: torch.device, compiled: bool = False) -> Generator:
    """A trained generator with a regression output, by name or path. key: the configuration key for error messages.
    Raises ConfigError."""
    try:
        network = load(weights).generator
    except WeightsError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not network.config.has_regression:
        raise ConfigError(f"{key}: {weights} is a sampler without a regression output, expected one with it")
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile()
    return network
