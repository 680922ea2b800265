"""Checkpoints: whole or absent, all that a run depends on, refused by a run that would learn something else.

Everything random in a step is drawn from (seed, step), so a checkpoint needs no generator's state, and schedules are
functions of the step and of their mark (train/state.py). The loader's state is that after the step.

On a CPU a resumed run reaches the very weights of an uninterrupted one, unless `run.seconds` let the clock decide. On
CUDA some backward passes add in any order: there the weights agree up to rounding, or with `run.deterministic` bit for
bit, as far as is known (train/numerics.py)."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.weights import save, write_whole
from train.config import OBJECTIVES, Config, as_tree
from train.data.batches import Source
from train.state import START, Mark, State, TrainingError
from train.update import Guard

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "generator.safetensors"
FAILURE = "failure"

FREE = frozenset(
    {f"run.{key}" for key in ("output", "seconds", "device", "bfloat16", "deterministic", "compile")}
    | {f"run.{key}" for key in ("threads", "tensorboard", "timeout")}
    | {f"run.{key}_every" for key in ("log", "validate", "save", "grid")}
    | {"data.validation", "data.workers", "optimiser.steps", "optimiser.accumulate"}
)
"""What may change between the runs of one training: where and how often to write, what the machine has and how it
computes, and how long to train: with other `optimiser.steps` the schedules are stretched or cut short from here on; of
`run.seconds` see train/clock.py."""


def save_checkpoint(state: State, source: Source, config: Config, folder: Path) -> None:
    """Written whole or not at all: a killed run leaves the last whole one. The averaged weights go beside it, and
    first: the checkpoint of a step says that its weights are there. Raises TrainingError when the disk refuses."""
    content = {
        "config": as_tree(config),
        "step": state.step,
        "mark": asdict(state.mark),
        "generator": state.generator.network.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.generator.optimiser.state_dict(),
        "data": source.state_dict(),
    }
    if state.critic:
        content["critic"] = state.critic.network.state_dict()
        content["critic_optimiser"] = state.critic.optimiser.state_dict()
    serialised = io.BytesIO()
    torch.save(content, serialised)
    try:
        save(state.average, folder / WEIGHTS, note=f"{state.step} steps")
        write_whole(folder / CHECKPOINT, serialised.getvalue())
    except OSError as error:
        raise TrainingError(f"cannot save step {state.step}, the last checkpoint is kept: {error}") from error


def load_checkpoint(state: State, config: Config, folder: Path, device: torch.device) -> dict[str, Any]:
    """Returns the source's state. Raises TrainingError when the checkpoint cannot be read, or was made with another
    model, data or schedule."""
    path, afresh = folder / CHECKPOINT, "or another run.output to start afresh"
    try:
        content = torch.load(path, weights_only=True, map_location=device)
        differing = differences(content["config"], config)
        if not differing:
            state.step = content["step"]
            state.mark = Mark(**content.get("mark", asdict(START)))  # older checkpoints have none
            state.generator.network.load_state_dict(content["generator"])
            state.average.load_state_dict(content["average"])
            state.generator.optimiser.load_state_dict(content["optimiser"])
            if state.critic:
                state.critic.network.load_state_dict(content["critic"])
                state.critic.optimiser.load_state_dict(content["critic_optimiser"])
    except Exception as error:  # PyTorch's unpickler raises a dozen types over damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TrainingError(f"{path} is no checkpoint that can be read ({reason}): delete it, {afresh}") from error
    if differing:
        raise TrainingError(
            f"{path} was made with another {', '.join(differing)}: give the same configuration to go on, {afresh}"
        )
    data: dict[str, Any] = content.get("data", {})
    return data


def differences(old: dict[str, Any], config: Config) -> list[str]:
    """The keys that decide what is learnt and differ; those of other objectives do not. A key that is younger than the
    checkpoint had its default."""
    new, defaults, unused = as_tree(config), as_tree(Config()), OBJECTIVES.keys() - {config.objective}
    if old.get("objective", defaults["objective"]) != config.objective:
        return ["objective"]
    names = [(section, key) for section in new if section not in {"objective", *unused} for key in new[section]]
    names = [(section, key) for section, key in names if f"{section}.{key}" not in FREE]
    return [f"{s}.{k}" for s, k in names if old.get(s, {}).get(k, defaults[s][k]) != new[s][k]]


def stop_if_failed(guard: Guard, state: State, source: Source, config: Config, folder: Path) -> None:
    """Waits for the device. When a step has failed, raises TrainingError on all ranks, once there is in the folder
    `failure` what it takes to look into it: each rank's crops and losses of that step, and a checkpoint of the networks
    as that step found them (if it was the generator's loss that failed, after the critic's update). A run with that
    folder for its output takes the step again."""
    found = guard.failure()
    if found is None:
        return
    state.step, values = found
    kept, ranks = folder / FAILURE, guard.ranks
    try:
        kept.mkdir(exist_ok=True)
        _keep(kept / f"rank{ranks.rank}.pt", {"step": state.step, "losses": values, "crops": source.batch(state.step)})
        if ranks.first:
            save_checkpoint(state, source, config, kept)
        where = f"what led there is in {kept}"
    except Exception as error:  # whatever stands in the way of it, the step is what has to be told
        where = f"nothing could be kept of it ({error})"
    ranks.wait()
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    raise TrainingError(f"not finite at step {state.step}: {numbers}; {where}; the last checkpoint is sound")


def _keep(path: Path, content: dict[str, Any]) -> None:
    serialised = io.BytesIO()
    torch.save(content, serialised)
    write_whole(path, serialised.getvalue())
