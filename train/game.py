"""The game of equations 8 to 10 (arXiv 2211.11827): one step of the critic, one of the generator, in turn.

A step's crops go through in parts (`optimiser.accumulate`), on one rank or several; the result is the same up to
rounding, except for the energy scores of features and of spectra, which measure by the crops at hand (train/energy.py).
The last backward pass of an update goes through the `shared` network, which averages over the ranks what that pass and
all before it have summed up. So R1 and the terms of several samples come first, through the plain network (the latter
through the shared one where there are no others).
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels import Subsampling, encode, project
from model.critic import Critic
from model.features import VGG19, EfficientNetLite0, Features, FeaturesError
from model.generator import Generator
from model.weights import WeightsError, load
from train.config import LITE0, MOMENTS, Config, ConfigError, GameConfig, has_moments, has_single_samples
from train.degradation import Batch
from train.distributed import Ranks
from train.energy import feature_energy, pixel_energy, spectral_energy
from train.losses import consistency as consistency_of
from train.losses import critic_loss, first_moment, generator_loss, log_mse, perceptual, r1, second_moment
from train.regression import Terms, autocast, draw, restore
from train.state import START, Mark, State, consistency_weight
from train.update import Guard, update

CRITICS_DRAW, GENERATORS_DRAW, FIRST_MOMENTS_DRAW = 0, 1, 2
"""Which of a crop's noise seeds serve for what; FM, SM and E take all from the third on."""


def draws(game: GameConfig) -> int:
    """How many noise seeds a crop needs."""
    return FIRST_MOMENTS_DRAW + game.samples


@dataclass(frozen=True)
class Aides:
    """Frozen networks. features: P's and E's. mmse: SM's X̄. None where the weights leave these terms out."""

    features: Features | None
    mmse: Generator | None


def load_aides(config: Config, device: torch.device) -> Aides:
    """Raises ConfigError for weights that are missing or of another kind."""
    game, features = config.game, None
    try:
        if game.perceptual or game.feature_energy:
            features = EfficientNetLite0.load() if game.features == LITE0 else VGG19.load(game.features)
            features.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
            if config.run.compile:
                features.compile()
    except FeaturesError as error:
        raise ConfigError(f"game.features: {error}") from error
    return Aides(features, load_mmse(game, device) if game.second_moment else None)


def load_mmse(game: GameConfig, device: torch.device) -> Generator:
    """`game.mmse`, frozen. Raises ConfigError."""
    try:
        mmse = load(game.mmse).generator
    except WeightsError as error:
        raise ConfigError(f"game.mmse: {error}") from error
    if not mmse.config.regresses:
        raise ConfigError(f"game.mmse: {game.mmse} is a sampler without a regression's output, expected one with it")
    return mmse.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def critic_step(state: State, parts: list[Batch], config: Config, guard: Guard) -> Terms:
    """Equation 9, its sign turned: the critic minimises V + R1. Every `r1_every` steps R1 counts that many times."""
    game, share, critic = config.game, 1 / len(parts), state.critic
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
            restored, _ = drawn(state.generator.network, part, config, CRITICS_DRAW)
        network = critic.shared if part is parts[-1] else critic.network
        with autocast(config, restored.device):
            clean_logits, restored_logits = network(torch.cat((part.clean, restored))).chunk(2)
        loss = critic_loss(clean_logits, restored_logits)
        torch.autograd.backward(loss * share)
        terms["critic"] += loss.detach() * share
    terms["critic_norm"] = update(critic, terms, state, config, guard)
    return terms


def generator_step(state: State, parts: list[Batch], aides: Aides, config: Config, guard: Guard) -> Terms:
    """Equation 10: the generator minimises V, C, FM, P and SM, and E (train/energy.py), each times its weight. The
    critic stays as it is, and no gradient of its parameters is computed."""
    game, learner = config.game, state.generator
    critic = state.critic.network if state.critic else None
    weights = {**_weights(game), "consistency": consistency_weight(config, state.step, state.mark)}
    terms, zero = Terms(), torch.zeros_like(guard.failed)
    with frozen(critic):
        if has_moments(game) and state.step % game.moments_every == 0:
            terms |= moments_pass(state, parts, aides, config, guard.ranks)
        for part in parts if has_single_samples(game) else ():
            network = learner.shared if part is parts[-1] else learner.network
            restored, mean = drawn(network, part, config, GENERATORS_DRAW)
            found = sample_terms(restored, part, critic, aides, config) | regression_term(mean, part)
            loss = torch.stack([weights[name] * value for name, value in found.items()]).sum() / len(parts)
            torch.autograd.backward(loss)
            for name, value in found.items():
                terms[name] = terms.get(name, zero) + value.detach() / len(parts)
    terms["generator_norm"] = update(learner, terms, state, config, guard)
    return terms


def _weights(game: GameConfig) -> dict[str, float]:
    return {name: getattr(game, name) for name in ("adversarial", "perceptual", "regression")}


def drawn(network: nn.Module, batch: Batch, config: Config, number: int) -> tuple[Tensor, Tensor | None]:
    """One sample of each crop [n, 3, h, w], by the noise of its seed of that number, or what a generator without noise
    restores; projected where `game.projected` says so. And the regression's output of a generator with a noise head."""
    if not config.model.noise:
        return bound(restore(network, batch, config), batch, config), None
    samples, mean = draw(network, batch, config, batch.seeds[:, number : number + 1])
    return bound(samples[:, 0], batch, config), mean


