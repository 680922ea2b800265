"""Checkpoints: written atomically, with all the state that a run depends on, and accepted only by a run with the same
configuration of what is learnt.

All random numbers of a step are a function of (seed, step), so a checkpoint needs no state of random generators.
Schedules are functions of the step and the anchor (train/schedule.py).

On a CPU a resumed run reaches bit for bit the weights of an uninterrupted one, unless `run.seconds` limits the time. On
CUDA some backward passes add in no fixed order: there the weights agree up to rounding, with `run.deterministic` bit
for bit, as far as is known (train/numerics.py)."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.atomic import write_atomically
from model.weights import save
from train.config import OBJECTIVES, Config, as_tree
from train.data.sources import CropSource
from train.schedule import ScheduleAnchor
from train.state import State, TrainingError
from train.update import Guard

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "generator.safetensors"
KEPT = "weights"
FAILURE = "failure"

CHANGEABLE = frozenset(
    {f"run.{key}" for key in ("output", "start", "seconds", "device", "bfloat16", "deterministic", "compile")}
    | {f"run.{key}" for key in ("threads", "tensorboard", "timeout")}
    | {f"run.{key}_every" for key in ("log", "validate", "save", "grid", "keep")}
    | {"data.train", "data.validation", "data.workers", "optimiser.steps", "optimiser.accumulate"}
)
"""Keys that may differ from the checkpoint's when a run is resumed: output, hardware, arithmetic, the paths of images
(crop sources find out whether these are the same), and the length. Other `optimiser.steps` stretch or shorten the
schedules as a whole, so that the learning rate jumps; for `run.seconds` see train/clock.py."""


def save_checkpoint(state: State, source: CropSource, config: Config, folder: Path) -> None:
    """Writes the averaged weights, then the checkpoint, each atomically: the weights of a checkpoint's step always
    exist. Raises TrainingError if the disk refuses."""
    content = {
        "config": as_tree(config),
        "step": state.step,
        "mark": asdict(state.anchor),
        "generator": state.generator.network.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.generator.adam.state_dict(),
        "data": source.state_dict(),
    }
    if state.generator.muon:
        content["muon"] = state.generator.muon.state_dict()
    if state.critic:
        content["critic"] = state.critic.network.state_dict()
        content["critic_optimiser"] = state.critic.adam.state_dict()
    try:
        save(state.average, folder / WEIGHTS, note=f"{state.step} steps")
        _write(folder / CHECKPOINT, content)
    except OSError as error:
        raise TrainingError(f"cannot save step {state.step}, the last checkpoint is kept: {error}") from error


def keep_weights(state: State, folder: Path) -> None:
    """Writes the averaged weights of this step, which stay. Raises TrainingError if the disk refuses."""
    path = folder / KEPT / f"{state.step:07d}.safetensors"
    try:
        path.parent.mkdir(exist_ok=True)
        save(state.average, path, note=f"{state.step} steps")
    except OSError as error:
        raise TrainingError(f"cannot keep the weights of step {state.step}: {error}") from error


def load_checkpoint(state: State, config: Config, folder: Path, device: torch.device) -> dict[str, Any]:
    """Restores `state`, and returns the state of the crop source. Raises TrainingError if the checkpoint cannot be
    read, or was made with another configuration of model, data or schedules, OSError of the disk, and errors of
    memory."""
    path, afresh = folder / CHECKPOINT, "or another run.output to start afresh"
    try:
        content = torch.load(path, weights_only=True, map_location=device)
        differing = differences(content["config"], config)
        if not differing:
            state.step = content["step"]
            state.anchor = ScheduleAnchor(**content["mark"])
            state.generator.network.load_state_dict(content["generator"])
            state.average.load_state_dict(content["average"])
            state.generator.adam.load_state_dict(content["optimiser"])
            if state.generator.muon:
                state.generator.muon.load_state_dict(content["muon"])
            if state.critic:
                state.critic.network.load_state_dict(content["critic"])
                state.critic.adam.load_state_dict(content["critic_optimiser"])
        data: dict[str, Any] = content["data"]
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PyTorch's unpickler raises a dozen types over damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TrainingError(
            f"cannot read the checkpoint {path} ({reason}): give another run.output, and to start from its averaged "
            f"weights run.start={folder / WEIGHTS}"
        ) from error
    if differing:
        raise TrainingError(
            f"{path} was made with another {', '.join(differing)}: give the same configuration to resume, {afresh}, "
            f"where run.start={folder / WEIGHTS} begins with its weights"
        )
    return data


def differences(old: dict[str, Any], config: Config) -> list[str]:
    """The keys of what is learnt whose values differ from the checkpoint's. Sections of other objectives are ignored. A
    key that the checkpoint lacks, because it was added later, counts as its default."""
    new, defaults, unused = as_tree(config), as_tree(Config()), OBJECTIVES.keys() - {config.objective}
    unused |= set() if config.objective == "game" else {"critic"}
    if old.get("objective", defaults["objective"]) != config.objective:
        return ["objective"]
    names = [(section, key) for section in new if section not in {"objective", *unused} for key in new[section]]
    names = [(section, key) for section, key in names if f"{section}.{key}" not in CHANGEABLE]
    return [f"{s}.{k}" for s, k in names if old.get(s, {}).get(k, defaults[s][k]) != new[s][k]]


def stop_if_failed(guard: Guard, state: State, source: CropSource, config: Config, folder: Path) -> None:
    """Raises TrainingError on all ranks if a step has failed (`Guard`). Synchronises with the device.

    Before that it writes what is needed to reproduce the step into the folder `failure`: each rank's crops and losses
    of the step, and a checkpoint of the networks before it (if the generator's loss failed, after the critic's update).
    A run with that folder as its output repeats the step."""
    found = guard.failure()
    if found is None:
        return
    state.step, values = found
    kept, ranks = folder / FAILURE, guard.ranks
    try:
        kept.mkdir(exist_ok=True)
        _write(kept / f"rank{ranks.rank}.pt", {"step": state.step, "losses": values, "crops": source.batch(state.step)})
        if ranks.is_first:
            save_checkpoint(state, source, config, kept)
        where = f"its crops and networks are saved in {kept}"
    except Exception as error:  # the failed step is the error to report, whatever happens here
        where = f"it could not be saved ({error})"
    ranks.barrier()
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    way_out = "begin again with a lower optimiser.learning_rate or optimiser.clip"
    if (folder / CHECKPOINT).exists():
        way_out = (
            "the last checkpoint is sound, but leads here again: go on in float32 (run.bfloat16=false), or "
            f"{way_out} and run.start={folder / WEIGHTS}, in another run.output"
        )
    raise TrainingError(f"not finite at step {state.step}: {numbers}; {where}; {way_out}")


def _write(path: Path, content: dict[str, Any]) -> None:
    serialised = io.BytesIO()
    torch.save(content, serialised)
    write_atomically(path, serialised.getvalue())
