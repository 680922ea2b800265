"""Training: exact resume after kills, errors that say what to do, and networks that learn."""

import dataclasses
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from jpegs import encode, photograph

from model.weights import load
from train.config import Config, DataConfig, DegradationConfig, OptimiserConfig, RunConfig, as_tree
from train.crops import load_images
from train.main import main
from train.trainer import (
    CHECKPOINT,
    METRICS,
    WEIGHTS,
    TrainingError,
    keep_lines_up_to,
    learning_rate,
    train,
    validate,
)

ROOT = Path(__file__).parent.parent
STEPS = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two tar shards, one to train on and one held out; a folder of gray images."""
    folder = tmp_path_factory.mktemp("photos")
    for name, seeds in (("train", range(6)), ("held_out", range(100, 103))):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for seed in seeds:
                path = folder / f"{seed}.jpg"
                path.write_bytes(encode(photograph(136, 144, seed), "4:4:4", 97))
                shard.add(path, path.name)
                path.unlink()
    (folder / "gray").mkdir()
    (folder / "gray" / "one.jpg").write_bytes(encode(photograph(136, 144, 7), "gray", 97))
    return folder


def config_of(photos, output, **changes):
    """A run of seconds; `changes` are `section=dict(key=value)`."""
    config = Config(
        model=dataclasses.replace(Config().model, features=8, blocks=2, embedding=8),
        data=DataConfig([str(photos / "train.tar")], crop=32, batch=4),
        degradation=DegradationConfig(quality=(5, 40), quality_mean=15.0),
        optimiser=OptimiserConfig(steps=STEPS, learning_rate=3e-3, warmup=5, ema=0.9),
        run=RunConfig(str(output), seed=3, log_every=2, save_every=3, validate_every=8),
    )
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **new) for section, new in changes.items()}
    )


def command(config, folder):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(as_tree(config)))
    return [sys.executable, "-m", "train.main", "--config", str(path)]


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def assert_same_run(one, other):
    """Weights, optimiser and step bit for bit; each step's line once, times and partial means aside."""
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    ours, theirs = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (one, other))
    assert ours["step"] == theirs["step"]
    for part in ("generator", "average"):
        assert all(torch.equal(ours[part][key], theirs[part][key]) for key in ours[part])
    moments = [content["optimiser"]["state"] for content in (ours, theirs)]
    assert moments[0].keys() == moments[1].keys()
    for key, values in moments[0].items():
        assert all(torch.equal(value, moments[1][key][name]) for name, value in values.items())
    assert [(line["step"], line["lr"]) for line in lines(one)] == [(line["step"], line["lr"]) for line in lines(other)]
    gains = [[line["gain_10"] for line in lines(folder) if "gain_10" in line] for folder in (one, other)]
    assert gains[0] == gains[1]


def test_a_run_killed_at_any_moment_ends_as_if_it_never_was(photos, tmp_path):
    held_out = {"data": {"validation": str(photos / "held_out.tar")}}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(config_of(photos, straight, **held_out))
    order, ends = command(config_of(photos, killed, **held_out), tmp_path), []
    for step in (2, 11):  # kill it soon after it wrote this step's line, or a later one's
        process = subprocess.Popen(order, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not ((killed / METRICS).exists() and newest(killed) >= step):
            time.sleep(0.002)
        process.kill()
        ends.append(process.wait())
    assert ends == [-signal.SIGKILL] * 2
    last = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=True)
    assert last.stdout.splitlines()[-1] == f"trained weights: {killed / WEIGHTS}"
    assert [line["step"] for line in lines(killed)] == list(range(2, STEPS + 1, 2))
    assert_same_run(straight, killed)


def newest(folder):
    whole = (folder / METRICS).read_text().rpartition("\n")[0].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def test_kills_while_it_trains_and_saves_change_nothing(photos, tmp_path):
    """Many more kills, of forked children, spread over the time that steps and checkpoints take."""
    changes = {"run": {"save_every": 1, "log_every": 1}, "model": {"features": 4}}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    train(config_of(photos, straight, **changes))
    took = time.monotonic() - began
    config, kills = config_of(photos, killed, **changes), 0
    for attempt in range(60):
        child = multiprocessing.get_context("fork").Process(target=train, args=(config,))
        child.start()
        child.join(took * (0.2 + 0.07 * (attempt % 6)))
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    train(config)
    assert kills >= 2
    assert [line["step"] for line in lines(killed)] == list(range(1, STEPS + 1))
    assert_same_run(straight, killed)


