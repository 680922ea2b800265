"""The schedules of training: how far a run is, and the learning rate there."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config import Config


@dataclass(frozen=True)
class ScheduleAnchor:
    """A point from which the progress of all schedules, 0..1, rises linearly with the steps, to 1 at `optimiser.steps`.

    The default anchor makes the progress a function of the step alone; `run.seconds` moves the anchor with the clock
    (train/clock.py)."""

    step: int = 0
    progress: float = 0.0  # at `step`
    seconds: float = 0.0  # of training until then, in this process and earlier ones

    def progress_at(self, step: int, first: int, last: int) -> float:
        """The progress after `step` steps of a schedule that begins after `first` and ends after `last` steps."""
        begin = max(first, self.step)
        share = (step - begin) / max(1, last - begin)
        return self.progress + (1 - self.progress) * min(1.0, max(0.0, share))


START = ScheduleAnchor()


def progress(config: Config, step: int, anchor: ScheduleAnchor = START) -> float:
    """The progress of the learning rate's decay, 0..1: 0 until the end of the warm-up."""
    return anchor.progress_at(step, config.optimiser.warmup, config.optimiser.steps)


def learning_rate(config: Config, step: int, anchor: ScheduleAnchor = START) -> float:
    """Linear warm-up by the step, then cosine decay by the progress."""
    optimiser = config.optimiser
    span = optimiser.learning_rate - optimiser.final_learning_rate
    rate = optimiser.final_learning_rate + span * (1 + cos(pi * progress(config, step, anchor))) / 2
    if step < optimiser.warmup:
        return min(rate, optimiser.learning_rate * (step + 1) / optimiser.warmup)
    return rate
