"""Training: networks that learn, schedules, and errors that say what to do."""

import fcntl
import math
import multiprocessing
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from training import (
    STEPS,
    STILL,
    assert_same_gradients,
    checkpoint,
    command,
    config_of,
    energy_of,
    game_of,
    lines,
    scattered_weights,
)

from model.weights import load
from train.checkpoint import CHECKPOINT, WEIGHTS
from train.config import RECIPE, load_config
from train.data.photographs import load_images
from train.distributed import Ranks
from train.logger import METRICS
from train.main import main
from train.run_folder import CONFIG, LOCK
from train.schedule import learning_rate
from train.state import TrainingError, new_state, update_average
from train.trainer import train
from train.validate import validate

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_other_seeds_see_other_crops(photos, tmp_path):
    for seed in (1, 2):
        train(config_of(photos, tmp_path / str(seed), run={"seed": seed, "bfloat16": False}, optimiser={"steps": 1}))
    losses = [lines(tmp_path / str(seed))[0]["loss"] for seed in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_trained_network_beats_plain_decode_on_held_out_images(photos, tmp_path):
    config = config_of(
        photos,
        tmp_path,
        data={"validation": str(photos / "held_out.tar"), "crop": 48, "batch": 8},
        model={"features": 24},
        degradation={"perturbed": 0.0, "samplings": {"4:2:0": 1.0}},
        optimiser={"steps": 300, "learning_rate": 4e-3, "warmup": 10, "ema": 0.9},
        run={"log_every": 10, "save_every": 1000, "validate_every": 300},
    )
    weights = train(config)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1
    gains = lines(tmp_path)[-1]
    assert gains["gain_10"] > 0.5
    assert gains["gain_20"] > 0.2
    again = validate(load(str(weights)).generator, load_images([config.data.validation], 128), config, CPU)
    assert again["gain_10"] == pytest.approx(gains["gain_10"], abs=0.02)


def test_gray_images_and_gray_jpegs_train_too(photos, tmp_path):
    data = {"train": [str(photos / "gray")], "validation": str(photos / "gray")}
    train(config_of(photos, tmp_path, data=data, degradation={"samplings": {"gray": 1.0}}, optimiser={"steps": 2}))
    assert all(math.isfinite(value) for line in lines(tmp_path) for value in line.values())


def test_flat_images_give_figures_that_json_can_hold(photos, tmp_path):
    flat = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    weights = train(config_of(photos, tmp_path, optimiser={"steps": 1}))
    gains = validate(load(str(weights)).generator, [flat], config_of(photos, tmp_path), CPU)
    assert all(math.isfinite(gain) for gain in gains.values())


def test_the_learning_rate_warms_up_and_falls(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"steps": 105, "final_learning_rate": 1e-5})
    rates = [learning_rate(config, step) for step in range(106)]
    assert rates[:5] == pytest.approx([3e-3 * k / 5 for k in range(1, 6)])
    assert rates[55] == pytest.approx((3e-3 + 1e-5) / 2)
    assert rates[105] == pytest.approx(1e-5) == learning_rate(config, 1000)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_averaged_weights_are_those_of_the_formula(photos, tmp_path):
    """A smaller decay at first; a failed step leaves them alone."""
    state, random = new_state(config_of(photos, tmp_path), Ranks()), torch.Generator().manual_seed(0)
    weight, average = (network.head.weight for network in (state.generator.network, state.average))
    expected = average.detach().double()
    for step, decay in ((0, 0.1), (10, 0.55), (1000, 0.9)):
        state.step = step
        weight.data += torch.randn(weight.shape, generator=random)
        update_average(state, 0.9, torch.zeros(()))
        expected = decay * expected + (1 - decay) * weight.detach().double()
        assert torch.allclose(average.double(), expected, atol=1e-6)
    update_average(state, 0.9, torch.ones(()))
    assert torch.allclose(average.double(), expected, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"learning_rate": 1e37, "warmup": 0}, run={"save_every": 1})
    with pytest.raises(TrainingError, match=r"at step \d+"):
        train(config)
    content = checkpoint(tmp_path)
    assert 1 <= content["step"] < STEPS
    assert all(tensor.isfinite().all() for tensor in content["generator"].values())