def test_more_steps_go_on_from_a_finished_run(photos, tmp_path):
    short = {"optimiser": {"steps": 6}, "run": {"bfloat16": False}}
    weights = train(config_of(photos, tmp_path, **short))
    before, digest = weights.read_bytes(), load(str(weights)).digest
    train(config_of(photos, tmp_path, **short))
    assert weights.read_bytes() == before
    train(config_of(photos, tmp_path, optimiser={"steps": 9}, run={"bfloat16": False}))
    assert load(str(weights)).digest != digest
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 9]


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
    again = validate(load(str(weights)).generator, load_images([config.data.validation], 128), config)
    assert again["gain_10"] == pytest.approx(gains["gain_10"], abs=0.02)


def test_gray_images_and_gray_jpegs_train_too(photos, tmp_path):
    data = {"train": [str(photos / "gray")], "validation": str(photos / "gray")}
    train(config_of(photos, tmp_path, data=data, degradation={"samplings": {"gray": 1.0}}, optimiser={"steps": 2}))
    assert all(math.isfinite(value) for line in lines(tmp_path) for value in line.values())


def test_flat_images_give_figures_that_json_can_hold(photos, tmp_path):
    flat = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    weights = train(config_of(photos, tmp_path, optimiser={"steps": 1}))
    gains = validate(load(str(weights)).generator, [flat], config_of(photos, tmp_path))
    assert all(math.isfinite(gain) for gain in gains.values())


def test_the_learning_rate_warms_up_and_falls(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"steps": 105, "final_learning_rate": 1e-5})
    rates = [learning_rate(config, step) for step in range(106)]
    assert rates[:5] == pytest.approx([3e-3 * k / 5 for k in range(1, 6)])
    assert rates[55] == pytest.approx((3e-3 + 1e-5) / 2)
    assert rates[105] == pytest.approx(1e-5) == learning_rate(config, 1000)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(photos, tmp_path):
    config = config_of(photos, tmp_path, optimiser={"learning_rate": 1e37, "warmup": 0}, run={"save_every": 1})
    with pytest.raises(TrainingError, match=r"at step \d+"):
        train(config)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert 1 <= content["step"] < STEPS
    assert all(tensor.isfinite().all() for tensor in content["generator"].values())


def test_another_configuration_is_refused_but_where_and_how_often_may_change(photos, tmp_path):
    train(config_of(photos, tmp_path, optimiser={"steps": 2}))
    others = {"model": {"features": 12}, "data": {"crop": 48}, "optimiser": {"ema": 0.8}, "run": {"seed": 4}}
    for section, change in others.items():
        with pytest.raises(TrainingError, match=f"{section}.{next(iter(change))}.*run.output"):
            train(config_of(photos, tmp_path, **{section: change}))
    moved = (tmp_path).rename(tmp_path.with_name("moved"))
    train(config_of(photos, moved, optimiser={"steps": 3}, run={"log_every": 1, "save_every": 7}))
    assert lines(moved)[-1]["step"] == 3


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
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, WEIGHTS, METRICS}
    train(config_of(photos, tmp_path))
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, *range(4, STEPS + 1, 2)]


def test_lines_after_the_checkpoint_and_cut_ones_are_dropped(tmp_path):
    path = tmp_path / METRICS
    kept = "".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in (2, 4))
    path.write_text(kept + '{"step": 6, "loss": 0.5}\n{"step": 8, "lo')
    keep_lines_up_to(path, 4)
    assert path.read_text() == kept


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=[nowhere.tar]", "nowhere.tar"),
        ("data.validation=nowhere", "nowhere"),
        ("data.crop=160", "160x160"),
        ("optimiser.loss=l3", "optimiser.loss"),
        ("model.noise=true", "model.noise"),
        ("run.output=/dev/null/run", "/dev/null/run"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(photos, tmp_path, capsys, override, said):
    path = command(config_of(photos, tmp_path / "run"), tmp_path)[-1]
    assert main(["--config", path, override]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert len(message) == 1
    assert said in message[0]


def test_help_says_what_to_write():
    run = subprocess.run(
        [sys.executable, "-m", "train.main", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--config FILE.yaml" in run.stdout
    assert "section.key=value" in run.stdout
