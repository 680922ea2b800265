"""Ctrl-C and SIGTERM: a run ends with a checkpoint, and goes on from there."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training import assert_same_run, checkpoint, command, config_of, in_ranks, newest, write_photos

import train.trainer as trainer_module
from train.distributed import Ranks
from train.interruption import InterruptionError, StopSignals
from train.trainer import train

ROOT = Path(__file__).parents[2]
RARELY = {"log_every": 1, "save_every": 1000}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def signal_in_step(monkeypatch):
    """A step in which this process gets SIGTERM; or none, 0."""
    chosen, sound = {"step": 0}, trainer_module.train_step

    def step(state, run):
        if state.step + 1 == chosen["step"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return sound(state, run)

    monkeypatch.setattr(trainer_module, "train_step", step)
    return chosen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_is_saved_and_ends(photos, tmp_path, number):
    config = config_of(photos, tmp_path / "run", optimiser={"steps": 10**6}, run=RARELY)
    run = subprocess.Popen(command(config, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while newest(tmp_path / "run") < 3:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + number, said
    step = checkpoint(tmp_path / "run")["step"]
    assert step >= 3
    assert f"train: interrupted after step {step}, which is saved" in said
    assert "Traceback" not in said


def test_the_run_ends_as_if_it_had_not_been_interrupted(photos, tmp_path, signal_in_step):
    straight, stopped = (config_of(photos, tmp_path / name, run=RARELY) for name in ("straight", "stopped"))
    train(straight)
    for signal_in_step["step"] in (1, 7):
        with pytest.raises(InterruptionError):
            train(stopped)
        assert checkpoint(tmp_path / "stopped")["step"] == signal_in_step["step"]
    train(stopped)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_signal_in_the_last_step_changes_nothing(photos, tmp_path, signal_in_step):
    signal_in_step["step"] = 4
    train(config_of(photos, tmp_path, optimiser={"steps": 4}))
    assert checkpoint(tmp_path)["step"] == 4


@pytest.mark.parametrize("receivers", [(0,), (0, 1)])
def test_ranks_end_together_when_they_log(photos, tmp_path, signal_in_step, receivers):
    config = config_of(photos, tmp_path / "run", run={"log_every": 4, "save_every": 1000})

    def work(rank):
        signal_in_step["step"] = 5 + rank if rank in receivers else 0
        with pytest.raises(InterruptionError, match="after step 8"):
            train(config)

    for code, said in in_ranks(work, tmp_path):
        assert code == 0, said
    assert checkpoint(tmp_path / "run")["step"] == 8


def test_the_second_signal_is_not_waited_for():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(Ranks()) as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.arrived(agree=False) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
