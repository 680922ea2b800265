"""The training state: networks, averaged weights and optimisers; and the schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from model.critic import Critic
from model.generator import Generator, initialise_from
from model.weights import WeightsError, load
from train.checks import ConfigError, expect, expect_not_negative, expect_positive
from train.distributed import Network, Ranks, wrap_ddp
from train.muon import MIN_OUTPUTS, Muon, convolution_weights
from train.schedule import START, ScheduleAnchor

if TYPE_CHECKING:
    from train.config import Config
    from train.degradation import Batch


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam, and Muon for the generator's larger convolutions, with linear warm-up and cosine decay."""

    steps: int = 20_000  # length of the run and its schedules; run.seconds may end both earlier
    learning_rate: float = 1e-3  # after the warm-up
    final_learning_rate: float = 1e-6
    warmup: int = 200  # steps
    betas: tuple[float, float] = (0.9, 0.99)  # Adam's
    muon_rate: float = 0.0  # learning rate of Muon, relative to Adam's; 0: Adam for all weights
    clip: float = 1.0  # maximum gradient norm; .inf: no clipping
    trunk_rate: float = 0.2  # learning rate of the trunk of a generator with a noise head, relative to the head's
    trunk_clip: float = 0.05  # maximum gradient norm of that trunk; `clip` is then the head's
    accumulate: int = 1  # micro-batches per step and rank (gradient accumulation), to save memory
    ema: float = 0.999  # decay of the averaged weights, which are the result of training

    def __post_init__(self) -> None:
        expect_positive(self, "steps", "learning_rate", "clip", "trunk_rate", "trunk_clip", "accumulate")
        expect_not_negative(self, "final_learning_rate", "warmup", "muon_rate")
        falls = self.final_learning_rate <= self.learning_rate < inf
        expect(self, "learning_rate", falls, "a finite rate, not below final_learning_rate")
        expect(self, "ema", 0 <= self.ema < 1, "a decay, 0..1")
        expect(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two decays, 0..1")


class TrainingError(RuntimeError):
    """Training cannot continue; the message says at which step and what was saved."""


class ParameterGroup(NamedTuple):
    """Parameters with a common schedule and gradient clipping."""

    parameters: list[nn.Parameter]
    rate: float  # relative to the learning rate
    clip: float  # maximum gradient norm


@dataclass(frozen=True)
class Learner(Generic[Network]):
    """A network under training with its optimisers."""

    network: Network
    ddp: nn.Module  # the network as `wrap_ddp` returns it
    groups: list[ParameterGroup]  # each is divided between the optimisers, in this order
    adam: torch.optim.Adam
    muon: Muon | None  # None: Adam has all parameters

    def passes(self, micro_batches: Sequence[Batch]) -> Iterator[tuple[Batch, nn.Module]]:
        """Each micro-batch of a step with the module to pass it through. The last goes through DDP, which averages the
        accumulated gradients over ranks; the others save that communication."""
        for number, batch in enumerate(micro_batches, 1):
            yield batch, self.ddp if number == len(micro_batches) else self.network


@dataclass
class State:
    """The content of a checkpoint, without the configuration and the position of the crop source."""

    generator: Learner[Generator]
    average: Generator  # exponential moving average of the generator's weights, the result of training
    critic: Learner[Critic] | None = None  # None without `objective: game`
    step: int = 0  # steps done
    anchor: ScheduleAnchor = START


def new_state(config: Config, ranks: Ranks) -> State:
    """A state with random weights, a function of `run.seed`. Raises ConfigError for a network without weights for
    Muon."""
    torch.manual_seed(config.run.seed)
    place: dict[str, Any] = {"device": ranks.device, "memory_format": torch.channels_last}
    generator, average = Generator(config.model).to(**place), Generator(config.model).to(**place)
    average.load_state_dict(generator.state_dict())
    state = State(
        _learner(generator, config, ranks, with_muon=config.optimiser.muon_rate > 0),
        average.requires_grad_(False).eval(),
    )
    if config.objective == "game":
        state.critic = _learner(Critic(config.critic).to(**place), config, ranks)
    return state


def _learner(network: Network, config: Config, ranks: Ranks, with_muon: bool = False) -> Learner[Network]:
    if config.run.compile:
        network.compile()
    groups = parameter_groups(network, config)
    for_muon = {id(weight) for weight in convolution_weights(network)} if with_muon else set()
    if with_muon and not for_muon:
        raise ConfigError(f"optimiser.muon_rate: expected 0, as no 3x3 convolution has {MIN_OUTPUTS} outputs or more")

    def part(of_muon: bool) -> list[dict[str, Any]]:
        return [{"params": [p for p in group.parameters if (id(p) in for_muon) == of_muon]} for group in groups]

    adam = torch.optim.Adam(part(of_muon=False), lr=0.0, betas=config.optimiser.betas, fused=True)
    muon = Muon(part(of_muon=True)) if for_muon else None
    return Learner(network, wrap_ddp(network, ranks), groups, adam, muon)


def parameter_groups(network: nn.Module, config: Config) -> list[ParameterGroup]:
    """The trunk and the noise head of a generator with one; a single group of other networks."""
    optimiser = config.optimiser
    if not (isinstance(network, Generator) and network.config.has_noise_head):
        return [ParameterGroup(list(network.parameters()), 1.0, optimiser.clip)]
    head = list(network.noise_head.parameters())
    in_head = {id(parameter) for parameter in head}
    trunk = [parameter for parameter in network.parameters() if id(parameter) not in in_head]
    return [
        ParameterGroup(trunk, optimiser.trunk_rate, optimiser.trunk_clip),
        ParameterGroup(head, 1.0, optimiser.clip),
    ]


def start_from(state: State, weights: str) -> None:
    """Initialises the generator with trained weights, by name or path. Raises ConfigError for weights that do not
    fit."""
    try:
        trained = load(weights).generator
        for network in (state.generator.network, state.average):
            initialise_from(network, trained)
    except (WeightsError, ValueError) as error:
        raise ConfigError(f"run.start: {error}") from error


@torch.no_grad()
def update_average(state: State, decay: float, failed: Tensor) -> None:
    """Updates the exponential moving average, with a smaller decay in the first steps. failed: float32 scalar, 1 to
    skip the update."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    averages: list[Tensor] = list(state.average.parameters())
    changes = torch._foreach_sub(list(state.generator.network.parameters()), averages)
    torch._foreach_mul_(changes, (1 - failed) * (1 - decay))
    torch._foreach_add_(averages, changes)
