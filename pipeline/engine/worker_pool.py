"""The worker processes of a scheduler: sends them units and collects results, replaces a process that dies, and retries
its units once, each alone. One thread serves all of them: a thread for each would contend for the GIL."""

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
"""A unit and its result, or the Exception in its place."""


NON_BLOCKING_BYTES = 32 << 10
"""Bytes of a message that can be sent to a busy process without waiting for it."""


@dataclass(eq=False)
class _Slot(Generic[T]):
    """A process, or the one that has taken its place. sent: what it has, oldest first. pending: what it gets next.
    retry: what is to be tried once more, each unit alone; `retrying` while it is."""

    process: WorkerProcess
    sent: deque[list[WorkUnit[T]]] = field(default_factory=deque)
    pending: deque[list[WorkUnit[T]]] = field(default_factory=deque)
    retry: deque[WorkUnit[T]] = field(default_factory=deque)
    retrying: bool = False
    since: float = 0.0

    @property
    def idle(self) -> bool:
        return not self.sent

    @property
    def saturated(self) -> bool:
        """Whether it has as much as it should."""
        return bool(len(self.sent) > 1 or self.pending or self.retry or self.retrying)


class WorkerPool(Generic[T]):
    """For one thread, but for `notify` and `close`. start: makes a process. busy: seconds for which they had something
    to do, all together.

    When a process dies, another takes its place and tries each unit once more, alone. The outcome of one that ends
    that, too, is a WorkerError."""

    def __init__(self, start: Callable[[], WorkerProcess], count: int) -> None:
        self._start, self._closed, self.busy = start, False, 0.0
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wakeup)
        self._slots = [_Slot[T](start()) for _ in range(count)]
        self._outcomes: list[UnitOutcome[T]] = []

    @property
    def idle(self) -> bool:
        """Whether a process has nothing to do."""
        return any(slot.idle for slot in self._slots)

    @property
    def saturated(self) -> bool:
        """Whether every process has something to do after what it does now, so that it need not wait."""
        return all(slot.saturated for slot in self._slots)

    @property
    def has_outcomes(self) -> bool:
        """Whether there are outcomes to wait for."""
        return bool(self._outcomes) or not all(slot.idle for slot in self._slots)

    def submit(self, units: Sequence[WorkUnit[T]]) -> None:
        """Units of one stage, to a process that is idle or at least not `saturated`."""
        slot = min(self._slots, key=lambda slot: (slot.saturated, not slot.idle))
        self._send(slot, list(units))

    def collect(self) -> list[UnitOutcome[T]]:
        """Waits until some units are done, or for a `notify`."""
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
        """There are units for those who are idle. From any thread."""
        if self.idle:
            os.eventfd_write(self._wakeup, 1)

    def notify_all(self) -> None:
        """Something has changed."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Kills the processes; a thread that waits for them has an error."""
        self._closed = True
        for slot in self._slots:
            slot.process.kill()
        self.notify_all()

    def _send(self, slot: _Slot[T], units: list[WorkUnit[T]]) -> None:
        """Now, or when it is idle if it would have to be waited for."""
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
        except Exception as error:  # what cannot be pickled
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
        """Only what it was doing can have been the cause."""
        if self._closed:
            raise RuntimeError("the processes have been closed")
        slot.process = self._start()
        had, untouched = self._take_current(slot), list(slot.sent)
        if slot.retrying:
            self._outcomes.extend((unit, error) for unit in had)
        else:
            slot.retry.extend(had)
        slot.pending.extendleft(reversed(untouched))
        slot.sent.clear()
        self._send_next(slot)

    def _take_current(self, slot: _Slot[T]) -> list[WorkUnit[T]]:
        """What it was doing until now."""
        now = time.perf_counter()
        self.busy, slot.since = self.busy + now - slot.since, now
        return slot.sent.popleft()

    def _send_next(self, slot: _Slot[T]) -> None:
        """With what there is for it."""
        if slot.idle:
            slot.retrying = bool(slot.retry)
            if slot.retry:
                self._send(slot, [slot.retry.popleft()])
            elif slot.pending:
                self._send(slot, slot.pending.popleft())
