"""Training runs of seconds, for the tests: tiny networks and crops of 32 pixels."""

import dataclasses
import faulthandler
import json
import math
import multiprocessing
import os
import sys
import tarfile
from datetime import timedelta

import torch
import yaml
from jpegs import encode, photograph
from torch.distributed import TCPStore

from model.critic import CriticConfig
from model.generator import Generator
from model.weights import save
from train.checkpoint import CHECKPOINT, WEIGHTS
from train.config import Config, RunConfig, as_tree
from train.data.sources import DataConfig
from train.degradation import DegradationConfig
from train.logger import METRICS
from train.objectives.energy import EnergyConfig
from train.objectives.game import GameConfig
from train.state import OptimiserConfig

STEPS = 24


def write_photos(folder):
    """Two tar shards, one to train on and one held out; a folder of gray images."""
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


def changed(config, changes):
    """`changes`: section → {key: value}."""
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **new) for section, new in changes.items()}
    )


def config_of(photos, output, **changes):
    """A regression; `changes` are `section=dict(key=value)`."""
    config = Config(
        model=dataclasses.replace(Config().model, features=8, blocks=2, embedding=8),
        data=DataConfig([str(photos / "train.tar")], crop=32, batch=4),
        degradation=DegradationConfig(quality=(5, 40), quality_mean=15.0),
        optimiser=OptimiserConfig(steps=STEPS, learning_rate=3e-3, warmup=5, ema=0.9),
        run=RunConfig(str(output), seed=3, device="cpu", log_every=2, save_every=3, validate_every=8),
    )
    return changed(config, changes)


def game_of(photos, output, **changes):
    """A game with all its terms in float32; R1 every other step, FM and SM every third."""
    config = config_of(photos, output, model={"noise": True}, run={"bfloat16": False})
    config = dataclasses.replace(
        config,
        objective="game",
        optimiser=OptimiserConfig(STEPS, 2e-3, 1e-5, warmup=3, betas=(0.0, 0.99), clip=10.0, ema=0.9),
        critic=CriticConfig(features=8, most_features=16, halvings=3),
        game=GameConfig(r1_every=2, second_moment=10.0, moment_images=3, samples=3, moments_every=3, perceptual=1e-4),
    )
    return changed(config, changes)


def energy_of(photos, output, **changes):
    """posterior.yaml's terms in float32, without those that are off by default and features."""
    config = config_of(photos, output, model={"noise": True}, run={"bfloat16": False})
    config = dataclasses.replace(config, objective="energy", energy=EnergyConfig(features=0.0))
    return changed(config, changes)


def command(config, folder):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(as_tree(config)))
    return [sys.executable, "-m", "train.main", "--config", str(path)]


def in_ranks(work, folder, ranks=2):
    """`work(rank)` in forked processes that find each other as those of torchrun do. Returns for each the exit code and
    what it wrote to standard error, which says where it was if it did not end."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))

    def start(rank):
        sys.stderr = (folder / f"rank{rank}.log").open("w", buffering=1)
        faulthandler.dump_traceback_later(100, file=sys.stderr)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # torchrun's own, which is `store`
        work(rank)

    processes = [multiprocessing.get_context("fork").Process(target=start, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [(process.exitcode, (folder / f"rank{rank}.log").read_text()) for rank, process in enumerate(processes)]


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def newest(folder):
    """The last step that has a line."""
    if not (folder / METRICS).exists():
        return 0
    whole = (folder / METRICS).read_text().rpartition("\n")[0].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def checkpoint(folder):
    return torch.load(folder / CHECKPOINT, weights_only=True)


STILL = {"learning_rate": 1e-30, "final_learning_rate": 0.0, "warmup": 0, "betas": (0.9, 0.99), "clip": math.inf}
"""For the section `optimiser`: the weights stay as they are. So the gradients of all steps are of the same weights, and
Adam's first moments are their weighted sum, not clipped."""


def scattered_weights(config, folder):
    """The path of a generator's weights none of which is zero. They change an image by many gray levels, so that losses
    are far from 0 and no single coefficient's rounding matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config.model)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save(generator, folder / "scattered.safetensors")
    return str(folder / "scattered.safetensors")


def assert_same_gradients(one, other, optimiser="optimiser"):
    """Of two checkpoints of runs with `STILL`: the difference is below a thousandth of the whole gradient.

    Rounding causes 1e-6 to 1e-4 of it, a wrong share of a term far more. Weights after some steps cannot be compared:
    Adam divides a gradient by its own size, so where it is zero but for rounding, rounding decides a whole step."""
    mine, theirs = ([x["exp_avg"] for x in content[optimiser]["state"].values()] for content in (one, other))
    assert all(gradient.norm() > 0 for gradient in mine)
    mine, theirs = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (mine, theirs))
    assert (mine - theirs).norm() < 1e-3 * mine.norm(), optimiser


def assert_equal(one, other, where=""):
    """Of trees of tensors and plain values: bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_equal(first, second, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_run(one, other):
    """Weights, averages, optimisers, loader and step bit for bit; each step's line once, times and partial means
    aside."""
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    ours, theirs = ({**checkpoint(folder), "config": None} for folder in (one, other))
    assert_equal(ours, theirs)
    assert [(line["step"], line["lr"]) for line in lines(one)] == [(line["step"], line["lr"]) for line in lines(other)]
    gains = [[line["gain_10"] for line in lines(folder) if "gain_10" in line] for folder in (one, other)]
    assert gains[0] == gains[1]


def gradients_of(monkeypatch, objective, step, learner, *arguments):
    """Those that the update of an objective's step would get. objective: its module."""
    found = {}

    def catch(learner, losses, number, config, guard):
        assert all(loss.isfinite() for loss in losses.values())
        found.update({name: p.grad.clone() for name, p in learner.network.named_parameters()})
        learner.network.zero_grad()
        return {}

    monkeypatch.setattr(objective, "update", catch)
    step(*arguments)
    assert found.keys() == dict(learner.network.named_parameters()).keys()
    return torch.cat([gradient.flatten().double() for gradient in found.values()])
