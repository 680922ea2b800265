"""Several ranks learn what one would: the same crops, JPEGs and noise, shared out; and none of them waits for ever."""

import gc
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import (
    STILL,
    assert_same_gradients,
    changed,
    checkpoint,
    command,
    game_of,
    in_ranks,
    lines,
    scattered_weights,
)

from train.checkpoint import FAILURE
from train.checks import ConfigError
from train.config import RunConfig
from train.distributed import Ranks, process_group
from train.objectives import game
from train.trainer import train

ROOT = Path(__file__).parents[2]
ALL = {
    "game": {"moments_every": 2},
    "degradation": {"quality": (30, 95), "quality_mean": 50.0},  # fine steps, so that C is not 0 from the beginning
    "optimiser": {"steps": 3},
    "run": {"log_every": 1, "save_every": 10, "seed": 5},
}
BALANCED = {
    "adversarial": 1.0,
    "r1": 1e3,
    "consistency": (0.5, 0.5),
    "first_moment": 0.3,
    "second_moment": 10.0,
    "perceptual": 1e-5,
}
"""Weights with which a wrong share of any term shows in the gradient. P's is the least: at crops of 32 pixels one ReLU6
of its network that rounding turns on or off changes its gradient by a hundredth."""


def test_two_ranks_and_two_parts_have_the_gradients_of_one_rank(photos, tmp_path, capfd):
    """In float32, over three steps with all terms; the ranks' crops go in two parts, too, and one of these has none for
    FM and SM."""
    config = game_of(photos, tmp_path / "one", **ALL)
    config = changed(
        config, {"optimiser": STILL, "run": {"start": scattered_weights(config, tmp_path)}, "game": BALANCED}
    )
    parts = changed(config, {"run": {"output": str(tmp_path / "parts")}, "optimiser": {"accumulate": 2}})
    two = changed(parts, {"run": {"output": str(tmp_path / "two")}})
    for code, said in in_ranks(lambda rank: train(two), tmp_path):
        assert code == 0, said
    assert "4 crops a step, 2 on each of 2 ranks" in capfd.readouterr().out
    train(config)
    train(parts)
    for folder in ("two", "parts"):
        for optimiser in ("optimiser", "critic_optimiser"):
            assert_same_gradients(checkpoint(tmp_path / "one"), checkpoint(tmp_path / folder), optimiser)
        for line, other in zip(lines(tmp_path / "one"), lines(tmp_path / folder), strict=True):
            figures = {name: value for name, value in line.items() if name != "seconds_per_step"}
            assert {name: other[name] for name in figures} == pytest.approx(figures, rel=1e-3, abs=1e-6)
    terms = ("r1", "first_moment", "second_moment", "perceptual", "consistency")
    assert all(lines(tmp_path / "two")[2][name] > 0 for name in terms)


def test_ranks_must_share_the_batch_evenly():
    assert Ranks(1, 4).local_batch(8, 2) == 2
    with pytest.raises(ConfigError, match=r"data\.batch.*3 ranks"):
        Ranks(1, 3).local_batch(8, 1)
    with pytest.raises(ConfigError, match=r"data\.batch.*accumulate, 2, times the 2 ranks, got 10"):
        Ranks(1, 2).local_batch(10, 2)


def test_ranks_that_begin_differently_are_told_so(photos, tmp_path):
    """As those of two nodes do of which one has no access to the checkpoint, or has other weights to start from."""
    config = game_of(photos, tmp_path / "run", optimiser={"steps": 2})
    train(config)
    scattered = changed(game_of(photos, tmp_path / "other"), {"run": {"start": scattered_weights(config, tmp_path)}})
    for here, there in (
        (config, game_of(photos, tmp_path / "other")),
        (scattered, game_of(photos, tmp_path / "other")),
    ):
        for code, said in in_ranks(lambda rank, both=(here, there): train(both[rank]), tmp_path):
            assert code == 1
            assert "the ranks do not begin alike" in said
            assert "the same files on all nodes" in said
    assert not (tmp_path / "other").exists()


def test_tasks_of_slurm_are_not_ranks(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(ConfigError, match=r"8 tasks.*torchrun"), process_group(RunConfig(device="cpu")):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")  # by torchrun
    with process_group(RunConfig(device="cpu")) as ranks:
        assert ranks.size == 1


def test_what_fails_on_one_rank_ends_all_with_the_step_and_the_crops(photos, tmp_path):
    """The second rank's loss is not finite in step 2; the first rank's losses and all gradients are sound."""
    config, sound = game_of(photos, tmp_path / "run", **ALL), game.critic_loss
    calls = []

    def poisoned(clean, restored):
        calls.append(1)
        return sound(clean, restored) + (math.nan if len(calls) == 3 else 0.0)

    def work(rank):
        if rank == 1:
            game.critic_loss = poisoned
        train(config)

    for code, said in in_ranks(work, tmp_path):
        assert code == 1
        assert "not finite at step 2" in said
        assert str(tmp_path / "run" / FAILURE) in said
    kept = [torch.load(tmp_path / "run" / FAILURE / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [one["step"] for one in kept] == [2, 2]
    assert [torch.tensor(one["losses"]["critic"]).isfinite().item() for one in kept] == [True, False]
    assert [tuple(one["crops"].shape) for one in kept] == [(2, 3, 32, 32)] * 2
    assert checkpoint(tmp_path / "run" / FAILURE)["step"] == 2


def test_networks_are_gone_before_the_process_group_is(photos, tmp_path):
    """Without that a rank now and then waits for ever: train/distributed.py says why."""
    config, destroy = game_of(photos, tmp_path / "run", optimiser={"steps": 2}), dist.destroy_process_group

    def work(rank):
        def counted():
            left = sum(type(one) is DistributedDataParallel for one in gc.get_objects())
            (tmp_path / f"left{rank}").write_text(str(left))
            destroy()

        dist.destroy_process_group = counted
        train(config)

    for code, said in in_ranks(work, tmp_path):
        assert code == 0, said
    assert [(tmp_path / f"left{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


def test_a_rank_that_is_gone_ends_the_others(photos, tmp_path):
    config = game_of(photos, tmp_path / "run", optimiser={"steps": 100000})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ranks = subprocess.Popen([*launcher, *command(config, tmp_path)[1:]], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{ranks.pid}/task/{ranks.pid}/children")
    while not (tmp_path / "run" / "checkpoint.pt").exists() and ranks.poll() is None:
        time.sleep(0.05)
    victim = int(children.read_text().split()[-1])
    os.kill(victim, signal.SIGKILL)
    ranks.communicate(timeout=90)
    assert ranks.returncode != 0
