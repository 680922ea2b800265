"""Shared by the objectives: their interface, forward passes under autocast, and the projection of restored crops."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kernels import Subsampling, encode, project
from model.generator import Noise, Sampled
from train.checks import expect
from train.degradation import Batch
from train.numerics import uses_bfloat16
from train.state import State
from train.update import Guard

if TYPE_CHECKING:
    from train.config import Config

Terms = dict[str, Tensor]
"""Losses and gradient norms of a step: float32 scalars by name, on the device, the same names on all ranks."""


class Objective(Protocol):
    """A training step. seeds: the number of noise seeds that it needs for each crop."""

    seeds: int

    def step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """Updates each network once, from this rank's crops of the step, in `optimiser.accumulate` micro-batches."""

    def schedule(self, state: State) -> dict[str, float]:
        """Scheduled weights by name, for metrics.jsonl."""


def check_regression_weight(config: Config, section: str) -> None:
    """Raises ConfigError unless the weight `regression` is above 0 exactly for a generator with a noise head."""
    expect(
        config,
        f"{section}.regression",
        (getattr(config, section).regression > 0) == config.model.has_noise_head,
        "more than 0 for a generator with a noise head, whose regression nothing else trains, and 0 for others",
    )


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast according to `run.bfloat16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config.run, device))


def restore(generator: nn.Module, batch: Batch, config: Config) -> Tensor:
    """The output of a generator without noise, [n, 3, h, w] float32, 0..1 (not clamped)."""
    with autocast(config, batch.decoded.device):
        restored: Tensor = generator(batch.decoded, batch.tables, batch.sampling_index)
    return restored.float()


def draw(generator: nn.Module, batch: Batch, config: Config, seeds: Tensor) -> Sampled:
    """Samples of a generator with noise, float32, 0..1 (not clamped). seeds: [n, K] int64, for K samples of each
    crop."""
    noise = Noise(seeds, torch.zeros(len(batch), 2, dtype=torch.int64, device=seeds.device))
    with autocast(config, batch.decoded.device):
        samples, mean = generator(batch.decoded, batch.tables, batch.sampling_index, noise)
    return Sampled(samples.float(), None if mean is None else mean.float())


def projected(restored: Tensor, batch: Batch) -> Tensor:
    """Equation 11 of arXiv 2211.11827: projects each crop [n, 3, h, w], 0..1, onto the intervals of its JPEG."""
    result = torch.empty_like(restored)
    for sampling, index in batch.by_sampling():
        images = [255 * x[index] for x in (restored, batch.clean)]
        if sampling is Subsampling.GRAY:
            images = [x.mean(1, keepdim=True) for x in images]
        coefficients = encode(images[1], batch.tables[index, : sampling.components], sampling)
        result[index] = (project(images[0], coefficients) / 255).expand(-1, 3, -1, -1)
    return result
