"""The game of equations 8 to 10 (arXiv 2211.11827): one step of the critic, one of the generator, in turn.

    critic     V + R1                                 equation 9, its sign turned
    generator  V + C + FM + P + SM (+ log_mse)        equation 10, each times its weight

V, C and P are of one sample of each crop, in each step; FM and SM of K samples of a few crops, every few steps.

A step's crops go through in parts (`optimiser.accumulate`), on one rank or several; the result is the same up to
rounding. The last backward pass of an update goes through the `shared` network, which averages over the ranks what that
pass and all before it have summed up. So R1, FM and SM come first, through the plain network.
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
from train.objectives.features import LITE0, load_features
from train.objectives.forward import Terms, autocast, draw, load_regression, restore
from train.objectives.losses import consistency as consistency_of
from train.objectives.losses import critic_loss, first_moment, generator_loss, log_mse, perceptual, r1, second_moment
from train.state import State
from train.update import Guard, update

if TYPE_CHECKING:
    from train.config import Config

CRITIC_SEED, GENERATOR_SEED, FIRST_MOMENT_SEED = 0, 1, 2
"""Which of a crop's noise seeds serve for what; FM and SM take all from the third on."""


@dataclass(frozen=True)
class GameConfig:
    """For `objective: game`. The terms of equations 8 to 10: their weights, for images in 0..1 and means over all
    elements, and how often they are taken. A weight of 0 leaves a term out."""

    adversarial: float = 1e-3  # V
    r1: float = 1.0  # gamma
    r1_every: int = 1  # steps; the penalty is multiplied by as many
    consistency: tuple[float, float] = (0.1, 10.0)  # C: from the first to the last step, its logarithm linear in time
    first_moment: float = 1.0  # FM
    unbiased: bool = True  # FM without the Var / K that K samples add to it
    second_moment: float = 0.0  # SM
    mmse: str = "mmse"  # SM's frozen X̄: weights by name or path
    moment_images: int = 8  # images for FM and SM, of all ranks together
    samples: int = 8  # of each, K
    moments_every: int = 8  # steps; FM and SM keep their weights
    perceptual: float = 0.0  # P
    features: str = LITE0  # P's: lite0, or the path of torchvision's VGG-19 file
    regression: float = 0.2  # log_mse of the regression's output of a generator with a noise head; of others 0

    def __post_init__(self) -> None:
        expect_positive(self, "adversarial", "r1_every", "moments_every", "samples")
        expect_not_negative(self, "r1", "first_moment", "second_moment", "perceptual", "regression")
        weights = self.consistency
        expect(self, "consistency", min(weights) > 0 or max(weights) == 0, "two positive weights, or two of 0")
        compares = self.second_moment or (self.first_moment and self.unbiased)
        expect(self, "samples", self.samples >= 2 or not compares, "2 or more: FM and SM compare samples")

    @property
    def has_moments(self) -> bool:
        """Whether there are terms of several samples of an image."""
        return self.first_moment > 0 or self.second_moment > 0


def check_game(config: Config) -> None:
    """Raises ConfigError for settings of several sections that do not go together."""
    game, batch = config.game, config.data.batch
    expect(config, "model.noise", config.model.noise or not game.has_moments, "true: FM and SM are about samples")
    expect(
        config,
        "game.regression",
        (game.regression > 0) == config.model.has_head,
        "more than 0 for a generator with a noise head, whose regression nothing else trains, and 0 for others",
    )
    expect(config, "game.moment_images", 1 <= game.moment_images <= batch, f"1 to data.batch, {batch}")


