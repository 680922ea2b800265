"""The training loop. A step: crops (train/data/) → JPEGs (degradation.py) → losses and updates (objectives/) → averaged
weights. In between the loop logs, validates and saves.

All random numbers of a step are a function of (seed, step) and are drawn for all its crops, of which each rank takes
its own. The result therefore does not depend on interruptions, nor on the number of ranks except for losses that
compare crops with each other (objectives/energy.py); train/checkpoint.py states how closely a resumed run equals an
uninterrupted one."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.generator import Generator
from train.checkpoint import CHECKPOINT, WEIGHTS, keep_weights, load_checkpoint, save_checkpoint, stop_if_failed
from train.clock import Clock, resume_anchor
from train.config import Config
from train.data.crops import DEGRADATION, step_generator
from train.data.photographs import OFF_GRID, load_images
from train.data.sources import CropSource, open_source
from train.degradation import degrade
from train.distributed import Ranks, check_same_networks, process_group
from train.interruption import InterruptionError, StopSignals
from train.logger import Logger, MeanMeter, require_tensorboard
from train.notices import notices
from train.numerics import numerics, warn_of_slow_bfloat16
from train.objectives.energy import Energy
from train.objectives.forward import Objective, Terms
from train.objectives.frozen import load_regression
from train.objectives.game import Game
from train.objectives.regression import Regression
from train.run_folder import run_folder
from train.schedule import learning_rate, progress
from train.state import State, new_state, start_from, update_average
from train.update import Guard
from train.validate import centre_crops, picture, validate

MIN_VALIDATION_SIDE = 128 - max(OFF_GRID)
"""Pixels. Smaller validation images, JPEGs without what OFF_GRID says, are left out."""


@dataclass(frozen=True)
class TrainingRun:
    """The constant parts of a run; what training changes is in State."""

    config: Config
    ranks: Ranks
    folder: Path
    source: CropSource
    objective: Objective
    guard: Guard
    logger: Logger
    signals: StopSignals
    held_out: list[Tensor] = field(default_factory=list)  # [3, H, W] uint8 each; on the first rank only
    mmse: Generator | None = None  # regression to validate a sampler against that has no regression output


def train(config: Config) -> Path:
    """Trains to the end, resuming from a checkpoint in `run.output` if there is one. Returns the path of the weights.

    Raises ConfigError, SourceError, LoaderError for what cannot start, TrainingError for what cannot continue, and
    InterruptionError after Ctrl-C and SIGTERM."""
    with numerics(config.run), process_group(config.run) as ranks:
        return _train(config, ranks)


def _train(config: Config, ranks: Ranks) -> Path:
    folder = Path(config.run.output)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if ranks.is_first:
        warn_of_slow_bfloat16(config.run, ranks.device)
        for notice in notices(config):
            tqdm.write(notice, file=sys.stderr)
    own = ranks.local_batch(config.data.batch, config.optimiser.accumulate)  # raises before images are loaded
    if ranks.is_first and ranks.size > 1:
        tqdm.write(f"{config.data.batch} crops a step, {own} on each of {ranks.size} ranks")
    require_tensorboard(config)
    state, source_state = new_state(config, ranks), {}
    if (folder / CHECKPOINT).exists():
        source_state = load_checkpoint(state, config, folder, ranks.device)
        if ranks.is_first:
            done = progress(config, state.step, resume_anchor(state, config))
            tqdm.write(f"resuming from step {state.step} (schedules at {done:.0%})")
    elif config.run.start:
        start_from(state, config.run.start)
    check_same_networks(state.generator.network, state.step, ranks, folder)
    validates = bool(config.data.validation) and ranks.is_first
    needs_mmse = validates and not config.model.has_regression
    objective = open_objective(config, ranks.device)
    held_out = []
    if validates:
        held_out = list(centre_crops(load_images([config.data.validation], MIN_VALIDATION_SIDE, whole=False)))
    mmse = load_regression(config.game.mmse, "game.mmse", ranks.device) if needs_mmse else None
    with closing(open_source(config, ranks)) as source:
        if source_state:
            source.load_state_dict(source_state)
        with (
            run_folder(config, ranks),  # not before: a run that cannot start leaves nothing behind
            closing(Logger(config, ranks, folder, state.step)) as logger,
            StopSignals(ranks) as signals,
        ):
            guard = Guard(ranks)
            _loop(state, TrainingRun(config, ranks, folder, source, objective, guard, logger, signals, held_out, mmse))
    return folder / WEIGHTS


def open_objective(config: Config, device: torch.device) -> Objective:
    """The objective that `objective` names. Raises ConfigError for frozen networks that cannot be loaded."""
    if config.objective == "regression":
        return Regression(config)
    return Energy(config, device) if config.objective == "energy" else Game(config, device)


def _loop(state: State, run: TrainingRun) -> None:
    """Synchronises with the device only when it logs, validates or saves. Raises InterruptionError."""
    config, meter = run.config, MeanMeter()
    clock, over = Clock(state, config, run.ranks), False
    while state.step < config.optimiser.steps and not over:
        try:
            meter.add(train_step(state, run))
            over = clock.is_over(state)
        except RuntimeError as error:  # out of memory, a kernel, a lost rank: keep its type and traceback
            error.add_note(f"at step {state.step} of rank {run.ranks.rank}")
            raise
        due = _due(config, state.step, over)
        stopped = run.signals.arrived()
        if stopped and state.step < config.optimiser.steps and not over:
            _save_before_end(state, run)
            _log(state, run, meter, due & {"log"})
            raise InterruptionError(stopped, state.step)
        run.logger.advance(state.step, clock.passed)
        if due:
            stop_if_failed(run.guard, state, run.source, config, run.folder)
            _log(state, run, meter, due)
        if "save" in due and run.ranks.is_first:
            save_checkpoint(state, run.source, config, run.folder)
        if "keep" in due and run.ranks.is_first:
            keep_weights(state, run.folder)


def _save_before_end(state: State, run: TrainingRun) -> None:
    """Writes nothing to the terminal, which may be gone. All ranks wait: when one ends, torchrun ends the others."""
    stop_if_failed(run.guard, state, run.source, run.config, run.folder)
    if run.ranks.is_first:
        save_checkpoint(state, run.source, run.config, run.folder)
    run.ranks.barrier()


def _due(config: Config, step: int, over: bool) -> set[str]:
    """The actions due after `step` steps: log, validate, save, grid, keep. over: whether `run.seconds` have passed."""
    every = {name: getattr(config.run, f"{name}_every") for name in ("log", "validate", "save", "grid", "keep")}
    last = over or step == config.optimiser.steps
    return {name for name, steps in every.items() if steps and (last or step % steps == 0)}


def train_step(state: State, run: TrainingRun) -> Terms:
    """One update of each network and of the averaged weights. Returns the step's losses and gradient norms."""
    config = run.config
    random = step_generator(config.run.seed, state.step, DEGRADATION)
    batch = degrade(run.source.batch(state.step), config.degradation, random, run.ranks, run.objective.seeds)
    terms = run.objective.step(state, batch.split(config.optimiser.accumulate), run.guard)
    update_average(state, config.optimiser.ema, run.guard.failed)
    state.step += 1
    return terms


def _log(state: State, run: TrainingRun, meter: MeanMeter, due: set[str]) -> None:
    config, device = run.config, run.ranks.device
    figures: dict[str, float] = {}
    if "log" in due:
        figures = meter.means(run.ranks)
    with meter.paused():
        if "validate" in due and run.held_out:
            figures |= validate(state.average, run.held_out, config, device, run.mmse)
        if figures:
            schedules = {"lr": learning_rate(config, state.step, state.anchor), **run.objective.schedule(state)}
            run.logger.log(state.step, schedules | figures)
        if "grid" in due and run.held_out:
            run.logger.log_image(state.step, picture(state.average, run.held_out, config, device))
