"""The texture of samples, among the figures that training prints on the way."""

import math

import numpy as np
import pytest
import torch
from jpegs import encode, photograph
from runs import tiny_weights
from scenes import tensor_of
from training import config_of, game_of, lines, write_photos

from kernels import Subsampling, roundtrip
from model.weights import load
from train.checks import ConfigError
from train.config import Config, RunConfig
from train.degradation import DegradationConfig
from train.texture import FlatTexture
from train.trainer import train
from train.validate import QUALITIES, SAMPLES, compressed, outputs, validate

CPU = torch.device("cpu")
FLOAT32 = Config(run=RunConfig(bfloat16=False))  # figures compared are of one arithmetic on any CPU
TEXTURE = ("lattice", "lattice_worst", "flat_deviation")
NAMES = [f"{whose}{name}_{quality}" for quality in QUALITIES for name in TEXTURE for whose in ("", "original_")]


def grainy(seed):
    """[3, 160, 160] uint8."""
    return torch.from_numpy(np.random.default_rng(seed).normal(128, 3, (3, 160, 160)).round().astype(np.uint8))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A sampler with a regression's output, and a regression."""
    folder = tmp_path_factory.mktemp("weights")
    return tuple(load(str(tiny_weights(folder, noise))).generator for noise in (True, False))


@pytest.mark.parametrize("own", [True, False])
def test_texture_is_that_of_the_first_sample_less_the_regressions_image(networks, own):
    sampler, mmse = networks
    images = [grainy(0), grainy(1)]
    figures = validate(sampler, images, FLOAT32, CPU, None if own else mmse)
    for quality in QUALITIES:
        batch, texture, original = compressed(torch.stack(images), quality, CPU), FlatTexture(), FlatTexture()
        made = outputs(sampler, batch, FLOAT32, SAMPLES)
        expected = made.expected if own else outputs(mmse, batch, FLOAT32, 1).expected
        for sample, clean, restored in zip(made.samples[:, 0], batch.clean, expected, strict=True):
            texture.add(255 * sample, 255 * restored)
            original.add(255 * clean, 255 * restored)
        assert texture.windows == 2 * 9 * 9
        assert figures[f"lattice_{quality}"] == pytest.approx(texture.lattice, abs=1e-3)
        assert figures[f"lattice_worst_{quality}"] == pytest.approx(texture.lattice_worst, abs=1e-3)
        assert figures[f"flat_deviation_{quality}"] == pytest.approx(texture.deviation, abs=1e-3)
        assert figures[f"original_lattice_{quality}"] == pytest.approx(original.lattice, abs=1e-3)
        assert figures[f"original_flat_deviation_{quality}"] == pytest.approx(original.deviation, abs=1e-3)
        assert texture.deviation > 0
    assert not set(NAMES) & set(validate(mmse, images, FLOAT32, CPU))


@pytest.mark.parametrize(("trained", "median", "measured"), [((5, 5), 5, {5}), ((15, 95), 30, {20, 40})])
def test_qualities_are_those_of_training(networks, trained, median, measured):
    config = Config(run=RunConfig(bfloat16=False), degradation=DegradationConfig(trained, median))
    figures = validate(networks[1], [grainy(0)], config, CPU)
    assert figures.keys() == {f"gain_{quality}" for quality in measured}


def test_images_without_flat_areas_have_no_texture_and_all_other_figures(networks):
    busy = tensor_of(photograph(160, 160, 0))[0].int() + 20 * (torch.arange(160) // 4 % 2)
    figures = validate(networks[0], [busy.clamp(0, 255).to(torch.uint8)], FLOAT32, CPU, networks[1])
    assert not set(NAMES) & set(figures)
    assert all(math.isfinite(value) for value in figures.values())


def test_both_outputs_of_a_sampler_are_watched(networks):
    """The gain of the regression is that of the same output alone."""
    sampler, _ = networks
    images = [grainy(0), tensor_of(photograph(160, 160, 0))[0].to(torch.uint8)]
    figures = validate(sampler, images, FLOAT32, CPU)
    for quality in QUALITIES:
        batch = compressed(torch.stack(images), quality, CPU)
        with torch.no_grad():
            mean = sampler(batch.decoded, batch.tables, batch.sampling_index).clamp(0, 1)
        errors = [(x - batch.clean).square().flatten(1).mean(1) for x in (batch.decoded, mean)]
        gain = 10 * (errors[0] / errors[1]).log10().mean()
        assert figures[f"gain_{quality}"] == pytest.approx(float(gain), abs=1e-3)
        assert figures[f"sample_gain_{quality}"] < figures[f"mean_gain_{quality}"]


def test_figures_of_samples_are_those_of_their_definitions(networks):
    sampler, _ = networks
    images = [tensor_of(photograph(160, 160, seed))[0].to(torch.uint8) for seed in (1, 2)]
    figures = validate(sampler, images, FLOAT32, CPU)
    for quality in QUALITIES:
        batch = compressed(torch.stack(images), quality, CPU)
        samples = outputs(sampler, batch, FLOAT32, SAMPLES).samples
        x, clean, decoded = (y.double().numpy() for y in (samples, batch.clean, batch.decoded))

        def gain(restored, clean=clean, decoded=decoded):
            before, after = (((y - clean) ** 2).mean((1, 2, 3)) for y in (decoded, restored))
            return (10 * np.log10(before / after)).mean()

        assert figures[f"sample_gain_{quality}"] == pytest.approx(gain(x[:, 0]), abs=1e-3)
        assert figures[f"mean_gain_{quality}"] == pytest.approx(gain(x.mean(1)), abs=1e-3)
        c4 = 2 * math.sqrt(2 / (3 * math.pi))  # of four values
        assert figures[f"std_{quality}"] == pytest.approx(x.std(1, ddof=1).mean() / c4, abs=1e-4)
        jpegs = [
            roundtrip(255 * y, batch.tables, Subsampling.S420).double().numpy() for y in (batch.clean, samples[:, 0])
        ]
        rmse = math.sqrt(((jpegs[0] - jpegs[1]) ** 2).mean())
        assert figures[f"consistency_{quality}"] == pytest.approx(rmse, rel=1e-3)


def test_training_a_sampler_prints_its_texture_and_wants_a_regression_for_that(tmp_path):
    photos = write_photos(tmp_path)
    path = tmp_path / "grainy.jpg"
    path.write_bytes(encode(grainy(0).permute(1, 2, 0).numpy(), "4:4:4", 97))
    changes = {"data": {"validation": str(path)}, "optimiser": {"steps": 1}}
    train(game_of(photos, tmp_path / "run", **changes))
    assert set(NAMES) < set(lines(tmp_path / "run")[-1])
    without = {"model": {"trunk": "rrdb", "blocks": 1, "growth": 4}}
    with pytest.raises(ConfigError, match=r"game\.mmse.*nowhere"):
        game = {"mmse": "nowhere", "second_moment": 0.0, "regression": 0.0}
        train(game_of(photos, tmp_path / "other", game=game, **without, **changes))
    train(config_of(photos, tmp_path / "regression", **changes))
    assert not set(NAMES) & set(lines(tmp_path / "regression")[-1])
