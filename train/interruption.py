"""Ctrl-C and SIGTERM, which schedulers send before they take a machine away: training ends between two steps, with a
checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from tqdm import tqdm

from train.distributed import Ranks

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class InterruptionError(Exception):
    """A run was ended by a signal, after it had saved its checkpoint."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"interrupted after step {step}, which is saved; the same command goes on from there")
        self.number = number


class StopSignals:
    """Inside the `with` block the first of these signals is noted. The second one has its usual effect, for a step that
    does not end. Outside the main thread, where Python allows no handlers, nothing is noted."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.number = ranks, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def arrived(self, agree: bool) -> int:
        """The number of the signal that has arrived, or 0. The first rank's counts on all ranks, which must call this
        after the same steps with the same `agree`; without it several ranks do not communicate, and it is 0."""
        if self.ranks.size == 1:
            return self.number
        return int(self.ranks.broadcast([self.number])[0]) if agree else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self.ranks.is_first:
            name = signal.Signals(number).name
            tqdm.write(f"{name}: saves a checkpoint and ends; once more ends at once without")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
