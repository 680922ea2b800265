"""Worker processes and what each is doing: one thread gives and takes for all of them, so that there is no thread for
each to wait, and to wait for the interpreter."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from pipeline.engine.queue import Unit
from pipeline.engine.worker import WorkerError, WorkerProcess

T = TypeVar("T")
Outcome = tuple[Unit[T], Any]
"""A unit and its result, or the Exception in its place."""


SMALL = 32 << 10
"""Bytes of a message that can be sent to a busy process without waiting for it."""


@dataclass(eq=False)
class _Hand(Generic[T]):
    """A process, or the one that has taken its place. sent: what it has, oldest first. following: what it gets next.
    again: what is to be tried once more, each unit alone; `second` while it is."""

    process: WorkerProcess
    sent: deque[list[Unit[T]]] = field(default_factory=deque)
    following: deque[list[Unit[T]]] = field(default_factory=deque)
    again: deque[Unit[T]] = field(default_factory=deque)
    second: bool = False
    since: float = 0.0

    @property
    def idle(self) -> bool:
        return not self.sent

    @property
    def ahead(self) -> bool:
        """Whether it has as much as it should."""
        return bool(len(self.sent) > 1 or self.following or self.again or self.second)


class Crew(Generic[T]):
    """For one thread, but for `notify` and `close`. start: makes a process. busy: seconds for which they had something
    to do, all together.

    When a process dies, another takes its place and tries each unit once more, alone. The outcome of one that ends
    that, too, is a WorkerError."""

    def __init__(self, start: Callable[[], WorkerProcess], count: int) -> None:
        self._start, self._closed, self.busy = start, False, 0.0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)
        self._hands = [_Hand[T](start()) for _ in range(count)]
        self._known: list[Outcome[T]] = []

    @property
    def idle(self) -> bool:
        """Whether a process has nothing to do."""
        return any(hand.idle for hand in self._hands)

    @property
    def ahead(self) -> bool:
        """Whether every process has something to do after what it does now, so that it need not wait."""
        return all(hand.ahead for hand in self._hands)

    @property
    def at_work(self) -> bool:
        """Whether there are outcomes to wait for."""
        return bool(self._known) or not all(hand.idle for hand in self._hands)

    def give(self, units: Sequence[Unit[T]]) -> None:
        """Units of one stage, to a process that is idle or at least not `ahead`."""
        hand = min(self._hands, key=lambda hand: (hand.ahead, not hand.idle))
        self._send(hand, list(units))

    def collect(self) -> list[Outcome[T]]:
        """Waits until some units are done, or for a `notify`."""
        if not self._known:
            waiting = {hand.process.connection: hand for hand in self._hands if not hand.idle}
            for ready in wait([*waiting, self._bell]):
                if isinstance(ready, int):
                    os.eventfd_read(self._bell)
                else:
                    self._receive(waiting[ready])  # type: ignore[index]
        known, self._known = self._known, []
        return known

    def notify(self) -> None:
        """There are units for those who are idle. From any thread."""
        if self.idle:
            os.eventfd_write(self._bell, 1)

    def notify_all(self) -> None:
        """Something has changed."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Kills the processes; a thread that waits for them has an error."""
        self._closed = True
        for hand in self._hands:
            hand.process.kill()
        self.notify_all()

    def _send(self, hand: _Hand[T], units: list[Unit[T]]) -> None:
        """Now, or when it is idle if it would have to be waited for."""
        try:
            message = hand.process.pack(units[0].entry.stage, [unit.work for unit in units])
            if not hand.idle and len(message) > SMALL:
                hand.following.append(units)
                return
            if hand.idle:
                hand.since = time.perf_counter()
            hand.sent.append(units)
            hand.process.send(message)
        except WorkerError as error:
            self._replace(hand, error)
        except Exception as error:  # what cannot be pickled
            self._known.extend((unit, error) for unit in units)
            self._go_on(hand)

    def _receive(self, hand: _Hand[T]) -> None:
        try:
            outcomes = hand.process.receive()
        except WorkerError as error:
            self._replace(hand, error)
            return
        self._known.extend(zip(self._had(hand), outcomes, strict=True))
        self._go_on(hand)

    def _replace(self, hand: _Hand[T], error: WorkerError) -> None:
        """Only what it was doing can have been the cause."""
        if self._closed:
            raise RuntimeError("the processes have been closed")
        hand.process = self._start()
        had, untouched = self._had(hand), list(hand.sent)
        if hand.second:
            self._known.extend((unit, error) for unit in had)
        else:
            hand.again.extend(had)
        hand.following.extendleft(reversed(untouched))
        hand.sent.clear()
        self._go_on(hand)

    def _had(self, hand: _Hand[T]) -> list[Unit[T]]:
        """What it was doing until now."""
        now = time.perf_counter()
        self.busy, hand.since = self.busy + now - hand.since, now
        return hand.sent.popleft()

    def _go_on(self, hand: _Hand[T]) -> None:
        """With what there is for it."""
        if hand.idle:
            hand.second = bool(hand.again)
            if hand.again:
                self._send(hand, [hand.again.popleft()])
            elif hand.following:
                self._send(hand, hand.following.popleft())
