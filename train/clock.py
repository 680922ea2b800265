"""Time-limited training, `run.seconds`: the run stops by the clock, and its schedules end at that moment."""

from __future__ import annotations

from time import monotonic

from train.config import Config
from train.distributed import Agreement, Ranks
from train.schedule import START, ScheduleAnchor, progress
from train.state import State


def resume_anchor(state: State, config: Config) -> ScheduleAnchor:
    """The schedules' anchor for this process.

    With `run.seconds` the progress rises from the checkpoint's to 1 as the seconds pass. Without it, a run that was
    time-limited before continues from its progress to 1 at `optimiser.steps`, in proportion to the steps.

    The schedules of a run that had reached its time limit are stretched, as more `optimiser.steps` would: the progress
    becomes the elapsed share of the new total time. 120 more seconds after 120 start at 0.5."""
    anchor, seconds = state.anchor, config.run.seconds
    if anchor.progress < 1:
        return ScheduleAnchor(state.step, progress(config, state.step, anchor), anchor.seconds) if seconds else anchor
    if not seconds:
        return START
    return ScheduleAnchor(state.step, anchor.seconds / (anchor.seconds + seconds), anchor.seconds)


class Clock:
    """Measures the training loop in seconds, including compilation, validation and saving, without the loading of data
    and weights before it. The first rank's clock is used on all ranks, so that they stop after the same step. On a GPU
    the launches may be a few steps ahead of the device. Without `run.seconds` the clock never stops a run."""

    def __init__(self, state: State, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks, self._agreement = config, ranks, Agreement(ranks)
        self.first = state.anchor = resume_anchor(state, config)
        self.began = monotonic()

    @property
    def passed(self) -> float:
        """Seconds on this rank."""
        return monotonic() - self.began

    def is_over(self, state: State) -> bool:
        """To be called after each step: moves the schedules' anchor to the elapsed time and returns whether
        `run.seconds` have passed."""
        seconds = self.config.run.seconds
        times = self._agreement.largest([self.passed if self.ranks.is_first else 0.0]) if seconds else None
        if times is None:
            return False
        passed = times[0]
        by_time = self.first.progress + (1 - self.first.progress) * min(1.0, passed / seconds)
        by_steps = progress(self.config, state.step, state.anchor)
        state.anchor = ScheduleAnchor(state.step, max(by_time, by_steps), self.first.seconds + passed)
        return passed >= seconds
