"""Items through stages, several at a time, and out again in the order in which they came.

    with Scheduler(stages, failed, workers=8) as scheduler:
        for item in scheduler.run(items):      # in order, whatever took longest
            ...

An item is cut into units of work, stage after stage. A worker takes the unit of the oldest item that has one ready: so
what is nearly done leaves first, and all workers share out the tiles of one large image before they begin the next. Few
items are under way at once, counted and weighed, however slow the reader of the results.

A worker is a thread. The GIL serialises small work items, so a stage may have its work done in the worker's own
process, which is forked, and killed when the run is interrupted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from pipeline.engine.queue import Entry, Queue, Unit
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.worker import WorkerProcess

T = TypeVar("T")
Place = Literal["worker", "process", "device"]
PATIENCE = 8.0
"""Seconds for which an interrupted run waits for what its threads have begun."""


@dataclass(frozen=True)
class Stage(Generic[T]):
    """split: an item → its units of work, to be done in any order, also at once; none: the item passes by.
    do: units → the end of their work, a function that waits for it and returns their results. Pure but for its results:
        it may run in another process, where units and results go pickled.
    take: (item, unit, result) → the item with it; for units of one item from several threads.
    place: where `do` runs: in the worker's thread, in its process, or, many units at a time, in a thread of its own
        that drives a device and begins the next before it ends the last.
    kind, max_batch: for a device, which units may go together (those of equal kind), and how many of a kind."""

    split: Callable[[T], Sequence[Any]]
    do: Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
    take: Callable[[T, Any, Any], T]
    place: Place = "worker"
    kind: Callable[[Any], Hashable] = lambda unit: None
    max_batch: Callable[[Any], int] = lambda kind: 1


def whole(function: Callable[[T], T], wanted: Callable[[T], bool], place: Place = "worker") -> Stage[T]:
    """A stage that takes an item as it is and returns its successor, for those that are `wanted`."""
    return Stage(
        split=lambda item: (item,) if wanted(item) else (),
        do=lambda items: lambda: [function(item) for item in items],
        take=lambda item, unit, result: result,
        place=place,
    )


class Scheduler(Generic[T]):
    """See the module. A context manager; `run` may be called once.

    failed: what becomes of an item whose stage raised an Exception; it passes by the stages that are left.
    workers: threads (and processes) for all stages but a device's; with one, everything is done in turn by the caller.
    weigh, limit, most: bytes that an item takes, and how many bytes and items may be under way; one may always.
    prepare: called first in every thread and process that works.
    """

    def __init__(
        self,
        stages: Sequence[Stage[T]],
        failed: Callable[[T, Exception], T],
        *,
        workers: int,
        weigh: Callable[[T], int] = lambda item: 0,
        limit: int = 1 << 30,
        most: int = 0,
        prepare: Callable[[], None] = lambda: None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._stages, self._failed, self.workers = stages, failed, workers
        self._weigh, self._limit, self._most = weigh, limit, most or 4 * workers
        self._prepare, self._stopwatch = prepare, stopwatch or Stopwatch()
        self._lock = threading.Lock()
        self._head_done, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue, self._device = Queue[T](self._lock), Queue[T](self._lock)
        self._window: deque[Entry[T]] = deque()
        self._weight, self._read, self._stopped = 0, False, False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._processes: list[WorkerProcess] = []
        self.busy = 0.0
        """Seconds that the workers spent on units, all together."""

    def __enter__(self) -> Self:
        functions = [stage.do for stage in self._stages]
        try:
            if self.workers > 1 and any(stage.place == "process" for stage in self._stages):
                for _ in range(self.workers):  # before there is any thread: threads do not survive a fork
                    self._processes.append(WorkerProcess(functions, self._prepare, self._stopwatch, self._processes))
        except BaseException:
            self._kill_processes()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._kill_processes()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _kill_processes(self) -> None:
        for process in self._processes:
            process.kill()

    def run(self, items: Iterable[T]) -> Iterator[T]:
        """The items, in order, after all stages. Raises what `items` raises, and what is no Exception in a stage."""
        if self.workers == 1:
            yield from (self._in_turn(item) for item in items)
            return
        self._start(items)
        while (entry := self._oldest()) is not None:
            yield entry.item
            with self._lock:
                self._weight -= entry.weight
                self._window.popleft()
                self._room.notify()

    def _start(self, items: Iterable[T]) -> None:
        processes: list[WorkerProcess | None] = [*self._processes] or [None] * self.workers
        tasks: list[Callable[[], None]] = [partial(self._feed, items)]
        tasks += [partial(self._work, process) for process in processes]
        if any(stage.place == "device" for stage in self._stages):
            tasks.append(self._drive)
        for task in tasks:
            thread = threading.Thread(target=self._guard, args=(task,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _guard(self, task: Callable[[], None]) -> None:
        """What ends a thread ends the run: nothing may wait for a thread that is gone."""
        try:
            with self._stopwatch.worker():
                self._prepare()
                task()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for condition in (self._head_done, self._room, self._queue.filled, self._device.filled):
                condition.notify_all()

    def _oldest(self) -> Entry[T] | None:
        """Waits for the oldest item to be done; None after the last."""
        with self._lock:
            while not (self._stopped or (self._window and self._window[0].done) or (self._read and not self._window)):
                self._head_done.wait()
            if self._error is not None:
                raise self._error
            return self._window[0] if self._window and not self._stopped else None

    def _feed(self, items: Iterable[T]) -> None:
        """Lets items in, as far as there is room."""
        for order, item in enumerate(items):
            entry = Entry(order, item, self._weigh(item))
            with self._lock:
                while not self._stopped and self._window and self._full(entry):
                    self._room.wait()
                if self._stopped:
                    return
                self._window.append(entry)
                self._weight += entry.weight
            self._advance(entry)
        with self._lock:
            self._read = True
            self._head_done.notify()
            self._queue.filled.notify_all()
            self._device.filled.notify_all()

    def _full(self, entry: Entry[T]) -> bool:
        return len(self._window) >= self._most or self._weight + entry.weight > self._limit

    def _advance(self, entry: Entry[T]) -> None:
        """Into the next stage that has something to do, or out."""
        while entry.error is None and entry.stage + 1 < len(self._stages):
            entry.stage += 1
            stage = self._stages[entry.stage]
            try:
                units = [(stage.kind(work), Unit(entry, work)) for work in stage.split(entry.item)]
            except Exception as error:
                entry.error = error
                break
            if units:
                entry.left = len(units)
                queue = self._device if stage.place == "device" else self._queue
                with self._lock:
                    for kind, unit in units:
                        queue.put((entry.stage, kind) if queue is self._device else None, [unit])
                return
        if entry.error is not None:
            entry.item = self._failed(entry.item, entry.error)
        with self._lock:
            entry.done = True
            self._head_done.notify()
            if self._read and all(entry.done for entry in self._window):  # no unit can come any more
                self._queue.filled.notify_all()
                self._device.filled.notify_all()

    def _next(self, queue: Queue[T], max_batch: Callable[[Any], int], wait: bool = True) -> list[Unit[T]]:
        """Units to be done now; none at the end, or when there are none at the moment and the caller will not wait."""
        with self._lock:
            while not self._stopped:
                if units := queue.pop(max_batch):
                    return units
                if not wait or (self._read and all(entry.done for entry in self._window)):
                    break
                queue.filled.wait()
            return []

    def _work(self, process: WorkerProcess | None) -> None:
        while units := self._next(self._queue, lambda kind: 1):
            (unit,) = units
            started = time.perf_counter()
            self._settle(unit, self._outcome(unit, process))
            with self._lock:
                self.busy += time.perf_counter() - started

    def _outcome(self, unit: Unit[T], process: WorkerProcess | None) -> Any:
        """The unit's result, or the Exception in its place."""
        stage = self._stages[unit.entry.stage]
        if unit.entry.error is not None:
            return unit.entry.error
        try:
            if process is not None and stage.place == "process" and not process.dead:
                return process.do(unit.entry.stage, unit.work)
            return stage.do([unit.work])()[0]
        except Exception as error:
            return error

    def _settle(self, unit: Unit[T], outcome: Any) -> None:
        entry = unit.entry
        if not isinstance(outcome, Exception):
            try:
                entry.item = self._stages[entry.stage].take(entry.item, unit.work, outcome)
            except Exception as error:
                outcome = error
        with self._lock:
            if isinstance(outcome, Exception):
                entry.error = entry.error or outcome
            entry.left -= 1
            last = entry.left == 0
        if last:
            self._advance(entry)

    def _drive(self) -> None:
        """The device's thread: one batch, of whichever stage, is begun before the last one is waited for."""
        begun: deque[tuple[Stage[T], list[Unit[T]], Callable[[], Sequence[Any]]]] = deque()
        while (units := self._next(self._device, self._max_batch, wait=not begun)) or begun:
            if units:
                stage = self._stages[units[0].entry.stage]
                begun.append((stage, units, _begin(stage, units)))
            if len(begun) > 1 or not units:
                stage, units, end = begun.popleft()
                for unit, outcome in zip(units, _end(stage, units, end), strict=True):
                    self._settle(unit, outcome)

    def _max_batch(self, kind: tuple[int, Hashable]) -> int:
        """How many units of a device's stage, by its number, and of a kind go together."""
        number, own = kind
        return self._stages[number].max_batch(own)

    def _in_turn(self, item: T) -> T:
        try:
            for stage in self._stages:
                for units in _batches(stage, stage.split(item)):
                    for unit, result in zip(units, stage.do(units)(), strict=True):
                        item = stage.take(item, unit, result)
        except Exception as error:
            return self._failed(item, error)
        return item


def _batches(stage: Stage[T], units: Sequence[Any]) -> Iterator[list[Any]]:
    kinds: dict[Hashable, list[Any]] = {}
    for unit in units:
        kinds.setdefault(stage.kind(unit), []).append(unit)
    for kind, alike in kinds.items():
        step = stage.max_batch(kind)
        yield from (alike[first : first + step] for first in range(0, len(alike), step))


def _begin(stage: Stage[T], units: list[Unit[T]]) -> Callable[[], Sequence[Any]]:
    try:
        return stage.do([unit.work for unit in units])
    except Exception as error:
        return _raising(error)


def _raising(error: Exception) -> Callable[[], Sequence[Any]]:
    def end() -> Sequence[Any]:
        raise error

    return end


def _end(stage: Stage[T], units: list[Unit[T]], end: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Results, or an Exception for one. Units that fail together are tried one by one: an error is one item's."""
    try:
        return end()
    except Exception as error:
        if len(units) == 1:
            return [error]
    return [_end(stage, [unit], _begin(stage, [unit]))[0] for unit in units]
