"""The game objective (arXiv 2211.11827, equations 8 to 10): one update of the critic, then one of the generator.

    critic     V + R1                                 equation 9 with the opposite sign: minimised
    generator  V + C + FM + P + SM (+ log_mse)        equation 10, each term times its weight

V, C and P are of one sample of each crop, in every step; FM and SM of K samples of a few crops, every few steps.

The result does not depend, up to rounding, on the number of micro-batches (`optimiser.accumulate`) and ranks. The last
backward pass of an update goes through DDP, which averages all accumulated gradients over ranks; R1, FM and SM
therefore come before it, through the plain network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.critic import Critic
from train.checks import expect, expect_not_negative, expect_positive
from train.degradation import Batch
from train.distributed import Ranks
from train.objectives.forward import Terms, autocast, check_regression_weight, draw, restore
from train.objectives.frozen import LITE0, load_features, load_regression
from train.objectives.losses import consistency as consistency_of
from train.objectives.losses import critic_loss, first_moment, generator_loss, log_mse, perceptual, r1, second_moment
from train.state import State
from train.update import Guard, update

if TYPE_CHECKING:
    from train.config import Config

CRITIC_SEED, GENERATOR_SEED, FIRST_MOMENT_SEED = 0, 1, 2
"""Indices of a crop's noise seeds by their use; FM and SM use all from FIRST_MOMENT_SEED on."""


@dataclass(frozen=True)
class GameConfig:
    """Settings of `objective: game`: weights of the terms of equations 8 to 10, on images in 0..1 and as means over all
    elements, where 0 disables a term, and their options."""

    adversarial: float = 1e-3  # weight of V
    r1: float = 1.0  # gamma, weight of R1
    r1_every: int = 1  # steps between R1 penalties, each of which is multiplied by this number
    consistency: tuple[float, float] = (0.1, 10.0)  # weight of C at the first and last step, log-linear in between
    first_moment: float = 1.0  # weight of FM
    unbiased: bool = True  # subtract Var / K, the bias of FM with K samples
    second_moment: float = 0.0  # weight of SM
    mmse: str = "mmse"  # frozen regression network X̄ of SM: weights by name or path
    moment_images: int = 8  # crops of a step for FM and SM, on all ranks together
    samples: int = 8  # K, samples of each crop for FM and SM
    moments_every: int = 8  # steps between FM and SM, whose weights are not multiplied
    perceptual: float = 0.0  # weight of P
    features: str = LITE0  # feature network of P: lite0, or the path of torchvision's VGG-19 file
    regression: float = 0.2  # weight of log_mse of the regression output; 0 for a generator without a noise head

    def __post_init__(self) -> None:
        expect_positive(self, "adversarial", "r1_every", "moments_every", "samples")
        expect_not_negative(self, "r1", "first_moment", "second_moment", "perceptual", "regression")
        weights = self.consistency
        expect(self, "consistency", min(weights) > 0 or max(weights) == 0, "two positive weights, or two of 0")
        compares = self.second_moment or (self.first_moment and self.unbiased)
        expect(self, "samples", self.samples >= 2 or not compares, "2 or more: FM and SM compare samples")

    @property
    def has_moments(self) -> bool:
        """Whether FM or SM is enabled."""
        return self.first_moment > 0 or self.second_moment > 0


def check_game(config: Config) -> None:
    """Raises ConfigError for a model or batch that does not fit the objective."""
    game, batch = config.game, config.data.batch
    expect(config, "model.noise", config.model.noise or not game.has_moments, "true: FM and SM are about samples")
    check_regression_weight(config, "game")
    usable = 1 <= game.moment_images <= batch or not game.has_moments
    expect(config, "game.moment_images", usable, f"1 to data.batch, {batch}")


