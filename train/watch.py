"""What a run tells of itself: a progress bar, a line of metrics.jsonl now and then, pictures, TensorBoard where asked
for. Between these nothing waits for the device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.weights import write_whole
from train.checks import ConfigError
from train.config import Config
from train.distributed import Ranks

METRICS = "metrics.jsonl"
GRIDS = "grids"

SHOWN = ("loss", "critic", "adversarial", "consistency", "gain_10", "std_10")
"""The figures beside the progress bar."""


class Meter:
    """Means of terms over the steps in which they occur, summed up on the device."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps, self._since = 0, monotonic()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """One step's."""
        self._steps += 1
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Over all ranks, since the last time, and the seconds that a step took. Waits for the device and the ranks."""
        names = sorted(self._sums)
        sums = ranks.sum(torch.stack([self._sums[name].float() for name in names])).tolist()
        now = monotonic()
        means = {name: total / ranks.size / self._counts[name] for name, total in zip(names, sums, strict=True)}
        means["seconds_per_step"] = (now - self._since) / self._steps
        self._start()
        return means


class Watch:
    """Writes into the run's folder, on the first rank alone; on the others it does nothing."""

    def __init__(self, config: Config, ranks: Ranks, folder: Path, step: int) -> None:
        """`step`: how many are done. What a killed run wrote of later ones is dropped: they come again.

        Raises ConfigError where TensorBoard is wanted and missing."""
        self.folder, self.writes = folder, ranks.first
        self.seconds, self.shown = config.run.seconds, dict[str, str]()
        self.progress = _bar_of_seconds(config, ranks) if self.seconds else _bar_of_steps(config, ranks, step)
        self.board: Any = None
        if self.writes:
            if config.run.tensorboard:
                self.board = _tensorboard(folder, step)
            keep_lines_up_to(folder / METRICS, step)
            self.metrics = (folder / METRICS).open("a")

    def advance(self, step: int, passed: float) -> None:
        """The bar, to so many steps done and seconds passed."""
        if self.seconds:
            self.progress.set_postfix({"step": step, **self.shown}, refresh=False)
            self.progress.update(min(passed, self.seconds) - self.progress.n)
        else:
            self.progress.update()

    def line(self, step: int, figures: Mapping[str, float]) -> None:
        if not self.writes:
            return
        self.shown |= {name: f"{figures[name]:.3g}" for name in SHOWN if name in figures}
        self.progress.set_postfix({"step": step, **self.shown} if self.seconds else self.shown)
        print(json.dumps({"step": step, **figures}), file=self.metrics, flush=True)
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def grid(self, step: int, image: Image.Image) -> None:
        """grids/<step>.png."""
        (self.folder / GRIDS).mkdir(exist_ok=True)
        file = BytesIO()
        image.save(file, "PNG")
        write_whole(self.folder / GRIDS / f"{step:07d}.png", file.getvalue())
        if self.board is not None:
            self.board.add_image("grid", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self.progress.close()
        if self.writes:
            self.metrics.close()
        if self.board is not None:
            self.board.close()


def _bar_of_steps(config: Config, ranks: Ranks, step: int) -> tqdm[Any]:
    return tqdm(total=config.optimiser.steps, initial=step, unit="step", smoothing=0.05, disable=not ranks.first)


def _bar_of_seconds(config: Config, ranks: Ranks) -> tqdm[Any]:
    layout = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}"
    return tqdm(total=config.run.seconds, bar_format=layout, disable=not ranks.first)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - where it is asked for alone
    except ImportError as error:
        raise ConfigError(f"run.tensorboard: it is not installed: pip install tensorboard ({error})") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint: those steps come again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # the last may be cut off
        kept = "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step)
        write_whole(path, kept.encode())
