"""What training changes: the networks, their averages and their optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, exp, log, pi
from typing import Any, Generic

import torch
from torch import Tensor, nn

from model.critic import Critic
from model.generator import Generator, inherit
from model.weights import WeightsError, load
from train.config import GAME, Config, ConfigError
from train.distributed import Network, Ranks, shared


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what was kept."""


@dataclass(frozen=True)
class Learner(Generic[Network]):
    """A network that is trained. shared: the same one, as train.distributed.shared has it, for the last backward pass
    before an update."""

    network: Network
    shared: nn.Module
    optimiser: torch.optim.Optimizer


@dataclass
class State:
    """All that a checkpoint holds, besides the configuration. `average`: the generator's averaged weights, which are
    what is shipped. `critic`: None in a regression. `step`: how many are done."""

    generator: Learner[Generator]
    average: Generator
    critic: Learner[Critic] | None = None
    step: int = 0


def new_state(config: Config, ranks: Ranks) -> State:
    """Random weights, a function of the seed alone."""
    torch.manual_seed(config.run.seed)
    place: dict[str, Any] = {"device": ranks.device, "memory_format": torch.channels_last}
    generator, average = Generator(config.model).to(**place), Generator(config.model).to(**place)
    average.load_state_dict(generator.state_dict())
    state = State(_learner(generator, config, ranks), average.requires_grad_(False).eval())
    if config.optimiser.loss == GAME and config.game.adversarial:
        state.critic = _learner(Critic(config.critic).to(**place), config, ranks)
    return state


def _learner(network: Network, config: Config, ranks: Ranks) -> Learner[Network]:
    if config.run.compile:
        network.compile()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.0, betas=config.optimiser.betas, fused=True)
    return Learner(network, shared(network, ranks), optimiser)


def start_from(state: State, weights: str) -> None:
    """Takes over a trained generator, by name or path. Raises ConfigError for one that does not fit."""
    try:
        trained = load(weights).generator
        for network in (state.generator.network, state.average):
            inherit(network, trained)
    except (WeightsError, ValueError) as error:
        raise ConfigError(f"run.start: {error}") from error


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine from the first rate to the last."""
    optimiser = config.optimiser
    if step < optimiser.warmup:
        return optimiser.learning_rate * (step + 1) / optimiser.warmup
    progress = (step - optimiser.warmup) / max(1, optimiser.steps - optimiser.warmup)
    span = optimiser.learning_rate - optimiser.final_learning_rate
    return optimiser.final_learning_rate + span * (1 + cos(pi * min(1.0, progress))) / 2


def consistency_weight(config: Config, step: int) -> float:
    """C's weight in the generator's step: its logarithm rises (or falls) linearly from the first step to the last."""
    first, last = config.game.consistency
    if not first:
        return 0.0
    return exp(log(first) + log(last / first) * min(1.0, step / max(1, config.optimiser.steps - 1)))


@torch.no_grad()
def update_average(state: State, decay: float, failed: Tensor) -> None:
    """Exponential moving average, faster in the first steps; none once a step has failed."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    averages: list[Tensor] = list(state.average.parameters())
    changes = torch._foreach_sub(list(state.generator.network.parameters()), averages)
    torch._foreach_mul_(changes, (1 - failed) * (1 - decay))
    torch._foreach_add_(averages, changes)
