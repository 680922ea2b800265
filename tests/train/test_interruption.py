"""Ctrl-C and SIGTERM: a run ends with a checkpoint, and goes on from there."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training import assert_same_run, checkpoint, command, config_of, in_ranks, newest

import train.trainer as trainer_module
from train.checkpoint import save_checkpoint
from train.distributed import Ranks
from train.interruption import NUMBERS, InterruptionError, StopSignals
from train.trainer import train

ROOT = Path(__file__).parents[2]
RARELY = {"log_every": 1, "save_every": 1000}


@pytest.fixture(autouse=True)
def heard():
    """Shells start background jobs with SIGINT ignored, and processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def test_the_command_says_what_is_saved_and_ends(photos, tmp_path):
    config = config_of(photos, tmp_path / "run", optimiser={"steps": 10**6}, run=RARELY)
    run = subprocess.Popen(command(config, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while newest(tmp_path / "run") < 3 and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[1]
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGINT, said
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


@pytest.mark.parametrize("receivers", [(0,), (1,), (0, 1)])
def test_ranks_end_together_and_wait_for_the_checkpoint(photos, tmp_path, signal_in_step, receivers, monkeypatch):
    config, save = config_of(photos, tmp_path / "run", optimiser={"steps": 10**6}, run=RARELY), save_checkpoint

    def slow(*arguments):
        time.sleep(1)
        save(*arguments)

    def work(rank):
        signal_in_step["step"] = 5 + rank if rank in receivers else 0
        monkeypatch.setattr(trainer_module, "save_checkpoint", slow)
        with pytest.raises(InterruptionError) as interruption:
            train(config)
        step = checkpoint(tmp_path / "run")["step"]
        assert step >= 5
        assert f"after step {step}," in str(interruption.value)

    for code, said in in_ranks(work, tmp_path):
        assert code == 0, said


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_only_a_second_ctrl_c_is_not_waited_for(first):
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals(Ranks()) as signals:
        assert signals.arrived() == 0
        signal.raise_signal(first)
        assert signals.arrived() == first
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_signal_that_was_ignored_stays_so():
    """As Ctrl-C does in a background job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals(Ranks()) as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.arrived() == 0
        signal.raise_signal(signal.SIGTERM)
        assert signals.arrived() == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
