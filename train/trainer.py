"""The training loop: one step after another, averaged weights, atomic checkpoints, exact resume.

Everything random in a step is drawn from (seed, step), so a checkpoint needs no generator's state."""

from __future__ import annotations

import io
import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import Subsampling, quality_to_tables
from model.generator import Generator, three_tables
from model.weights import save, write_whole
from train.config import Config, as_tree
from train.crops import load_images, random_crops, step_generator
from train.degradation import Pair, compress, degrade
from train.losses import LOSSES

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "generator.safetensors"
METRICS = "metrics.jsonl"
VALIDATION_QUALITIES = (10, 20, 40)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what was kept."""


@dataclass
class State:
    """All that a checkpoint holds, besides the configuration. `step`: how many are done."""

    generator: Generator
    average: Generator
    optimiser: torch.optim.Optimizer
    step: int = 0


@dataclass(frozen=True)
class Data:
    """Clean images, [3, H, W] uint8: those to train on and those for the figures on the way."""

    train: list[Tensor]
    validation: list[Tensor]


def new_state(config: Config) -> State:
    torch.manual_seed(config.run.seed)
    place: dict[str, Any] = {"device": config.run.device, "memory_format": torch.channels_last}
    generator, average = Generator(config.model).to(**place), Generator(config.model).to(**place)
    average.load_state_dict(generator.state_dict())
    optimiser = torch.optim.Adam(generator.parameters(), lr=0.0, betas=config.optimiser.betas, fused=True)
    return State(generator, average.requires_grad_(False).eval(), optimiser)


def save_checkpoint(state: State, config: Config, folder: Path) -> None:
    """Written whole or not at all: a killed run leaves the last whole one. The averaged weights go beside it, and
    first: the checkpoint of a step says that its weights are there. Raises TrainingError when the disk refuses."""
    content = {
        "config": as_tree(config),
        "step": state.step,
        "generator": state.generator.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    serialised = io.BytesIO()
    torch.save(content, serialised)
    try:
        save(state.average, folder / WEIGHTS, note=f"{state.step} steps")
        write_whole(folder / CHECKPOINT, serialised.getvalue())
    except OSError as error:
        raise TrainingError(f"cannot save step {state.step}, the last checkpoint is kept: {error}") from error


def load_checkpoint(state: State, config: Config, folder: Path) -> None:
    """Raises TrainingError when the checkpoint cannot be read, or was made with another model, data or schedule."""
    path, afresh = folder / CHECKPOINT, "or another run.output to start afresh"
    try:
        content = torch.load(path, weights_only=True, map_location=config.run.device)
        differing = _differences(content["config"], as_tree(config))
        if not differing:
            state.step = content["step"]
            state.generator.load_state_dict(content["generator"])
            state.average.load_state_dict(content["average"])
            state.optimiser.load_state_dict(content["optimiser"])
    except Exception as error:  # PyTorch's unpickler raises a dozen types over damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TrainingError(f"{path} is no checkpoint that can be read ({reason}): delete it, {afresh}") from error
    if differing:
        raise TrainingError(
            f"{path} was made with another {', '.join(differing)}: give the same configuration to go on, {afresh}"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys that decide what is learnt and differ. Where and how often to write may change between runs, and so may
    the number of steps: the schedule is then stretched or cut short from here on."""
    free = {"run.output", "run.threads", "run.log_every", "run.validate_every", "run.save_every"}
    free |= {"data.validation", "optimiser.steps"}
    names = ((section, key) for section in new for key in new[section])
    return [f"{s}.{k}" for s, k in names if f"{s}.{k}" not in free and old.get(s, {}).get(k) != new[s][k]]


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine from the first rate to the last."""
    optimiser = config.optimiser
    if step < optimiser.warmup:
        return optimiser.learning_rate * (step + 1) / optimiser.warmup
    progress = (step - optimiser.warmup) / max(1, optimiser.steps - optimiser.warmup)
    span = optimiser.learning_rate - optimiser.final_learning_rate
    return optimiser.final_learning_rate + span * (1 + cos(pi * min(1.0, progress))) / 2


def autocast(config: Config) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(config.run.device).type, torch.bfloat16, enabled=config.run.bfloat16)


def restore(generator: Generator, pairs: list[Pair], config: Config) -> Tensor:
    """One pass over the crops of all pairs: [N, 3, h, w] float32, 0..1."""
    decoded = torch.cat([pair.decoded for pair in pairs]) / 255
    tables = torch.cat([three_tables(pair.coefficients.tables) for pair in pairs])
    with autocast(config):
        restored: Tensor = generator(decoded, tables, torch.cat([pair.sampling_index() for pair in pairs]))
    return restored.float()


def train_step(state: State, images: list[Tensor], config: Config) -> float:
    """One update; returns the loss. Raises TrainingError, before anything is changed, when the loss or its gradient is
    not finite."""
    random = step_generator(config.run.seed, state.step)
    clean = random_crops(images, config.data.crop, config.data.batch, random).to(config.run.device).float()
    pairs = degrade(clean, config.degradation, random)
    truth = torch.cat([pair.clean for pair in pairs]) / 255
    loss = LOSSES[config.optimiser.loss](restore(state.generator, pairs, config), truth)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(state.generator.parameters(), config.optimiser.clip)
    value = loss.item()
    if not (isfinite(value) and isfinite(norm)):
        raise TrainingError(
            f"the loss is {value}, its gradient's norm {float(norm)} at step {state.step}; the last checkpoint is sound"
        )
    state.optimiser.step()
    update_average(state, config.optimiser.ema)
    state.step += 1
    return value


@torch.no_grad()
def update_average(state: State, decay: float) -> None:
    """Exponential moving average, faster in the first steps."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    averages: list[Tensor] = list(state.average.parameters())
    currents: list[Tensor] = list(state.generator.parameters())
    torch._foreach_lerp_(averages, currents, 1 - decay)


