"""A training run that is killed, however often and whenever, ends as if it never was: regression, game, and loader."""

import multiprocessing
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from training import (
    STEPS,
    assert_equal,
    assert_same_run,
    checkpoint,
    command,
    config_of,
    energy_of,
    game_of,
    lines,
    newest,
    write_photos,
)

from model.weights import load
from pipeline.inputs.listing import SourceError
from train.checkpoint import WEIGHTS
from train.state import TrainingError
from train.trainer import train

ROOT = Path(__file__).parents[2]


def kill_at(start, folder, steps):
    """Starts the training for each of `steps`, and kills its process soon after it has written that step's line."""
    for step in steps:
        child = start()
        while child.is_alive() and newest(folder) < step:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL


def child_of(config, method="fork"):
    """A training in another process, which if forked need not import everything again."""
    child = multiprocessing.get_context(method).Process(target=train, args=(config,))
    child.start()
    return child


def test_a_killed_game_ends_as_if_it_never_was(photos, tmp_path, seed):
    """All terms, for 18 steps, killed twice, at random; from weights that another run has trained."""
    start = train(config_of(photos, tmp_path / "start", optimiser={"steps": 2}))
    changes = {
        "optimiser": {"steps": 18},
        "run": {"log_every": 1, "start": str(start)},
        "game": {"mmse": str(start)},
        "data": {"validation": str(photos / "held_out.tar")},
    }
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(game_of(photos, straight, **changes))
    began, config = load(str(start)).generator.state_dict(), game_of(photos, killed, **changes)
    kill_at(lambda: child_of(config), killed, sorted(random.Random(seed).sample(range(1, 17), 2)))
    last = subprocess.run(command(config, tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    assert last.stdout.splitlines()[-2] == f"trained weights: {killed / WEIGHTS}"
    assert_same_run(straight, killed)
    assert [line["step"] for line in lines(killed)] == list(range(1, 19))
    terms = {"critic", "r1", "adversarial", "consistency", "first_moment", "second_moment", "perceptual"}
    assert terms <= set().union(*lines(killed))
    ended = checkpoint(killed)
    assert ended["critic_optimiser"]["state"][0]["step"] == ended["optimiser"]["state"][0]["step"] == 18
    for name, value in began.items():
        if not name.startswith("conditioning"):
            assert not torch.equal(ended["generator"][name], value), name


def test_a_samplers_run_goes_on_with_its_schedules_and_larger_crops(photos, tmp_path):
    """Killed before and after the crops grow; head and trunk at rates of their own, and the trunk's convolutions with
    Muon."""
    changes = {
        "data": {"late_crop": 48},
        "model": {"features": 32},
        "optimiser": {"steps": 10, "trunk_rate": 0.5, "trunk_clip": 0.01, "muon_rate": 2.0},
        "run": {"log_every": 1, "save_every": 2},
    }
    straight, killed = (energy_of(photos, tmp_path / name, **changes) for name in ("straight", "killed"))
    train(straight)
    kill_at(lambda: child_of(killed), tmp_path / "killed", (3, 7))
    train(killed)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    assert {"pixels", "first_moment", "commitment", "regression"} <= set(lines(tmp_path / "killed")[0])


def test_a_game_with_the_loader_goes_on_with_its_next_crops(photos, tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = {
        "data": {"loader": "dali", "orientations": 2},
        "game": {"second_moment": 0.0, "perceptual": 0.0},
        "optimiser": {"steps": 8},
    }
    straight, killed = (game_of(photos, tmp_path / name, **changes) for name in ("straight", "killed"))
    train(straight)
    kill_at(lambda: child_of(killed, "spawn"), tmp_path / "killed", (4,))  # DALI's threads do not survive a fork
    train(killed)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    assert checkpoint(tmp_path / "killed")["data"]["position"] == 8 * 4


def test_kills_while_it_trains_and_saves_change_nothing(photos, tmp_path):
    """Many more kills, of forked children, spread over the time that steps and checkpoints take."""
    changes = {"run": {"save_every": 1, "log_every": 1}, "model": {"features": 4}}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(config_of(photos, straight, **changes))
    config, kills = config_of(photos, killed, **changes), 0
    for step in range(0, STEPS, 2):
        child = child_of(config)
        while child.is_alive() and newest(killed) < step:
            time.sleep(0.001)
        child.join(0.004 * (step % 7))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
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


def test_settings_of_other_objectives_may_change(photos, tmp_path):
    for changes in ({}, {"critic": {"features": 5}, "game": {"samples": 5}}):
        train(config_of(photos, tmp_path, optimiser={"steps": 2}, **changes))


def test_a_damaged_checkpoint_is_named_and_its_weights_are_a_start(photos, tmp_path):
    weights = train(config_of(photos, tmp_path / "a", optimiser={"steps": 2}))
    whole = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    (tmp_path / "a" / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=rf"cannot read.*another run\.output.*run\.start={weights}"):
        train(config_of(photos, tmp_path / "a", optimiser={"steps": 4}))
    assert weights.exists()
    (tmp_path / "a" / "checkpoint.pt").unlink()
    (tmp_path / "a" / "checkpoint.pt").mkdir()
    with pytest.raises(IsADirectoryError):  # an error of the disk, not of the checkpoint
        train(config_of(photos, tmp_path / "a", optimiser={"steps": 4}))


def test_a_folder_that_has_got_another_image_is_noticed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    write_photos(folder)
    data = {"train": [str(folder / "gray")], "batch": 2}
    train(config_of(folder, tmp_path / "run", optimiser={"steps": 2}, data=data))
    shutil.copy(folder / "gray" / "one.jpg", folder / "gray" / "two.jpg")
    with pytest.raises(SourceError, match=r"gray: not the images with which the run was begun"):
        train(config_of(folder, tmp_path / "run", optimiser={"steps": 4}, data=data))


def test_a_checkpoint_without_later_configuration_keys_goes_on(photos, tmp_path):
    """Keys that the configuration has got since count as their defaults."""
    for folder in ("new", "old"):
        train(config_of(photos, tmp_path / folder, optimiser={"steps": 4}))
    content = checkpoint(tmp_path / "old")
    del content["config"]["game"], content["config"]["critic"]
    for section, key in (("model", "trunk"), ("model", "growth"), ("data", "loader"), ("run", "compile")):
        del content["config"][section][key]
    torch.save(content, tmp_path / "old" / "checkpoint.pt")
    for folder in ("new", "old"):
        train(config_of(photos, tmp_path / folder, optimiser={"steps": 6}))
    assert_equal(*({**checkpoint(tmp_path / folder), "config": None} for folder in ("new", "old")))