class Game:
    """An objective (forward.py). Raises ConfigError for frozen networks that cannot be loaded."""

    def __init__(self, config: Config, device: torch.device) -> None:
        game = config.game
        self.config, self.game = config, game
        self.seeds = FIRST_MOMENT_SEED + game.samples
        self.features = load_features(game.features, "game.features", config, device) if game.perceptual else None
        self.mmse = load_regression(game.mmse, "game.mmse", device) if game.second_moment else None

    def step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        return self.critic_step(state, parts, guard) | self.generator_step(state, parts, guard)

    def critic_step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        """The critic minimises V + R1. Every `r1_every` steps R1 counts that many times."""
        game, share, critic = self.game, 1 / len(parts), state.critic
        assert critic is not None
        terms = {}
        if game.r1 and state.step % game.r1_every == 0:
            terms["r1"] = torch.zeros_like(guard.failed)
            for part in parts:
                penalty = r1(critic.network.forward, part.clean, game.r1)  # `forward` itself is never compiled
                torch.autograd.backward(penalty * game.r1_every * share)
                terms["r1"] += penalty.detach() * share
        terms["critic"] = torch.zeros_like(guard.failed)
        for part in parts:
            with torch.no_grad():
                restored, _ = self.restored(state.generator.network, part, CRITIC_SEED)
            network = critic.shared if part is parts[-1] else critic.network
            with autocast(self.config, restored.device):
                clean_logits, restored_logits = network(torch.cat((part.clean, restored))).chunk(2)
            loss = critic_loss(clean_logits, restored_logits)
            torch.autograd.backward(loss * share)
            terms["critic"] += loss.detach() * share
        terms["critic_norm"] = update(critic, terms, state, self.config, guard)
        return terms

    def generator_step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        """The generator minimises V, C, FM, P and SM. The critic stays as it is, and no gradient of its parameters is
        computed."""
        game, learner, critic = self.game, state.generator, state.critic
        assert critic is not None
        weights = {name: getattr(game, name) for name in ("adversarial", "perceptual", "regression")}
        weights["consistency"] = self.consistency_weight(state)
        terms, zero = Terms(), torch.zeros_like(guard.failed)
        with frozen(critic.network):
            if game.has_moments and state.step % game.moments_every == 0:
                terms |= self.moments_pass(state, parts, guard.ranks)
            for part in parts:
                network = learner.shared if part is parts[-1] else learner.network
                restored, mean = self.restored(network, part, GENERATOR_SEED)
                found = self.sample_terms(restored, part, critic.network)
                if mean is not None:
                    found["regression"] = log_mse(mean, part.clean)
                loss = torch.stack([weights[name] * value for name, value in found.items()]).sum() / len(parts)
                torch.autograd.backward(loss)
                for name, value in found.items():
                    terms[name] = terms.get(name, zero) + value.detach() / len(parts)
        terms["generator_norm"] = update(learner, terms, state, self.config, guard)
        return terms

    def restored(self, network: nn.Module, batch: Batch, seed: int) -> tuple[Tensor, Tensor | None]:
        """One sample of each crop [n, 3, h, w], by its noise seed of that number, or what a generator without noise
        restores; and the regression's output of a generator with a noise head."""
        if not self.config.model.noise:
            return restore(network, batch, self.config), None
        samples, mean = draw(network, batch, self.config, batch.seeds[:, seed : seed + 1])
        return samples[:, 0], mean

    def sample_terms(self, restored: Tensor, batch: Batch, critic: Critic) -> Terms:
        """V, C and P of one sample of each crop."""
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

    def moments_pass(self, state: State, parts: list[Batch], ranks: Ranks) -> Terms:
        """FM and SM, equations 5 and 7, of K samples for each of a few crops, spread over the step: their gradients,
        and their means."""
        game = self.game
        weights = {name: getattr(game, name) for name in ("first_moment", "second_moment") if getattr(game, name)}
        terms = {name: torch.zeros((), device=ranks.device) for name in weights}
        for part in parts:
            chosen = part.spread(game.moment_images)
            if not chosen:
                continue
            share = len(chosen) * ranks.size / game.moment_images  # ranks are averaged, however many crops each has
            found = self.moment_terms(state.generator.network, part.take(chosen))
            loss = torch.stack([found[name] * weight for name, weight in weights.items()]).sum()
            torch.autograd.backward(loss * share)
            for name in weights:
                terms[name] += found[name].detach() * share
        return terms

    def moment_terms(self, network: nn.Module, batch: Batch) -> Terms:
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
        """C's: its logarithm rises (or falls) linearly from the first step to the last."""
        first, last = self.game.consistency
        if not first:
            return 0.0
        return exp(log(first) + log(last / first) * state.mark.rise(state.step, 0, self.config.optimiser.steps - 1))


def consistency(restored: Tensor, batch: Batch) -> Tensor:
    """C, equation 4, over crops of several samplings: each crop's mean counts the same."""
    total = torch.zeros((), device=restored.device)
    for sampling, places in batch.groups():
        tables = batch.tables[places, : sampling.components]
        term = consistency_of(restored[places], batch.clean[places], tables, sampling)
        total = total + term * (len(places) / len(batch))
    return total


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradient of its parameters is computed inside."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
