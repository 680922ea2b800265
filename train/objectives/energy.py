"""The sampler's objective without a critic: proper scores of K samples of each crop.

    loss = E + wf · E_features + ws · E_spectra + wm · FM + wc · commitment + wr · log_mse of the regression's output

E is the energy score (scores.py), least exactly where samples follow the posterior; FM is equation 5 of arXiv
2211.11827. With `projected` all scores are of samples projected onto their file's intervals (equation 11), as users get
them. The projection's gradient is taken to be the identity, and the commitment term, as in VQ-VAE (van den Oord,
Vinyals and Kavukcuoglu, 2017), keeps the samples before projection from drifting away from it.

The scores of features and spectra are measured by the crops at hand, so that with `optimiser.accumulate` or several
ranks they differ a little from those of the whole step.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from train.checks import expect, expect_not_negative
from train.degradation import Batch
from train.objectives.features import LITE0, load_features
from train.objectives.forward import Terms, autocast, draw, projected
from train.objectives.losses import first_moment, log_mse
from train.objectives.scores import feature_energy, pixel_energy, spectral_energy
from train.state import State
from train.update import Guard, update

if TYPE_CHECKING:
    from train.config import Config

WEIGHTS = ("first_moment", "pixels", "features", "spectra", "commitment", "regression")
"""The terms, by the names of their weights."""


@dataclass(frozen=True)
class EnergyConfig:
    """For `objective: energy`. Weights of terms, for images in 0..1; a weight of 0 leaves a term out."""

    samples: int = 2  # of each crop, K
    projected: bool = True  # scores are of samples projected onto their file's intervals
    pixels: float = 1.0  # energy score of patches of pixels and of frequency bands
    features: float = 1.0  # the same of a frozen network's features
    spectra: float = 0.0  # the same of the shape of spectra in flat areas
    spectra_from: float = 0.0  # from this share of the schedule on, 0..1
    first_moment: float = 20.0  # FM, unbiased
    commitment: float = 5.0  # mean square between a sample before projection and after
    regression: float = 0.2  # log_mse of the regression's output of a generator with a noise head; of others 0
    network: str = LITE0  # for `features`: lite0, or the path of torchvision's VGG-19 file

    def __post_init__(self) -> None:
        expect(self, "samples", self.samples >= 2, "2 or more: scores compare samples")
        expect_not_negative(self, *WEIGHTS)
        anything = any(getattr(self, name) for name in WEIGHTS)
        expect(self, "pixels", anything, "a weight above 0 here or for another term")
        expect(self, "spectra_from", 0 <= self.spectra_from <= 1, "a share, 0..1")
        expect(self, "commitment", self.projected or not self.commitment, "0 without energy.projected")


def check_energy(config: Config) -> None:
    """Raises ConfigError for settings of several sections that do not go together."""
    energy, head = config.energy, config.model.has_head
    expect(config, "model.noise", config.model.noise, "true: objective energy trains a sampler")
    expect(config, "energy.spectra", head or not energy.spectra, "0 for a generator without a noise head")
    expect(
        config,
        "energy.regression",
        (energy.regression > 0) == head,
        "more than 0 for a generator with a noise head, whose regression nothing else trains, and 0 for others",
    )


class Energy:
    """An objective (forward.py). Raises ConfigError for a feature network that cannot be loaded."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.seeds = config.energy.samples
        name = config.energy.network
        self.features = load_features(name, "energy.network", config, device) if config.energy.features else None

    def step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        learner, weights = state.generator, self.weights(state)
        terms = {name: torch.zeros_like(guard.failed) for name in weights}
        for part in parts:
            network = learner.shared if part is parts[-1] else learner.network
            found = self.terms(network, part, weights)
            loss = torch.stack([found[name] * weight for name, weight in weights.items()]).sum() / len(parts)
            torch.autograd.backward(loss)
            for name in weights:
                terms[name] += found[name].detach() / len(parts)
        terms["generator_norm"] = update(learner, terms, state, self.config, guard)
        return terms

    def weights(self, state: State) -> dict[str, float]:
        """Those above 0 at this step."""
        energy = self.config.energy
        weights = {name: getattr(energy, name) for name in WEIGHTS if getattr(energy, name)}
        if state.mark.rise(state.step, 0, self.config.optimiser.steps) < energy.spectra_from:
            weights.pop("spectra", None)
        return weights

    def terms(self, network: nn.Module, batch: Batch, wanted: Container[str]) -> Terms:
        """The losses of K samples of each crop, before their weights."""
        free, mean = draw(network, batch, self.config, batch.seeds)
        samples = self.bind(free, batch)
        terms = {} if mean is None else {"regression": log_mse(mean, batch.clean)}
        if "commitment" in wanted:
            terms["commitment"] = (free - samples.detach()).square().mean()
        if "first_moment" in wanted:
            terms["first_moment"] = first_moment(samples, batch.clean, unbiased=True)
        if "spectra" in wanted:
            assert mean is not None  # as the configuration has been checked
            terms["spectra"] = spectral_energy(samples, batch.clean, mean.detach())
        if "pixels" in wanted:
            terms["pixels"] = pixel_energy(samples, batch.clean)
        if "features" in wanted:
            assert self.features is not None
            with autocast(self.config, samples.device):
                terms["features"] = feature_energy(samples, batch.clean, self.features)
        return terms

    def bind(self, samples: Tensor, batch: Batch) -> Tensor:
        """[n, K, 3, h, w] projected with `projected`: straight-through, the gradient is the identity."""
        if not self.config.energy.projected:
            return samples
        count = samples.shape[1]
        repeated = batch.take([place for place in range(len(batch)) for _ in range(count)])
        flat = samples.flatten(0, 1)
        with torch.no_grad():
            change = projected(flat, repeated) - flat
        bound: Tensor = (flat + change).unflatten(0, (len(batch), count))
        return bound

    def schedule(self, state: State) -> dict[str, float]:
        return {}
