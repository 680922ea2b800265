"""The energy objective's step against its formula as it stands, and when its terms join."""

import pytest
import torch
from training import energy_of, gradients_of, lines

import train.objectives.energy as energy_module
from model.generator import Noise
from train.checks import ConfigError
from train.data.crops import DIRECTIONS, random_crops, step_generator
from train.data.photographs import load_images
from train.degradation import degrade
from train.distributed import Ranks
from train.objectives.distribution import sliced_wasserstein
from train.objectives.energy import WEIGHTS, Energy
from train.objectives.energy_score import feature_energy, feature_levels, pixel_energy
from train.objectives.forward import projected
from train.objectives.losses import first_moment, log_mse
from train.objectives.spectra import flat_spectra, power_difference, spectral_energy
from train.state import new_state
from train.trainer import train
from train.update import Guard

CPU = torch.device("cpu")


def prepared(photos, tmp_path, **energy):
    """An objective, its state, and a batch of a step's 4 crops, of three samplings. The networks are such that the
    projection changes samples."""
    samplings = {"samplings": {"4:2:0": 1, "gray": 1, "4:2:2": 1}}
    config = energy_of(photos, tmp_path, degradation=samplings, energy=energy)
    clean = random_crops(load_images(config.data.train, 32), 32, 4, step_generator(5, 0))
    objective, state = Energy(config, CPU), new_state(config, Ranks())
    batch = degrade(clean, config.degradation, step_generator(5, 2), draws=objective.seeds)
    assert len(set(batch.samplings)) > 1
    with torch.no_grad():
        state.generator.network.tail.weight.mul_(50)
        state.generator.network.noise_head.mix.weight.mul_(10)
    return objective, state, batch


def drawn(state, batch):
    noise = Noise(batch.seeds, torch.zeros(4, 2, dtype=torch.int64))
    return state.generator.network(batch.decoded, batch.tables, batch.sampling_index, noise)


def gradients(outputs, state, slopes=None):
    wanted = torch.autograd.grad(outputs, list(state.generator.network.parameters()), slopes)
    return torch.cat([gradient.flatten().double() for gradient in wanted])


def test_the_gradient_is_that_of_the_weighted_terms(photos, tmp_path, monkeypatch):
    terms = {"projected": False, "commitment": 0.0, "features": 0.2, "spectra": 0.1, "first_moment": 3.0, "samples": 3}
    terms |= {"distribution": 2.0, "power": 0.3}
    objective, state, batch = prepared(photos, tmp_path, **terms)
    arguments = state, [batch], Guard(Ranks())
    found = gradients_of(monkeypatch, energy_module, objective.step, state.generator, *arguments)
    samples, mean = drawn(state, batch)
    levels = feature_levels(samples, batch.clean, objective.features)
    spectra = flat_spectra(samples, batch.clean, mean.detach())
    random = step_generator(objective.config.run.seed, state.step, DIRECTIONS)
    loss = (
        pixel_energy(samples, batch.clean)
        + 0.2 * feature_energy(*levels)
        + 2.0 * sliced_wasserstein(*levels, random)
        + 0.1 * spectral_energy(spectra)
        + 0.3 * power_difference(spectra)
        + 3.0 * first_moment(samples, batch.clean, unbiased=True)
        + 0.2 * log_mse(mean, batch.clean)
    )
    wanted = gradients(loss, state)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("parts", [1, 2])
def test_scores_of_projected_samples_pass_their_gradient_to_the_samples_before(photos, tmp_path, monkeypatch, parts):
    """Straight through; and commitment pulls these to where the projection leads."""
    objective, state, batch = prepared(photos, tmp_path, first_moment=0.0, commitment=3.0)
    arguments = state, batch.split(parts), Guard(Ranks())
    found = gradients_of(monkeypatch, energy_module, objective.step, state.generator, *arguments)
    samples, mean = drawn(state, batch)
    free = samples.unbind(1)
    bound = [projected(x.detach(), batch).requires_grad_() for x in free]
    for x, y in zip(free, bound, strict=True):
        assert (projected(y, batch) - y).abs().max() < 1e-3 < (y - x).abs().max()
    slopes = torch.autograd.grad(pixel_energy(torch.stack(bound, 1), batch.clean), bound)
    pulls = [3 * 2 * (x - y).detach() / (2 * x.numel()) for x, y in zip(free, bound, strict=True)]
    assert torch.stack(pulls).norm() > 1e-2 * torch.stack(slopes).norm()
    slopes = [slope + pull for slope, pull in zip(slopes, pulls, strict=True)]
    wanted = gradients((*free, log_mse(mean, batch.clean)), state, [*slopes, torch.tensor(0.2)])
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_the_spectra_join_when_their_share_of_the_schedule_is_reached(photos, tmp_path):
    energy = {"spectra": 0.1, "power": 0.1, "spectra_from": 0.5}
    train(energy_of(photos, tmp_path / "run", energy=energy, optimiser={"steps": 4}, run={"log_every": 1}))
    for term in ("spectra", "power"):
        assert [term in line for line in lines(tmp_path / "run")] == [False, False, True, True]


@pytest.mark.parametrize("term", ["first_moment", "commitment", "pixels"])
def test_a_weight_of_0_leaves_its_term_out(photos, tmp_path, term):
    train(energy_of(photos, tmp_path, energy={term: 0.0}, optimiser={"steps": 1}))
    (line,) = lines(tmp_path)
    assert {*WEIGHTS} - set(line) == {term, "features", "spectra", "power", "distribution"}


@pytest.mark.parametrize("term", ["features", "distribution"])
def test_a_feature_network_that_is_missing_is_named(photos, tmp_path, term):
    with pytest.raises(ConfigError, match=r"energy\.network.*nowhere\.pth"):
        Energy(energy_of(photos, tmp_path, energy={term: 1.0, "network": "nowhere.pth"}), CPU)
    assert Energy(energy_of(photos, tmp_path, energy={"network": "nowhere.pth"}), CPU).features is None
