"""What the objectives share: forward passes under autocast, and the projection of restored crops."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kernels import Subsampling, encode, project
from model.generator import Drawn, Generator, Noise
from model.weights import WeightsError, load
from train.checks import ConfigError
from train.degradation import Batch
from train.numerics import uses_bfloat16
from train.state import State
from train.update import Guard

if TYPE_CHECKING:
    from train.config import Config

Terms = dict[str, Tensor]
"""Losses and gradient norms of a step: scalars by name, on the device, the same names on all ranks."""


class Objective(Protocol):
    """A training step. seeds: how many noise seeds it needs for each crop."""

    seeds: int

    def step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        """One update of each network, from a step's crops in parts (`optimiser.accumulate`)."""

    def schedule(self, state: State) -> dict[str, float]:
        """Weights that change in the course of training, by name, for metrics.jsonl."""


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 as `run.bfloat16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config.run, device))


def restore(generator: nn.Module, batch: Batch, config: Config) -> Tensor:
    """The output of a generator without noise, [n, 3, h, w] float32, 0..1."""
    with autocast(config, batch.decoded.device):
        restored: Tensor = generator(batch.decoded, batch.tables, batch.sampling_index)
    return restored.float()


def draw(generator: nn.Module, batch: Batch, config: Config, seeds: Tensor) -> Drawn:
    """Samples of a generator with noise, float32, 0..1. seeds: [n, K] int64, those of each crop's samples."""
    noise = Noise(seeds, torch.zeros(len(batch), 2, dtype=torch.int64, device=seeds.device))
    with autocast(config, batch.decoded.device):
        samples, mean = generator(batch.decoded, batch.tables, batch.sampling_index, noise)
    return Drawn(samples.float(), None if mean is None else mean.float())


def projected(restored: Tensor, batch: Batch) -> Tensor:
    """Equation 11: each crop [n, 3, h, w], 0..1, projected onto the intervals of the JPEG of its clean one."""
    result = torch.empty_like(restored)
    for sampling, places in batch.groups():
        images = [255 * x[places] for x in (restored, batch.clean)]
        if sampling is Subsampling.GRAY:
            images = [x.mean(1, keepdim=True) for x in images]
        coefficients = encode(images[1], batch.tables[places, : sampling.components], sampling)
        result[places] = (project(images[0], coefficients) / 255).expand(-1, 3, -1, -1)
    return result


def load_regression(weights: str, key: str, device: torch.device) -> Generator:
    """A trained network with a regression output, by name or path, frozen. key: where the configuration names it.
    Raises ConfigError."""
    try:
        network = load(weights).generator
    except WeightsError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not network.config.regresses:
        raise ConfigError(f"{key}: {weights} is a sampler without a regression's output, expected one with it")
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
