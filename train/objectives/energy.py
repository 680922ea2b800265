"""The energy objective: a sampler without a critic, trained by proper scores of K samples of each crop.

    loss = wp · E_pixels + wf · E_features + ws · E_spectra + wo · P + wd · D + wm · FM + wc · commitment + wr · log_mse

E is the energy score (energy_score.py), which is minimal exactly where samples follow the posterior; E_spectra that of
flat areas' spectra, and P (`power`) the difference of their mean power (spectra.py); D the distance between the
distributions of the features of all samples and all originals (distribution.py); FM is equation 5 of arXiv 2211.11827;
log_mse is the loss of the regression output. With `projected` all scores are of samples projected onto their file's
intervals (equation 11), as users get them. The projection has a straight-through gradient (the identity), and the
commitment term, as in VQ-VAE (van den Oord, Vinyals and Kavukcuoglu, 2017), keeps samples close to their projection.

The scores of features and spectra and D are normalised by the crops of a micro-batch of a rank, and D and P are those
of its distributions, so that their values depend on its number of crops; all are least for the originals' distribution,
whatever that number.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from train.checks import expect, expect_not_negative
from train.data.crops import DIRECTIONS, step_generator
from train.degradation import Batch
from train.objectives.distribution import sliced_wasserstein
from train.objectives.energy_score import feature_energy, feature_levels, pixel_energy
from train.objectives.forward import Terms, autocast, check_regression_weight, draw, projected
from train.objectives.frozen import LITE0, load_features
from train.objectives.losses import first_moment, log_mse
from train.objectives.spectra import flat_spectra, power_difference, spectral_energy
from train.state import State
from train.update import Guard, update

if TYPE_CHECKING:
    from train.config import Config

WEIGHTS = ("first_moment", "pixels", "features", "spectra", "power", "distribution", "commitment", "regression")
"""Names of the terms and of their weights."""


@dataclass(frozen=True)
class EnergyConfig:
    """Settings of `objective: energy`: weights of terms on images in 0..1, where 0 disables a term, and their
    options."""

    samples: int = 2  # K, samples of each crop
    projected: bool = True  # score samples after the projection onto their file's intervals
    pixels: float = 1.0  # weight of the energy score of pixel patches and of frequency bands
    features: float = 1.0  # weight of the energy score of a frozen network's features
    spectra: float = 0.0  # weight of the energy score of the shape of spectra in flat areas
    power: float = 0.0  # weight of the difference between the mean power spectra of flat areas
    spectra_from: float = 0.0  # progress of the schedule, 0..1, from which `spectra` and `power` apply
    distribution: float = 0.0  # weight of the distance between the distributions of the network's features
    first_moment: float = 20.0  # weight of the unbiased FM
    commitment: float = 5.0  # weight of the mean squared difference between a sample and its projection
    regression: float = 0.2  # weight of log_mse of the regression output; 0 for a generator without a noise head
    network: str = LITE0  # of `features` and `distribution`: lite0, or the path of torchvision's VGG-19 file

    def __post_init__(self) -> None:
        expect(self, "samples", self.samples >= 2, "2 or more: scores compare samples")
        expect_not_negative(self, *WEIGHTS)
        anything = any(getattr(self, name) for name in WEIGHTS)
        expect(self, "pixels", anything, "a weight above 0 here or for another term")
        expect(self, "spectra_from", 0 <= self.spectra_from <= 1, "a share, 0..1")
        expect(self, "commitment", self.projected or not self.commitment, "0 without energy.projected")


def check_energy(config: Config) -> None:
    """Raises ConfigError for a model that does not fit the objective."""
    usable = config.model.has_noise_head or not (config.energy.spectra or config.energy.power)
    expect(config, "model.noise", config.model.noise, "true: objective energy trains a sampler")
    expect(config, "energy.spectra", usable, "0, and energy.power=0, for a generator without a noise head")
    check_regression_weight(config, "energy")


class Energy:
    """An Objective (forward.py). Raises ConfigError for a feature network that cannot be loaded."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.seeds = config.energy.samples
        energy = config.energy
        wanted = energy.features or energy.distribution
        self.features = load_features(energy.network, "energy.network", config, device) if wanted else None

    def step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """One update of the generator. Returns the loss, its unweighted terms and the gradient norm."""
        learner, weights = state.generator, self.weights(state)
        terms = {name: torch.zeros_like(guard.failed) for name in ("loss", *weights)}
        random = step_generator(self.config.run.seed, state.step, DIRECTIONS)
        for batch, network in learner.passes(micro_batches):
            found = self.terms(network, batch, weights, random)
            loss = torch.stack([found[name] * weight for name, weight in weights.items()]).sum() / len(micro_batches)
            torch.autograd.backward(loss)
            terms["loss"] += loss.detach()
            for name in weights:
                terms[name] += found[name].detach() / len(micro_batches)
        return terms | update(learner, terms, state, self.config, guard)

    def weights(self, state: State) -> dict[str, float]:
        """The weights above 0 at this step."""
        energy = self.config.energy
        weights = {name: getattr(energy, name) for name in WEIGHTS if getattr(energy, name)}
        if state.anchor.progress_at(state.step, 0, self.config.optimiser.steps) < energy.spectra_from:
            weights.pop("spectra", None)
            weights.pop("power", None)
        return weights

    def terms(self, network: nn.Module, batch: Batch, wanted: Container[str], random: torch.Generator) -> Terms:
        """The unweighted losses `wanted`, of K samples of each crop; scalars. random: for D's directions."""
        unprojected, mean = draw(network, batch, self.config, batch.seeds)
        samples = self.project(unprojected, batch)
        terms = {}
        if mean is not None:  # with a noise head; check_energy refuses these terms otherwise
            terms["regression"] = log_mse(mean, batch.clean)
            if "spectra" in wanted or "power" in wanted:
                spectra = flat_spectra(samples, batch.clean, mean.detach())
                found = {"spectra": spectral_energy(spectra), "power": power_difference(spectra)}
                terms |= {name: term for name, term in found.items() if name in wanted}
        if "commitment" in wanted:
            terms["commitment"] = (unprojected - samples.detach()).square().mean()
        if "first_moment" in wanted:
            terms["first_moment"] = first_moment(samples, batch.clean, unbiased=True)
        if "pixels" in wanted:
            terms["pixels"] = pixel_energy(samples, batch.clean)
        if self.features is not None:
            with autocast(self.config, samples.device):
                levels = feature_levels(samples, batch.clean, self.features)
            if "features" in wanted:
                terms["features"] = feature_energy(*levels)
            if "distribution" in wanted:
                terms["distribution"] = sliced_wasserstein(*levels, random)
        return terms

    def project(self, samples: Tensor, batch: Batch) -> Tensor:
        """Projects samples [n, K, 3, h, w] with a straight-through gradient, if `projected`."""
        if not self.config.energy.projected:
            return samples
        count = samples.shape[1]
        repeated = batch.select([index for index in range(len(batch)) for _ in range(count)])
        flat = samples.flatten(0, 1)
        with torch.no_grad():
            change = projected(flat, repeated) - flat
        result: Tensor = (flat + change).unflatten(0, (len(batch), count))
        return result

    def schedule(self, state: State) -> dict[str, float]:
        return {}
