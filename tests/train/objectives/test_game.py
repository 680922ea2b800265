"""The game's two steps against equations 8 to 10 as they stand, its schedules, and what it starts from."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from training import assert_equal, checkpoint, config_of, game_of, gradients_of, lines

import train.objectives.game as game_module
from kernels import Subsampling
from model.features import EfficientNetLite0
from model.generator import Generator, GeneratorConfig, Noise
from model.weights import load, save
from train.checkpoint import FAILURE
from train.checks import ConfigError
from train.data.crops import random_crops, step_generator
from train.data.photographs import load_images
from train.degradation import degrade
from train.distributed import Ranks
from train.objectives.game import Game, consistency
from train.objectives.losses import consistency as consistency_of
from train.objectives.losses import first_moment, generator_loss, log_mse, perceptual, second_moment
from train.state import TrainingError, new_state
from train.trainer import train
from train.update import Guard

NO_NETWORKS = {"perceptual": 0.0, "second_moment": 0.0}
"""For the section `game`: no frozen network is needed."""


def prepared(photos, tmp_path, **changes):
    """A game, its state, and a batch of a step's 4 crops, of three samplings."""
    config = game_of(photos, tmp_path, degradation={"samplings": {"4:2:0": 1, "gray": 1, "4:2:2": 1}}, **changes)
    clean = random_crops(load_images(config.data.train, 32), 32, 4, step_generator(5, 0))
    game = Game(config, torch.device("cpu"))
    batch = degrade(clean, config.degradation, step_generator(5, 2), draws=game.seeds)
    assert len(set(batch.samplings)) > 1
    return game, new_state(config, Ranks()), batch


@pytest.mark.parametrize("parts", [1, 2])
def test_the_generators_gradient_is_that_of_equation_10(photos, tmp_path, monkeypatch, parts):
    playing, state, batch = prepared(photos, tmp_path, game={"mmse": "mmse", "consistency": (5.0, 5.0)})
    arguments, game = (state, batch.split(parts), Guard(Ranks())), playing.game
    found = gradients_of(monkeypatch, game_module, playing.generator_step, state.generator, *arguments)

    def restored(network, places, seeds=None):
        noise = None if seeds is None else Noise(seeds, torch.zeros(len(places), 2, dtype=torch.int64))
        return network(batch.decoded[places], batch.tables[places], batch.sampling_index[places], noise)

    generator, everything = state.generator.network, list(range(4))
    drawn = restored(generator, everything, batch.seeds[:, 1:2])
    one = drawn.samples[:, 0]
    few = [0, 1, 2]  # 3 of 4, evenly spread
    samples = restored(generator, few, batch.seeds[few, 2:]).samples
    lite0, mean = EfficientNetLite0.load(), restored(load("mmse").generator, few)
    singles = [
        consistency_of(one[i : i + 1], batch.clean[i : i + 1], batch.tables[i : i + 1, : s.components], s)
        for i, s in enumerate(batch.samplings)
    ]
    loss = (
        game.adversarial * generator_loss(state.critic.network(one))
        + 5.0 * torch.stack(singles).mean()
        + game.perceptual * perceptual(lite0(one), lite0(batch.clean))
        + game.first_moment * first_moment(samples, batch.clean[few], unbiased=True)
        + game.second_moment * second_moment(samples, batch.clean[few], mean)
        + game.regression * log_mse(drawn.mean, batch.clean)
    )
    wanted = torch.autograd.grad(loss, list(generator.parameters()))
    wanted = torch.cat([gradient.flatten().double() for gradient in wanted])
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    assert float(consistency(one, batch).detach()) == pytest.approx(
        float(torch.stack(singles).detach().mean()), rel=1e-5
    )


