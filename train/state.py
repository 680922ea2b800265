"""What training changes: the networks, their averages and their optimisers; and the schedules."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from model.critic import Critic
from model.generator import Generator, inherit
from model.weights import WeightsError, load
from train.checks import ConfigError, expect, expect_not_negative, expect_positive
from train.distributed import Network, Ranks, shared

if TYPE_CHECKING:
    from train.config import Config


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with warm-up and cosine decay, for each network."""

    steps: int = 20_000
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 200  # steps
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest norm of the gradient; .inf: any
    trunk_rate: float = 0.2  # of a generator with a noise head: the others' learning rate, as a share of the head's
    trunk_clip: float = 0.05  # and the largest norm of their gradient; `clip` is then the head's
    accumulate: int = 1  # parts of a rank's batch that go through the networks one after another: less memory
    ema: float = 0.999  # decay of the averaged weights, which are what is shipped

    def __post_init__(self) -> None:
        expect_positive(self, "steps", "learning_rate", "clip", "trunk_rate", "trunk_clip", "accumulate")
        expect_not_negative(self, "final_learning_rate", "warmup")
        expect(self, "ema", 0 <= self.ema < 1, "a decay, 0..1")
        expect(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two decays, 0..1")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what was kept."""


class Group(NamedTuple):
    """Parameters that are updated alike. rate: a share of the learning rate. clip: their gradient's largest norm."""

    parameters: list[nn.Parameter]
    rate: float
    clip: float


@dataclass(frozen=True)
class Learner(Generic[Network]):
    """A network that is trained. shared: the same one, as train.distributed.shared has it, for the last backward pass
    before an update. groups: the optimiser's."""

    network: Network
    shared: nn.Module
    optimiser: torch.optim.Optimizer
    groups: list[Group]


@dataclass(frozen=True)
class Mark:
    """A point of the schedules: their progress, 0..1, after so many steps. From there it rises linearly with the steps,
    to 1 at `optimiser.steps`. The first mark makes it a function of the step alone; `run.seconds` moves the mark with
    the clock (train/clock.py). seconds: what the clock had counted, in this process and those before."""

    step: int = 0
    progress: float = 0.0
    seconds: float = 0.0

    def rise(self, step: int, first: int, last: int) -> float:
        """The progress after `step` steps of a schedule that begins after `first` and ends after `last`."""
        begin = max(first, self.step)
        share = (step - begin) / max(1, last - begin)
        return self.progress + (1 - self.progress) * min(1.0, max(0.0, share))


START = Mark()


@dataclass
class State:
    """All that a checkpoint holds, besides the configuration. `average`: the generator's averaged weights, which are
    what is shipped. `critic`: None in a regression. `step`: how many are done. `mark`: the schedules'."""

    generator: Learner[Generator]
    average: Generator
    critic: Learner[Critic] | None = None
    step: int = 0
    mark: Mark = START


def new_state(config: Config, ranks: Ranks) -> State:
    """Random weights, a function of the seed alone."""
    torch.manual_seed(config.run.seed)
    place: dict[str, Any] = {"device": ranks.device, "memory_format": torch.channels_last}
    generator, average = Generator(config.model).to(**place), Generator(config.model).to(**place)
    average.load_state_dict(generator.state_dict())
    state = State(_learner(generator, config, ranks), average.requires_grad_(False).eval())
    if config.objective == "game":
        state.critic = _learner(Critic(config.critic).to(**place), config, ranks)
    return state


def _learner(network: Network, config: Config, ranks: Ranks) -> Learner[Network]:
    if config.run.compile:
        network.compile()
    groups = parameter_groups(network, config)
    parameters = [{"params": group.parameters} for group in groups]
    optimiser = torch.optim.Adam(parameters, lr=0.0, betas=config.optimiser.betas, fused=True)
    return Learner(network, shared(network, ranks), optimiser, groups)


def parameter_groups(network: nn.Module, config: Config) -> list[Group]:
    """Of a generator with a noise head, the head and all else; of other networks everything."""
    optimiser = config.optimiser
    if not (isinstance(network, Generator) and network.config.has_head):
        return [Group(list(network.parameters()), 1.0, optimiser.clip)]
    head = list(network.noise_head.parameters())
    own = {id(parameter) for parameter in head}
    others = [parameter for parameter in network.parameters() if id(parameter) not in own]
    return [Group(others, optimiser.trunk_rate, optimiser.trunk_clip), Group(head, 1.0, optimiser.clip)]


def start_from(state: State, weights: str) -> None:
    """Takes over a trained generator, by name or path. Raises ConfigError for one that does not fit."""
    try:
        trained = load(weights).generator
        for network in (state.generator.network, state.average):
            inherit(network, trained)
    except (WeightsError, ValueError) as error:
        raise ConfigError(f"run.start: {error}") from error


def progress(config: Config, step: int, mark: Mark = START) -> float:
    """How far the learning rate is on its way from first to last, 0..1: 0 until the warm-up is over."""
    return mark.rise(step, config.optimiser.warmup, config.optimiser.steps)


def learning_rate(config: Config, step: int, mark: Mark = START) -> float:
    """Linear warm-up, in steps, and a cosine from the first rate to the last."""
    optimiser = config.optimiser
    span = optimiser.learning_rate - optimiser.final_learning_rate
    rate = optimiser.final_learning_rate + span * (1 + cos(pi * progress(config, step, mark))) / 2
    if step < optimiser.warmup:
        return min(rate, optimiser.learning_rate * (step + 1) / optimiser.warmup)
    return rate


@torch.no_grad()
def update_average(state: State, decay: float, failed: Tensor) -> None:
    """Exponential moving average, faster in the first steps; none once a step has failed."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    averages: list[Tensor] = list(state.average.parameters())
    changes = torch._foreach_sub(list(state.generator.network.parameters()), averages)
    torch._foreach_mul_(changes, (1 - failed) * (1 - decay))
    torch._foreach_add_(averages, changes)
