"""The scheduler's worker processes: sends them work units, collects results, replaces a process that dies, and retries
its units, each by itself. One thread serves all processes: a thread for each would contend for the GIL."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from pipeline.engine.work_queue import WorkUnit
from pipeline.engine.worker import WorkerError, WorkerProcess

T = TypeVar("T")
UnitOutcome = tuple[WorkUnit[T], Any]
"""A unit, and its result or the Exception that it raised."""


NON_BLOCKING_BYTES = 32 << 10
"""A message of up to so many bytes can be sent to a busy process without blocking."""

MAX_DEATHS = 2
"""Processes that may die of a unit before it fails: the first may have been killed for another reason."""


@dataclass(eq=False)
class _Slot(Generic[T]):
    """A worker process or its replacement.

    sent: batches that it has received, the oldest first.
    pending: batches to send next, one at a time.
    since: the time in seconds from which the current batch is measured."""

    process: WorkerProcess
    sent: deque[list[WorkUnit[T]]] = field(default_factory=deque)
    pending: deque[list[WorkUnit[T]]] = field(default_factory=deque)
    since: float = 0.0

    @property
    def idle(self) -> bool:
        return not self.sent

    @property
    def saturated(self) -> bool:
        """Whether it has a batch to continue with."""
        return bool(len(self.sent) > 1 or self.pending)


class WorkerPool(Generic[T]):
    """Worker processes; for one thread, except `notify` and `close`.

    start: starts a process.
    busy: seconds that processes spent on units, summed over all processes.

    When a process dies, a new one takes its place and runs the units of its batch again, one at a time: any of them may
    be the cause. A unit that was a process's only one when it died, twice, has a WorkerError as its outcome."""

    def __init__(self, start: Callable[[], WorkerProcess], count: int) -> None:
        self._start, self._closed, self.busy = start, False, 0.0
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wakeup)
        self._slots = [_Slot[T](start()) for _ in range(count)]
        self._outcomes: list[UnitOutcome[T]] = []

    @property
    def idle(self) -> bool:
        """Whether some process has nothing to do."""
        return any(slot.idle for slot in self._slots)

    @property
    def saturated(self) -> bool:
        """Whether every process has a batch to continue with."""
        return all(slot.saturated for slot in self._slots)

    @property
    def has_outcomes(self) -> bool:
        """Whether there are outcomes to collect or to wait for."""
        return bool(self._outcomes) or not all(slot.idle for slot in self._slots)

    def submit(self, units: Sequence[WorkUnit[T]]) -> None:
        """Sends units of one stage to an idle process, or else to one that is not saturated."""
        slot = min(self._slots, key=lambda slot: (slot.saturated, not slot.idle))
        self._send(slot, list(units))

    def collect(self) -> list[UnitOutcome[T]]:
        """Waits for results or for a `notify`, and returns the outcomes so far."""
        if not self._outcomes:
            waiting = {slot.process.connection: slot for slot in self._slots if not slot.idle}
            for ready in wait([*waiting, self._wakeup]):
                if isinstance(ready, int):
                    os.eventfd_read(self._wakeup)
                else:
                    self._receive(waiting[ready])  # type: ignore[index]
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def notify(self) -> None:
        """Wakes `collect` if a process is idle: there are new units. From any thread."""
        if self.idle:
            os.eventfd_write(self._wakeup, 1)

    def notify_all(self) -> None:
        """Wakes `collect`, from any thread."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Kills the processes; a thread that waits for them gets an error."""
        self._closed = True
        for slot in self._slots:
            slot.process.kill()
        self.notify_all()

    def _send(self, slot: _Slot[T], units: list[WorkUnit[T]]) -> None:
        """Sends a batch, or keeps it until the process is idle if sending would block."""
        try:
            message = slot.process.pack(units[0].entry.stage, [unit.work for unit in units])
            if not slot.idle and len(message) > NON_BLOCKING_BYTES:
                slot.pending.append(units)
                return
            if slot.idle:
                slot.since = time.perf_counter()
            slot.sent.append(units)
            slot.process.send(message)
        except WorkerError as error:
            self._replace(slot, error)
        except Exception as error:  # the unit cannot be pickled
            self._outcomes.extend((unit, error) for unit in units)
            self._send_next(slot)

    def _receive(self, slot: _Slot[T]) -> None:
        try:
            outcomes = slot.process.receive()
        except WorkerError as error:
            self._replace(slot, error)
            return
        self._outcomes.extend(zip(self._take_current(slot), outcomes, strict=True))
        self._send_next(slot)

    def _replace(self, slot: _Slot[T], error: WorkerError) -> None:
        """Replaces a dead process. Only the batch that it was working on is retried unit by unit: no other can be the
        cause."""
        if self._closed:
            raise RuntimeError("the worker pool has been closed")
        slot.process = self._start()
        current, untouched = self._take_current(slot), list(slot.sent)
        if len(current) == 1:
            current[0].deaths += 1
        self._outcomes.extend((unit, error) for unit in current if unit.deaths == MAX_DEATHS)
        alone = [[unit] for unit in current if unit.deaths < MAX_DEATHS]
        slot.pending.extendleft(reversed(alone + untouched))
        slot.sent.clear()
        self._send_next(slot)

    def _take_current(self, slot: _Slot[T]) -> list[WorkUnit[T]]:
        """Removes and returns the batch that the process worked on."""
        now = time.perf_counter()
        self.busy, slot.since = self.busy + now - slot.since, now
        return slot.sent.popleft()

    def _send_next(self, slot: _Slot[T]) -> None:
        """Sends the next pending batch to an idle process."""
        if slot.idle and slot.pending:
            self._send(slot, slot.pending.popleft())