def test_another_configuration_is_refused_but_where_and_how_often_may_change(photos, tmp_path):
    train(config_of(photos, tmp_path, optimiser={"steps": 2}))
    others = {"model": {"features": 12}, "data": {"crop": 48}, "optimiser": {"ema": 0.8}, "run": {"seed": 4}}
    for section, change in others.items():
        with pytest.raises(TrainingError, match=f"{section}.{next(iter(change))}.*run.output"):
            train(config_of(photos, tmp_path, **{section: change}))
    moved = (tmp_path).rename(tmp_path.with_name("moved"))
    train(config_of(photos, moved, optimiser={"steps": 3}, run={"log_every": 1, "save_every": 7, "bfloat16": False}))
    train(config_of(photos, moved, optimiser={"steps": 4}, run={"bfloat16": True, "deterministic": True}))
    assert lines(moved)[-1]["step"] == 4


def test_a_checkpoint_that_cannot_be_read_is_an_error_with_its_path(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"steps": 1})
    train(config)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    foreign = tmp_path / "foreign"
    torch.save([1, 2], foreign)
    for data in (b"", b"text", whole[: len(whole) // 2], foreign.read_bytes()):
        (tmp_path / CHECKPOINT).write_bytes(data)
        with pytest.raises(TrainingError, match=CHECKPOINT):
            train(config)


def test_a_full_disk_keeps_the_last_checkpoint(photos, tmp_path):
    train(config_of(photos, tmp_path, optimiser={"steps": 3}))
    before = (tmp_path / CHECKPOINT).read_bytes()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        with pytest.raises(TrainingError, match=r"step 6.*too large"):
            train(config_of(photos, tmp_path))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, WEIGHTS, METRICS, CONFIG, LOCK}
    train(config_of(photos, tmp_path))
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, *range(4, STEPS + 1, 2)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=[nowhere.tar]", "nowhere.tar"),
        ("data.train=[]", "data.train=[PATH"),
        ("data.validation=nowhere", "nowhere"),
        ("data.crop=160", "160x160"),
        ("regression.loss=l3", "regression.loss"),
        ("model.noise=true", "model.noise"),
        ("model.trunk=foo", "model.trunk"),
        ("optimiser.accumulate=3", "data.batch"),
        ("run.start=nowhere", "run.start"),
        ("run.output=/dev/null/run", "/dev/null/run"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(photos, tmp_path, capsys, override, said):
    path = command(config_of(photos, tmp_path / "run"), tmp_path)[-1]
    assert main(["--config", path, override]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert len(message) == 1
    assert said in message[0]
    assert not (tmp_path / "run").exists()


def test_help_says_what_to_write(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for said in (
        "--config FILE.yaml",
        "--print-config",
        "posterior",
        "section.key=value",
        "data.train=[",
        "run.seconds=600",
        str(RECIPE),
    ):
        assert said in shown


def test_parts_of_a_batch_change_nothing_but_rounding(photos, tmp_path):
    start = scattered_weights(config_of(photos, tmp_path), tmp_path)
    for parts in (1, 4):
        optimiser = {**STILL, "steps": 4, "accumulate": parts}
        train(config_of(photos, tmp_path / str(parts), optimiser=optimiser, run={"bfloat16": False, "start": start}))
    assert_same_gradients(*(checkpoint(tmp_path / str(parts)) for parts in (1, 4)))


def test_head_and_trunk_have_rates_and_clipping_of_their_own(photos, tmp_path):
    """Adam's first step is as long as the learning rate, however long the gradient; its first moment is a tenth of the
    gradient, clipped."""
    optimiser = {"steps": 1, "learning_rate": 1e-3, "warmup": 0, "betas": (0.9, 0.99), "clip": 2e-3, "trunk_clip": 1e-3}
    start = scattered_weights(game_of(photos, tmp_path), tmp_path)
    changes = {"optimiser": {**optimiser, "trunk_rate": 0.3}, "run": {"start": start}}
    folder, config = tmp_path / "run", game_of(photos, tmp_path / "run", **changes)
    began = load(start).generator.state_dict()
    train(config)
    content = checkpoint(folder)
    moves = {name: (value - began[name]).abs().max().item() for name, value in content["generator"].items()}
    for name, move in moves.items():
        rate = 1.0 if name.startswith("noise_head.") else 0.3
        assert move == pytest.approx(rate * 1e-3, rel=0.05), name
    groups = content["optimiser"]["param_groups"]
    moments = [[content["optimiser"]["state"][n]["exp_avg"] for n in group["params"]] for group in groups]
    norms = [torch.cat([x.flatten() for x in group]).norm().item() for group in moments]
    assert norms == pytest.approx([0.1 * 1e-3, 0.1 * 2e-3], rel=1e-3)


def test_what_may_change_between_runs_of_a_game(photos, tmp_path):
    train(game_of(photos, tmp_path, optimiser={"steps": 1}))
    others = {"game": {"first_moment": 0.5}, "critic": {"features": 4}, "data": {"orientations": 2}}
    for section, change in others.items():
        with pytest.raises(TrainingError, match=f"{section}.{next(iter(change))}.*run.output"):
            train(game_of(photos, tmp_path, **{section: change}))
    train(game_of(photos, tmp_path, optimiser={"steps": 2, "accumulate": 2}, run={"timeout": 60.0}))
    assert lines(tmp_path)[-1]["step"] == 2


def test_compiled_networks_learn_what_the_others_do(photos, tmp_path, monkeypatch):
    """Traced and guarded as torch.compile does it, but without generating code, which takes minutes."""
    compiled_networks, compile_network = [], torch.nn.Module.compile

    def traced(network):
        compiled_networks.append(type(network).__name__)
        compile_network(network, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    start = scattered_weights(game_of(photos, tmp_path), tmp_path)
    for compiled in (False, True):
        run = {"compile": compiled, "start": start}
        train(game_of(photos, tmp_path / str(compiled), optimiser={**STILL, "steps": 3}, run=run))
    assert compiled_networks == ["Generator", "Critic", "EfficientNetLite0", "Generator"]
    for optimiser in ("optimiser", "critic_optimiser"):
        assert_same_gradients(*(checkpoint(tmp_path / str(compiled)) for compiled in (False, True)), optimiser)
    one, other = (lines(tmp_path / str(compiled))[-1] for compiled in (False, True))
    figures = {name: value for name, value in one.items() if name != "seconds_per_step"}
    assert {name: other[name] for name in figures} == pytest.approx(figures, rel=1e-3, abs=1e-6)


def test_a_samplers_feature_network_is_compiled(photos, tmp_path, monkeypatch):
    """Its layers are called by a method that torch.nn.Module.compile leaves alone."""
    graphs = []

    def counted(graph, inputs):
        graphs.append(len(list(graph.graph.nodes)))
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: None)
    config = energy_of(photos, tmp_path, energy={"features": 1.0}, optimiser={"steps": 1}, run={"compile": True})
    train(config)
    assert max(graphs) > 50


def test_the_configuration_is_kept_and_printed(photos, tmp_path, capsys):
    config = config_of(photos, tmp_path / "run", optimiser={"steps": 1})
    train(config)
    kept = tmp_path / "run" / CONFIG
    assert load_config(kept, []) == config
    assert main(["--config", str(kept), "--print-config", "run.seed=9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["seed"] == 9
    assert main(["--print-config"]) == 0  # without data, too
    assert yaml.safe_load(capsys.readouterr().out)["objective"] == "regression"


def test_weights_of_earlier_steps_are_kept_on_request(photos, tmp_path):
    train(config_of(photos, tmp_path, optimiser={"steps": 5}, run={"keep_every": 2}))
    kept = sorted((tmp_path / "weights").iterdir())
    assert [path.stem for path in kept] == ["0000002", "0000004", "0000005"]
    assert kept[-1].read_bytes() == (tmp_path / WEIGHTS).read_bytes() != kept[0].read_bytes()


def test_two_runs_do_not_write_to_one_folder(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"steps": 2})
    train(config)
    with (tmp_path / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(TrainingError, match=rf"{tmp_path}: another training.*run\.output"):
            train(config_of(photos, tmp_path))
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    train(config_of(photos, tmp_path))
    assert checkpoint(tmp_path)["step"] == STEPS


def test_a_run_goes_on_with_images_that_have_moved(photos, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(photos / "train.tar", tmp_path / name)
    train(config_of(tmp_path / "a", tmp_path / "run", optimiser={"steps": 2}))
    shutil.rmtree(tmp_path / "a")
    train(config_of(tmp_path / "b", tmp_path / "run", optimiser={"steps": 4}, run={"start": "gone"}))
    assert checkpoint(tmp_path / "run")["step"] == 4
