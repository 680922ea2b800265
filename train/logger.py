"""Logging of a training run: progress bar, metrics.jsonl, image grids, and TensorBoard on request. Nothing synchronises
with the device between two lines of the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.atomic import write_atomically
from pipeline.engine.progress import LOGGED_EVERY_S, update_interval
from train.checks import ConfigError
from train.config import Config
from train.distributed import Ranks

METRICS = "metrics.jsonl"
GRIDS = "grids"

BAR_FIGURES = ("loss", "critic", "adversarial", "consistency", "gain_10", "std_10")
"""Figures shown beside the progress bar."""


class MeanMeter:
    """Means of losses over the steps in which they occur, accumulated on the device."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps, self._since = 0, monotonic()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """The scalars of one step, by name."""
        self._steps += 1
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the body out of the seconds per step."""
        began = monotonic()
        yield
        self._since += monotonic() - began

    def means(self, ranks: Ranks) -> dict[str, float]:
        """The means over all ranks and over the steps since the last call, and the seconds per step. Synchronises with
        the device and the ranks."""
        names = sorted(self._sums)
        sums = ranks.sum(torch.stack([self._sums[name].float() for name in names])).tolist()
        now = monotonic()
        means = {name: total / ranks.size / self._counts[name] for name, total in zip(names, sums, strict=True)}
        means["seconds_per_step"] = (now - self._since) / self._steps
        self._reset()
        return means


class Logger:
    """Writes into the run's folder on the first rank; does nothing on the others."""

    def __init__(self, config: Config, ranks: Ranks, folder: Path, step: int) -> None:
        """step: the number of steps done. Lines of later steps, from a killed run, are dropped: the steps are
        repeated."""
        self.folder, self.writes = folder, ranks.is_first
        self.seconds, self.shown = config.run.seconds, dict[str, str]()
        self.progress = _bar_of_seconds(config, ranks) if self.seconds else _bar_of_steps(config, ranks, step)
        self.board: Any = None
        if self.writes:
            if config.run.tensorboard:
                self.board = require_tensorboard(config)(str(folder / "tensorboard"), purge_step=step + 1)
            keep_lines_up_to(folder / METRICS, step)
            self.metrics = (folder / METRICS).open("a")

    def advance(self, step: int, passed: float) -> None:
        """Moves the progress bar to the steps done and the seconds passed."""
        if self.seconds:
            self.progress.set_postfix({"step": step, **self.shown}, refresh=False)
            self.progress.update(min(passed, self.seconds) - self.progress.n)
        else:
            self.progress.update()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes a line of metrics.jsonl."""
        if not self.writes:
            return
        self.shown |= {name: f"{figures[name]:.3g}" for name in BAR_FIGURES if name in figures}
        self.progress.set_postfix({"step": step, **self.shown} if self.seconds else self.shown)
        print(json.dumps({"step": step, **figures}), file=self.metrics, flush=True)
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def log_image(self, step: int, image: Image.Image) -> None:
        """Writes grids/<step>.png. To be called on the first rank only."""
        (self.folder / GRIDS).mkdir(exist_ok=True)
        file = BytesIO()
        image.save(file, "PNG")
        write_atomically(self.folder / GRIDS / f"{step:07d}.png", file.getvalue())
        if self.board is not None:
            self.board.add_image("grid", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self.progress.close()
        if self.writes:
            self.metrics.close()
        if self.board is not None:
            self.board.close()


def _bar_of_steps(config: Config, ranks: Ranks, step: int) -> tqdm[Any]:
    return _bar(ranks, total=config.optimiser.steps, initial=step, unit="step", smoothing=0.05)


def _bar_of_seconds(config: Config, ranks: Ranks) -> tqdm[Any]:
    return _bar(ranks, total=config.run.seconds, bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}")


def _bar(ranks: Ranks, **options: Any) -> tqdm[Any]:
    every = update_interval()
    bar: tqdm[Any] = tqdm(**options, disable=not ranks.is_first, mininterval=every, maxinterval=LOGGED_EVERY_S)
    return bar


def require_tensorboard(config: Config) -> Any:
    """TensorBoard's writer, a class, if `run.tensorboard` asks for it. Raises ConfigError if it is not installed."""
    if not config.run.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ConfigError(f"run.tensorboard: it is not installed: pip install tensorboard ({error})") from error
    return SummaryWriter


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drops the lines after `step`, the last checkpoint's, from metrics.jsonl: a killed run repeats those steps."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # the last may be incomplete
        kept = "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step)
        write_atomically(path, kept.encode())
