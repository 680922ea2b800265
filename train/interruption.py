"""Ctrl-C and SIGTERM, which schedulers send before they take a machine away: training ends between two steps, with a
checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from train.distributed import Agreement, Ranks

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class InterruptionError(Exception):
    """A run was ended by a signal, after it had saved its checkpoint."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"interrupted after step {step}, which is saved; the same command goes on from there")
        self.number = number


class StopSignals:
    """Notes these signals inside the `with` block. After the first, Ctrl-C has its usual effect, in case a step hangs;
    SIGTERM is ignored, because a scheduler and torchrun may both send it. Signals that were ignored before, such as
    Ctrl-C in a background job, stay so. Outside the main thread Python allows no handlers: nothing is noted."""

    def __init__(self, ranks: Ranks) -> None:
        self.number, self._agreement = 0, Agreement(ranks)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: installed from C
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arrived(self) -> int:
        """The number of the signal that has arrived, or 0. To be called after each step, by all ranks: one that any of
        them has received is returned on all, after the same step, within about a second."""
        numbers = self._agreement.largest([self.number])
        return int(numbers[0]) if numbers else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
