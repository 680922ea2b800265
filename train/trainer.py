"""The training loop: one step after another, averaged weights, atomic checkpoints, resume, on one device or many.

Everything random in a step is drawn from (seed, step) for all its crops, and each rank takes its own: so it does not
matter how many ranks there are, nor how often a run was interrupted. train/checkpoint.py says how far a resumed run
equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.generator import Generator
from train.checkpoint import CHECKPOINT, WEIGHTS, load_checkpoint, save_checkpoint, stop_if_failed
from train.clock import Clock, first_mark
from train.config import Config
from train.data.batches import Source, open_source
from train.data.crops import load_images, step_generator
from train.degradation import degrade
from train.distributed import Ranks, join, leave
from train.numerics import numerics, warn_of_slow_bfloat16
from train.objectives.energy import Energy
from train.objectives.forward import Objective, Terms, load_regression
from train.objectives.game import Game
from train.objectives.regression import Regression
from train.state import State, learning_rate, new_state, progress, start_from, update_average
from train.update import Guard
from train.validate import picture, validate
from train.watch import Meter, Watch

DEGRADATION = 1
"""The stream of random numbers that decides JPEGs and noise; 0 is that of the crops."""


@dataclass(frozen=True)
class Run:
    """What a run holds besides its state. held_out: [3, H, W] uint8 each, on the first rank alone. mmse: the regression
    that a sampler is compared with on them if it has none of its own."""

    config: Config
    ranks: Ranks
    folder: Path
    source: Source
    objective: Objective
    guard: Guard
    watch: Watch
    held_out: list[Tensor] = field(default_factory=list)
    mmse: Generator | None = None


def train(config: Config) -> Path:
    """Trains to the end, going on from a checkpoint in `run.output` when there is one. Returns the weights' path."""
    with numerics(config.run):
        return _train(config)


def _train(config: Config) -> Path:
    ranks = join(config.run)
    folder = Path(config.run.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if ranks.first:
        warn_of_slow_bfloat16(config.run, ranks.device)
    state, loaded = new_state(config, ranks), {}
    if (folder / CHECKPOINT).exists():
        loaded = load_checkpoint(state, config, folder, ranks.device)
        if ranks.first:
            done = progress(config, state.step, first_mark(state, config))
            tqdm.write(f"going on from step {state.step} (schedules at {done:.0%})")
    elif config.run.start:
        start_from(state, config.run.start)
    held_out = [config.data.validation] if config.data.validation and ranks.first else []
    compared = held_out and not config.model.regresses
    run = Run(
        config,
        ranks,
        folder,
        open_source(config, ranks),
        open_objective(config, ranks.device),
        Guard(ranks),
        Watch(config, ranks, folder, state.step),
        load_images(held_out, 128) if held_out else [],
        load_regression(config.game.mmse, "game.mmse", ranks.device) if compared else None,
    )
    if loaded:
        run.source.load_state_dict(loaded)
    try:
        _loop(state, run)
    finally:
        run.watch.close()
        run.source.close()
    leave(ranks)
    return folder / WEIGHTS


def open_objective(config: Config, device: torch.device) -> Objective:
    """The one that `objective` names. Raises ConfigError for frozen networks that cannot be loaded."""
    if config.objective == "regression":
        return Regression(config)
    return Energy(config, device) if config.objective == "energy" else Game(config, device)


def _loop(state: State, run: Run) -> None:
    """Synchronises with the device only where it logs or saves."""
    config, meter = run.config, Meter()
    clock, over = Clock(state, config, run.ranks), False
    while state.step < config.optimiser.steps and not over:
        try:
            meter.add(train_step(state, run))
            over = clock.is_over(state)
        except RuntimeError as error:  # memory, a kernel, another rank that is gone: it keeps its type and its trace
            error.add_note(f"at step {state.step} of rank {run.ranks.rank}")
            raise
        run.watch.advance(state.step, clock.passed)
        due = _due(config, state.step, over)
        if due:
            stop_if_failed(run.guard, state, run.source, config, run.folder)
            _tell(state, run, meter, due)
        if "save" in due and run.ranks.first:
            save_checkpoint(state, run.source, config, run.folder)


def _due(config: Config, step: int, over: bool) -> set[str]:
    """What is to be done after so many steps: log, validate, save, grid. over: whether the time is."""
    every = {name: getattr(config.run, f"{name}_every") for name in ("log", "validate", "save", "grid")}
    last = over or step == config.optimiser.steps
    return {name for name, steps in every.items() if steps and (last or step % steps == 0)}


def train_step(state: State, run: Run) -> Terms:
    """One update of each network."""
    config = run.config
    random = step_generator(config.run.seed, state.step, DEGRADATION)
    batch = degrade(run.source.batch(state.step), config.degradation, random, run.ranks, run.objective.seeds)
    terms = run.objective.step(state, batch.split(config.optimiser.accumulate), run.guard)
    update_average(state, config.optimiser.ema, run.guard.failed)
    state.step += 1
    return terms


def _tell(state: State, run: Run, meter: Meter, due: set[str]) -> None:
    """A line of figures, and a picture."""
    config, device = run.config, run.ranks.device
    line: dict[str, float] = {}
    if "log" in due:
        line = meter.means(run.ranks)
    if "validate" in due and run.held_out:
        line |= validate(state.average, run.held_out, config, device, run.mmse)
    if line:
        rates = {"lr": learning_rate(config, state.step, state.mark), **run.objective.schedule(state)}
        run.watch.line(state.step, rates | line)
    if "grid" in due and run.held_out:
        run.watch.grid(state.step, picture(state.average, run.held_out, config, device))
