"""`run.seconds`: a run that ends by the clock, and whose schedules end when it does."""

from __future__ import annotations

from time import monotonic

from train.config import Config
from train.distributed import Ranks
from train.state import START, Mark, State, progress

PERIOD = 1.0
"""Seconds between readings of the clock where ranks have to agree on them, as nearly as whole steps allow."""

MAX_STEPS = 64
"""Between two readings."""


def first_mark(state: State, config: Config) -> Mark:
    """Where the schedules go on in this process.

    With `run.seconds`, from the progress of the checkpoint, to 1 as the seconds pass. Without, a run that followed the
    clock before goes on from its progress to 1 at `optimiser.steps`, in proportion to the steps.

    A run that the clock had brought to its end is stretched, like one that gets more `optimiser.steps`: it goes on from
    the share of its new length that is done. 120 seconds more after 120 begin in the middle."""
    mark, seconds = state.mark, config.run.seconds
    if mark.progress < 1:
        return Mark(state.step, progress(config, state.step, mark), mark.seconds) if seconds else mark
    return Mark(state.step, mark.seconds / (mark.seconds + seconds), mark.seconds) if seconds else START


class Clock:
    """Counts the seconds of the training loop: compilation, validation and saving included, the loading of data and
    weights before it excluded. The first rank's clock decides for all, so that they stop after the same step. On a GPU
    launches may be a few steps ahead of the device. Without `run.seconds` it never ends a run."""

    def __init__(self, state: State, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.first = state.mark = first_mark(state, config)
        self.first_step = self.next = state.step
        self.began = monotonic()

    @property
    def passed(self) -> float:
        """Seconds on this rank."""
        return monotonic() - self.began

    def is_over(self, state: State) -> bool:
        """After each step: takes the schedules' mark to the time that has passed, and says whether all of it has."""
        seconds = self.config.run.seconds
        if not seconds or state.step < self.next:
            return False
        passed, steps = self.passed, max(1, state.step - self.first_step)
        pause = 1.0 if self.ranks.size == 1 else min(MAX_STEPS, max(1.0, PERIOD * steps / passed))
        passed, pause = self.ranks.from_first([passed, pause])
        self.next = state.step + int(pause)
        by_time = self.first.progress + (1 - self.first.progress) * min(1.0, passed / seconds)
        by_steps = progress(self.config, state.step, state.mark)
        state.mark = Mark(state.step, max(by_time, by_steps), self.first.seconds + passed)
        return passed >= seconds