def test_the_critics_gradient_is_that_of_equation_9_and_lazy_r1_counts_for_the_steps_between(
    photos, tmp_path, monkeypatch
):
    """`r1_every` = 4: four times R1's gradient in every fourth step, none between."""

    def gradient(parts=1, step=0, **game):
        playing, state, batch = prepared(photos, tmp_path, game=game)
        state.step = step
        return gradients_of(
            monkeypatch, game_module, playing.critic_step, state.critic, state, batch.split(parts), Guard(Ranks())
        )

    alone, lazy, between = gradient(r1=0.0), gradient(r1=1e4, r1_every=4), gradient(r1=1e4, r1_every=4, step=3)
    always = gradient(r1=1e4, r1_every=1)
    penalty = always - alone
    assert penalty.norm() > 0.1 * alone.norm()
    assert torch.equal(between, alone)
    assert (lazy - alone - 4 * penalty).norm() < 1e-4 * penalty.norm()
    assert (gradient(2, r1=1e4, r1_every=4) - lazy).norm() < 1e-4 * lazy.norm()

    _, state, batch = prepared(photos, tmp_path)
    critic, generator = state.critic.network, state.generator.network
    noise = Noise(batch.seeds[:, :1], torch.zeros(4, 2, dtype=torch.int64))
    with torch.no_grad():
        restored = generator(batch.decoded, batch.tables, batch.sampling_index, noise).samples[:, 0]
    clean = batch.clean.clone().requires_grad_()
    logits = critic(clean)
    (slope,) = torch.autograd.grad(logits.sum(), clean, create_graph=True)
    loss = (1 + (-logits).exp()).log().mean() + (1 + critic(restored).exp()).log().mean()
    loss = loss + 1e4 / 2 * slope.square().sum((1, 2, 3)).mean()
    wanted = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, list(critic.parameters()))])
    assert (always - wanted).norm() < 1e-4 * wanted.norm()


def test_the_generators_step_leaves_the_critic_alone(photos, tmp_path):
    game, state, batch = prepared(photos, tmp_path)
    guard, critic = Guard(Ranks()), state.critic.network
    before = [parameter.clone() for parameter in critic.parameters()]
    began = [parameter.clone() for parameter in state.generator.network.parameters()]
    game.generator_step(state, [batch], guard)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, critic.parameters(), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(began, state.generator.network.parameters(), strict=True))
    game.critic_step(state, [batch], guard)
    assert not any(torch.equal(*pair) for pair in zip(before, critic.parameters(), strict=True))
    assert guard.failure() is None


def test_consistencys_weight_rises_by_the_same_factor_in_every_step(photos, tmp_path):
    def weights_of(steps, numbers, consistency):
        config = game_of(photos, tmp_path, optimiser={"steps": steps}, game={"consistency": consistency, **NO_NETWORKS})
        game, state = Game(config, torch.device("cpu")), new_state(config, Ranks())
        return [game.consistency_weight(replace(state, step=step)) for step in numbers]

    weights = weights_of(101, range(102), (0.1, 10.0))
    assert (weights[0], weights[50], weights[100]) == pytest.approx((0.1, 1.0, 10.0))
    factors = [after / before for before, after in pairwise(weights[:101])]
    assert factors == pytest.approx([100**0.01] * 100)
    assert weights[101] == pytest.approx(10.0)
    for same in (0.0, 3.0):
        assert weights_of(24, (0, 7, 23), (same, same)) == pytest.approx([same] * 3)


@pytest.mark.parametrize(
    ("left_out", "gone", "others"),
    [
        ({"consistency": (0.0, 0.0)}, {"consistency"}, {"critic", "first_moment", "perceptual"}),
        ({"first_moment": 0.0, "second_moment": 0.0}, {"first_moment", "second_moment"}, {"r1", "perceptual"}),
        ({"second_moment": 0.0, "mmse": "nowhere"}, {"second_moment"}, {"first_moment"}),
        ({"perceptual": 0.0, "r1": 0.0}, {"perceptual", "r1"}, {"critic", "consistency"}),
    ],
)
def test_a_weight_of_0_leaves_its_term_out(photos, tmp_path, left_out, gone, others):
    train(game_of(photos, tmp_path, game=left_out, optimiser={"steps": 1}))
    (line,) = lines(tmp_path)
    assert not gone & set(line)
    assert others <= set(line)


def test_frozen_networks_that_do_not_fit_are_named(photos, tmp_path):
    sampler, cpu = tmp_path / "sampler.safetensors", torch.device("cpu")
    save(Generator(GeneratorConfig(trunk="rrdb", features=8, blocks=1, growth=4, noise=True)), sampler)
    for game, said in (({"mmse": "nowhere"}, "nowhere"), ({"mmse": str(sampler)}, "regression output")):
        with pytest.raises(ConfigError, match=rf"game\.mmse.*{said}"):
            Game(game_of(photos, tmp_path, game=game), cpu)
    (tmp_path / "vgg.pth").write_bytes(b"text")
    for name in ("vgg.pth", "nowhere.pth"):
        with pytest.raises(ConfigError, match=rf"game\.features.*{name}.*download.*vgg19"):
            Game(game_of(photos, tmp_path, game={"features": str(tmp_path / name)}), cpu)
    game = Game(game_of(photos, tmp_path, game=NO_NETWORKS), cpu)
    assert (game.features, game.mmse) == (None, None)