def regression_term(mean: Tensor | None, batch: Batch) -> Terms:
    """The loss of the regression beside the samples, where there is one. It is taken in an update's last pass, which
    thus reaches all parameters, as the shared network wants it."""
    return {} if mean is None else {"regression": log_mse(mean, batch.clean)}


def bound(restored: Tensor, batch: Batch, config: Config) -> Tensor:
    """Projected where `game.projected` says so, by a straight-through estimator: the gradient is that of the sample
    before. What the projection removes, it does not call back; `game.astray` does, a commitment loss like VQ-VAE's."""
    if not config.game.projected:
        return restored
    with torch.no_grad():
        change = projected(restored, batch) - restored
    return restored + change


def projected(restored: Tensor, batch: Batch) -> Tensor:
    """Each crop [n, 3, h, w] onto the intervals of the JPEG of its clean one."""
    result = torch.empty_like(restored)
    for sampling, places in batch.groups():
        images = [255 * x[places] for x in (restored, batch.clean)]
        if sampling is Subsampling.GRAY:
            images = [x.mean(1, keepdim=True) for x in images]
        coefficients = encode(images[1], batch.tables[places, : sampling.components], sampling)
        result[places] = (project(images[0], coefficients) / 255).expand(-1, 3, -1, -1)
    return result


def sample_terms(restored: Tensor, batch: Batch, critic: Critic | None, aides: Aides, config: Config) -> Terms:
    """V, C and P of one sample for each crop."""
    terms = {}
    if critic is not None:
        with autocast(config, restored.device):
            logits = critic(restored)
        terms["adversarial"] = generator_loss(logits)
    if config.game.consistency[0]:
        terms["consistency"] = consistency(restored, batch)
    if config.game.perceptual:
        assert aides.features is not None
        with autocast(config, restored.device):
            ours = aides.features(restored)
            with torch.no_grad():
                theirs = aides.features(batch.clean)
        terms["perceptual"] = perceptual(ours, theirs)
    return terms


def consistency(restored: Tensor, batch: Batch) -> Tensor:
    """C, equation 4, over crops of several samplings: each crop's mean counts the same."""
    total = torch.zeros((), device=restored.device)
    for sampling, places in batch.groups():
        tables = batch.tables[places, : sampling.components]
        term = consistency_of(restored[places], batch.clean[places], tables, sampling)
        total = total + term * (len(places) / len(batch))
    return total


def moment_weights(config: Config, step: int, mark: Mark = START) -> dict[str, float]:
    """Of the terms of several samples, after so many steps; and of the regression where it goes with them."""
    game = config.game
    names = MOMENTS if has_single_samples(game) else (*MOMENTS, "regression")
    weights = {name: getattr(game, name) for name in names if getattr(game, name)}
    if mark.rise(step, 0, config.optimiser.steps) < game.spectral_from:
        weights.pop("spectral", None)
    return weights


def moments_pass(state: State, parts: list[Batch], aides: Aides, config: Config, ranks: Ranks) -> Terms:
    """FM, SM and E of K samples for each of a few crops, spread over the step: their gradients, and their means."""
    game, learner = config.game, state.generator
    weights = moment_weights(config, state.step, state.mark)
    terms = {name: torch.zeros((), device=ranks.device) for name in weights}
    for part in parts:
        chosen = part.spread(game.moment_images)
        if not chosen:
            continue
        last = part is parts[-1] and not has_single_samples(game)
        share = len(chosen) * ranks.size / game.moment_images  # ranks are averaged, however many crops each has
        network = learner.shared if last else learner.network
        found = moment_terms(network, part.take(chosen), weights, aides, config)
        torch.autograd.backward(torch.stack([found[name] * weight for name, weight in weights.items()]).sum() * share)
        for name in weights:
            terms[name] += found[name].detach() * share
    return terms


def moment_terms(network: nn.Module, batch: Batch, weights: Container[str], aides: Aides, config: Config) -> Terms:
    """FM and SM, equations 5 and 7, E, and how far they stray, of K samples for each crop; and the regression's loss
    where there are no terms of single samples."""
    game = config.game
    free, regressed = draw(network, batch, config, batch.seeds[:, FIRST_MOMENTS_DRAW:])
    repeated = batch.take([place for place in range(len(batch)) for _ in range(game.samples)])
    samples = bound(free.flatten(0, 1), repeated, config).unflatten(0, (len(batch), game.samples))
    terms = {} if has_single_samples(game) else regression_term(regressed, batch)
    if game.astray:
        terms["astray"] = (free - samples.detach()).square().mean()
    if game.first_moment:
        terms["first_moment"] = first_moment(samples, batch.clean, game.unbiased)
    if aides.mmse is not None:
        with torch.no_grad():
            mean = restore(aides.mmse, batch, config)
        terms["second_moment"] = second_moment(samples, batch.clean, mean)
    if "spectral" in weights:
        assert regressed is not None  # as the configuration has been checked
        terms["spectral"] = spectral_energy(samples, batch.clean, regressed.detach())
    if game.energy:
        terms["energy"] = pixel_energy(samples, batch.clean)
    if game.feature_energy:
        assert aides.features is not None
        with autocast(config, samples.device):
            terms["feature_energy"] = feature_energy(samples, batch.clean, aides.features)
    return terms


@contextmanager
def frozen(network: nn.Module | None) -> Iterator[None]:
    """No gradient of its parameters is computed inside."""
    if network is None:
        yield
        return
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