class Game:
    """An Objective (forward.py). Raises ConfigError for frozen networks that cannot be loaded."""

    def __init__(self, config: Config, device: torch.device) -> None:
        game = config.game
        self.config, self.game = config, game
        self.seeds = FIRST_MOMENT_SEED + game.samples
        self.features = load_features(game.features, "game.features", config, device) if game.perceptual else None
        self.mmse = None
        if game.second_moment:
            self.mmse = load_regression(game.mmse, "game.mmse", device, config.run.compile)

    def step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """One update of each network. Returns the unweighted terms and the gradient norms."""
        return self.critic_step(state, micro_batches, guard) | self.generator_step(state, micro_batches, guard)

    def critic_step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """Updates the critic to minimise V + R1; R1 is computed every `r1_every` steps, times `r1_every`."""
        game, share, critic = self.game, 1 / len(micro_batches), state.critic
        assert critic is not None
        terms = {}
        if game.r1 and state.step % game.r1_every == 0:
            terms["r1"] = torch.zeros_like(guard.failed)
            for batch in micro_batches:
                penalty = r1(critic.network.forward, batch.clean, game.r1)  # the method `forward` is never compiled
                torch.autograd.backward(penalty * game.r1_every * share)
                terms["r1"] += penalty.detach() * share
        terms["critic"] = torch.zeros_like(guard.failed)
        for batch, network in critic.passes(micro_batches):
            with torch.no_grad():
                restored, _ = self.restore(state.generator.network, batch, CRITIC_SEED)
            with autocast(self.config, restored.device):
                clean_logits, restored_logits = network(torch.cat((batch.clean, restored))).chunk(2)
            loss = critic_loss(clean_logits, restored_logits)
            torch.autograd.backward(loss * share)
            terms["critic"] += loss.detach() * share
        return terms | update(critic, terms, state, self.config, guard)

    def generator_step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """Updates the generator to minimise V, C, FM, P and SM. The critic's parameters are frozen."""
        game, learner, critic = self.game, state.generator, state.critic
        assert critic is not None
        weights = {name: getattr(game, name) for name in ("adversarial", "perceptual", "regression")}
        weights["consistency"] = self.consistency_weight(state)
        terms, zero = Terms(), torch.zeros_like(guard.failed)
        with frozen(critic.network):
            if game.has_moments and state.step % game.moments_every == 0:
                terms |= self.moments_pass(state, micro_batches, guard.ranks)
            for batch, network in learner.passes(micro_batches):
                restored, mean = self.restore(network, batch, GENERATOR_SEED)
                found = self.sample_terms(restored, batch, critic.network)
                if mean is not None:
                    found["regression"] = log_mse(mean, batch.clean)
                loss = torch.stack([weights[name] * value for name, value in found.items()]).sum() / len(micro_batches)
                torch.autograd.backward(loss)
                for name, value in found.items():
                    terms[name] = terms.get(name, zero) + value.detach() / len(micro_batches)
        return terms | update(learner, terms, state, self.config, guard)

    def restore(self, network: nn.Module, batch: Batch, seed: int) -> tuple[Tensor, Tensor | None]:
        """One sample of each crop, or the output of a generator without noise; and the regression output of a generator
        with a noise head. Each [n, 3, h, w] float32, 0..1. seed: index of the noise seed."""
        if not self.config.model.noise:
            return restore(network, batch, self.config), None
        samples, mean = draw(network, batch, self.config, batch.seeds[:, seed : seed + 1])
        return samples[:, 0], mean

    def sample_terms(self, restored: Tensor, batch: Batch, critic: Critic) -> Terms:
        """V, C and P of one sample [n, 3, h, w] of each crop; scalars."""
        with autocast(self.config, restored.device):
            logits = critic(restored)
        terms = {"adversarial": generator_loss(logits)}
        if self.game.consistency[0]:
            terms["consistency"] = consistency(restored, batch)
        if self.features is not None:
            with autocast(self.config, restored.device):
                ours = self.features(restored)
                with torch.no_grad():
                    theirs = self.features(batch.clean)
            terms["perceptual"] = perceptual(ours, theirs)
        return terms

    def moments_pass(self, state: State, micro_batches: list[Batch], ranks: Ranks) -> Terms:
        """Accumulates the gradients of FM and SM (equations 5 and 7) of K samples for each of `moment_images` crops,
        evenly spaced in the step. Returns the two terms."""
        game = self.game
        weights = {name: getattr(game, name) for name in ("first_moment", "second_moment") if getattr(game, name)}
        terms = {name: torch.zeros((), device=ranks.device) for name in weights}
        for batch in micro_batches:
            chosen = batch.evenly_spaced(game.moment_images)
            if not chosen:
                continue
            share = len(chosen) * ranks.size / game.moment_images  # the mean over ranks is then that over crops
            found = self.moment_terms(state.generator.network, batch.select(chosen))
            loss = torch.stack([found[name] * weight for name, weight in weights.items()]).sum()
            torch.autograd.backward(loss * share)
            for name in weights:
                terms[name] += found[name].detach() * share
        return terms

    def moment_terms(self, network: nn.Module, batch: Batch) -> Terms:
        """FM and SM of K samples of each crop; scalars."""
        samples = draw(network, batch, self.config, batch.seeds[:, FIRST_MOMENT_SEED:]).samples
        terms = {}
        if self.game.first_moment:
            terms["first_moment"] = first_moment(samples, batch.clean, self.game.unbiased)
        if self.mmse is not None:
            with torch.no_grad():
                mean = restore(self.mmse, batch, self.config)
            terms["second_moment"] = second_moment(samples, batch.clean, mean)
        return terms

    def schedule(self, state: State) -> dict[str, float]:
        return {"consistency_weight": self.consistency_weight(state)}

    def consistency_weight(self, state: State) -> float:
        """Weight of C: its logarithm is linear from the first step to the last."""
        first, last = self.game.consistency
        if not first:
            return 0.0
        return exp(
            log(first) + log(last / first) * state.anchor.progress_at(state.step, 0, self.config.optimiser.steps - 1)
        )


def consistency(restored: Tensor, batch: Batch) -> Tensor:
    """C (equation 4) over crops [n, 3, h, w], 0..1, of any samplings; all crops have the same weight. A scalar."""
    total = torch.zeros((), device=restored.device)
    for sampling, index in batch.by_sampling():
        tables = batch.tables[index, : sampling.components]
        term = consistency_of(restored[index], batch.clean[index], tables, sampling)
        total = total + term * (len(index) / len(batch))
    return total


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Disables the gradients of the network's parameters."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