def test_a_sampler_starts_from_regression_weights(photos, tmp_path):
    start = train(config_of(photos, tmp_path / "start", optimiser={"steps": 2}))
    still = {"steps": 1, "learning_rate": 1e-30, "final_learning_rate": 0.0}
    weights = train(game_of(photos, tmp_path / "run", run={"start": str(start)}, optimiser=still))
    began, ended = (load(str(path)).generator.state_dict() for path in (start, weights))
    assert all(torch.allclose(ended[name], value, atol=1e-29) for name, value in began.items())
    assert {name.partition(".")[0] for name in ended.keys() - began.keys()} == {"noise_head"}
    for wrong, said in (
        ({"run": {"start": "nowhere"}}, "nowhere"),
        ({"run": {"start": "mmse"}}, "cannot be initialised"),
    ):
        with pytest.raises(ConfigError, match=rf"run\.start.*{said}"):
            train(game_of(photos, tmp_path / "wrong", **wrong))


def test_a_game_in_bfloat16_stays_near_float32_and_its_samples_differ(photos, tmp_path):
    held_out = {"validation": str(photos / "held_out.tar")}
    for name, bfloat16 in (("half", True), ("full", False)):
        train(
            game_of(
                photos,
                tmp_path / name,
                data=held_out,
                optimiser={"steps": 2},
                run={"bfloat16": bfloat16, "grid_every": 2},
            )
        )
    half, full = (lines(tmp_path / name)[-1] for name in ("half", "full"))
    for name in ("critic", "r1", "adversarial", "first_moment", "second_moment", "perceptual"):
        assert half[name] == pytest.approx(full[name], rel=0.05), name
    assert half["std_10"] > 1e-5
    assert half.keys() >= {"gain_10", "mean_gain_10", "consistency_10", "consistency_weight", "lr"}
    (grid,) = (tmp_path / "half" / "grids").iterdir()
    pixels = np.asarray(Image.open(grid))
    assert grid.name == "0000002.png"
    assert pixels.shape[0] > 3 * 128
    assert pixels.shape[1] > 6 * 128


def test_a_failed_step_leaves_what_takes_it_again(photos, tmp_path, monkeypatch):
    """The generator's loss is infinite in step 5; it is noticed three steps later."""
    sound = game_module.generator_loss
    calls = iter(range(1000))
    monkeypatch.setattr(
        game_module, "generator_loss", lambda logits: sound(logits) * (float("inf") if next(calls) == 5 else 1)
    )
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"not finite at step 5: .*adversarial inf.*failure"):
        train(game_of(photos, run, run={"log_every": 8, "save_every": 5}))
    kept, last = checkpoint(run / FAILURE), checkpoint(run)
    assert kept["step"] == last["step"] == 5
    for part in ("generator", "average"):
        assert_equal(kept[part], last[part])
    assert_equal(kept["optimiser"]["state"], last["optimiser"]["state"])
    assert kept["critic_optimiser"]["state"][0]["step"] == 6  # its own loss was sound
    found = torch.load(run / FAILURE / "rank0.pt", weights_only=True)
    assert (found["step"], found["losses"]["adversarial"]) == (5, float("inf"))
    images = load_images([str(photos / "train.tar")], 32)
    assert torch.equal(found["crops"], random_crops(images, 32, 4, step_generator(3, 5)))
    monkeypatch.setattr(game_module, "generator_loss", sound)
    train(game_of(photos, run / FAILURE, run={"log_every": 1}))
    assert lines(run / FAILURE)[0]["step"] == 6


def test_gray_is_compared_as_gray(photos, tmp_path):
    config = game_of(photos, tmp_path)
    clean = random_crops(load_images([str(photos / "gray")], 32), 32, 3, step_generator(5, 0))
    batch = degrade(clean, config.degradation, step_generator(0, 0), draws=1)
    gray = [place for place, sampling in enumerate(batch.samplings) if sampling is Subsampling.GRAY]
    assert (batch.tables[gray, 1:] == 1).all()
    assert float(consistency(batch.clean, batch)) == 0