@torch.no_grad()
def validate(generator: Generator, images: list[Tensor], config: Config) -> dict[str, float]:
    """PSNR gain over plain decode, dB, 4:2:0, on the middle of each image, at three qualities; before projection."""
    side = min(160, *(min(image.shape[1:]) // 16 * 16 for image in images))
    middles = [i[:, (i.shape[1] - side) // 2 :, (i.shape[2] - side) // 2 :][:, :side, :side] for i in images]
    gains = {}
    for quality in VALIDATION_QUALITIES:
        gain = []
        for clean in torch.split(torch.stack(middles), 16):
            tables = quality_to_tables(quality, 3).expand(len(clean), -1, -1, -1).to(config.run.device)
            pair = compress(clean.to(config.run.device).float(), tables, Subsampling.S420)
            restored = (restore(generator, [pair], config) * 255).clamp(0, 255)
            errors = ((x - pair.clean).square().flatten(1).mean(1) for x in (pair.decoded, restored))
            before, after = (error.clamp_min(1e-4) for error in errors)  # flat images are decoded without any
            gain.append(10 * torch.log10(before / after))
        gains[f"gain_{quality}"] = round(float(torch.cat(gain).mean()), 4)
    return gains


def train(config: Config) -> Path:
    """Trains to the end, going on from a checkpoint in `run.output` when there is one. Returns the weights' path."""
    folder = Path(config.run.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    state = new_state(config)
    if (folder / CHECKPOINT).exists():
        load_checkpoint(state, config, folder)
        tqdm.write(f"going on from step {state.step}")
    held_out = [config.data.validation] if config.data.validation else []
    data = Data(load_images(config.data.train, config.data.crop), load_images(held_out, 128) if held_out else [])
    keep_lines_up_to(folder / METRICS, state.step)
    with (folder / METRICS).open("a") as metrics:
        _loop(state, data, config, folder, metrics)
    return folder / WEIGHTS


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint: those steps come again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # the last may be cut off
        kept = "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step)
        write_whole(path, kept.encode())


def _loop(state: State, data: Data, config: Config, folder: Path, metrics: TextIO) -> None:
    run, losses, since = config.run, [], time.monotonic()
    progress = tqdm(total=config.optimiser.steps, initial=state.step, unit="step", smoothing=0.05)
    while state.step < config.optimiser.steps:
        losses.append(train_step(state, data.train, config))
        progress.update()
        last = state.step == config.optimiser.steps
        line: dict[str, float] = {}
        if state.step % run.log_every == 0 or last:
            now = time.monotonic()
            line = {"loss": sum(losses) / len(losses), "seconds_per_step": (now - since) / len(losses)}
            losses, since = [], now
        if data.validation and (state.step % run.validate_every == 0 or last):
            line |= validate(state.average, data.validation, config)
        if line:
            progress.set_postfix({k: f"{v:.3f}" for k, v in line.items()})
            record = {"step": state.step, "lr": learning_rate(config, state.step), **line}
            print(json.dumps(record), file=metrics, flush=True)
        if state.step % run.save_every == 0 or last:
            save_checkpoint(state, config, folder)
    progress.close()
