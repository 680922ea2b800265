"""The regression: one step towards E[X | Y], the paper's "Ours-MSE", and X̄ of equation 7."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from model.generator import Drawn, Noise
from train.config import Config
from train.degradation import Batch
from train.losses import LOSSES
from train.numerics import uses_bfloat16
from train.state import State
from train.update import Guard, update

Terms = dict[str, Tensor]
"""What a step tells of itself: scalars by name, on the device, the same names on all ranks."""


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config.run, device))


def restore(generator: nn.Module, batch: Batch, config: Config) -> Tensor:
    """A regression's output, [n, 3, h, w] float32, 0..1."""
    with autocast(config, batch.decoded.device):
        restored: Tensor = generator(batch.decoded, batch.tables, batch.sampling_index)
    return restored.float()


def draw(generator: nn.Module, batch: Batch, config: Config, seeds: Tensor) -> Drawn:
    """What a generator with noise draws, float32, 0..1. seeds: [n, K] int64, those of each crop's samples."""
    noise = Noise(seeds, torch.zeros(len(batch), 2, dtype=torch.int64, device=seeds.device))
    with autocast(config, batch.decoded.device):
        samples, mean = generator(batch.decoded, batch.tables, batch.sampling_index, noise)
    return Drawn(samples.float(), None if mean is None else mean.float())


def regression_step(state: State, parts: list[Batch], config: Config, guard: Guard) -> Terms:
    """One update of the generator with `optimiser.loss`."""
    learner, total = state.generator, torch.zeros((), device=guard.failed.device)
    for part in parts:
        network = learner.shared if part is parts[-1] else learner.network
        loss = LOSSES[config.optimiser.loss](restore(network, part, config), part.clean) / len(parts)
        torch.autograd.backward(loss)
        total += loss.detach()
    norm = update(learner, {"loss": total}, state, config, guard)
    return {"loss": total, "generator_norm": norm}
