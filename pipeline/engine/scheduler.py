"""Runs items through stages, several at a time, and returns them in their order.

    with Scheduler(stages, failed, workers=8) as scheduler:
        for item in scheduler.run(items):      # in the order of `items`
            ...

Each stage splits an item into work units. Workers take the units of the oldest item first: nearly finished items leave
early, and all workers share the tiles of a large image before they start the next. Only as many items are in the
scheduler as `admit` and `max_items` permit, however slowly results are consumed.

Workers are threads, or processes because the GIL serialises small units. Processes are forked, are killed when the run
is interrupted, and are served by one thread (worker_pool.py)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar

from pipeline.engine.stage import Stage, finish_batch, run_stages, run_unit, start_batch, uses_device
from pipeline.engine.work_queue import ScheduledItem, WorkQueue, WorkUnit
from pipeline.engine.worker import WorkerLauncher
from pipeline.engine.worker_pool import WorkerPool
from pipeline.inputs.names import first_names

T = TypeVar("T")
JOIN_TIMEOUT_S = 8.0
"""Seconds that an interrupted run waits for its threads to finish their current work."""


MOST_NAMED = 10
"""Items that a note names."""

Admit = Callable[[T, bool], tuple[T, Callable[[], None]] | None]
"""Admits an item: (item, whether no other item is in the scheduler) → the item with its resources, and a function that
releases them; or None if it must wait. The only item must be admitted. Called under a lock."""


def admit_all(item: T, alone: bool) -> tuple[T, Callable[[], None]]:
    """Admits every item, without resources."""
    return item, lambda: None


class Scheduler(Generic[T]):
    """Runs items through stages; see the module. A context manager; `run` may be called once.

    failed: (item, Exception of a stage) → the item's result; it skips the remaining stages.
    workers: threads or processes for all stages but a device's. With 1 and no device, the caller's thread does
        everything in sequence.
    admit, max_items: limit the items in the scheduler; max_items 0: four per worker.
    prepare: called first in every thread.
    name: an item's, for the notes of an error that ends the run.
    processes: starts worker processes, which know the stages by their indices; None: workers are threads."""

    def __init__(
        self,
        stages: Sequence[Stage[T]],
        failed: Callable[[T, Exception], T],
        *,
        workers: int,
        admit: Admit[T] = admit_all,
        max_items: int = 0,
        prepare: Callable[[], None] = lambda: None,
        name: Callable[[T], str] = str,
        processes: WorkerLauncher | None = None,
    ) -> None:
        self._stages, self._failed, self.workers = stages, failed, workers
        self._admit, self._max_items = admit, max_items or 4 * workers
        self._prepare, self._name, self._processes = prepare, name, processes
        self._lock = threading.Lock()
        self._oldest_done, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._for_workers, self._for_device = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue, self._device = WorkQueue[T](self._notify_workers), WorkQueue[T](self._for_device.notify)
        self._window: deque[ScheduledItem[T]] = deque()
        self._all_read, self._stopped = False, False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._worker_pool: WorkerPool[T] | None = None
        self._busy = 0.0
        self._uses_device = uses_device(stages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        if self._worker_pool is not None:
            self._worker_pool.close()
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for entry in self._window:
            entry.release()

    @property
    def busy(self) -> float:
        """Seconds that workers spent on units, summed over all workers."""
        return self._busy if self._worker_pool is None else self._worker_pool.busy

    def run(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, in order, after all stages. Raises what `items` and the stages' `check` raise, and
        exceptions of stages that are not an Exception."""
        if self.workers == 1 and not self._uses_device:
            yield from (self._run_sequentially(item) for item in items)
            return
        self._start(items)
        while (entry := self._wait_for_oldest()) is not None:
            yield entry.item
            with self._lock:
                entry.release()
                self._window.popleft()
                self._room.notify()

    def _start(self, items: Iterable[T]) -> None:
        tasks: list[Callable[[], None]] = [partial(self._admit_items, items)]
        if self._processes is None:
            tasks += [self._run_worker] * self.workers
        else:
            self._worker_pool = WorkerPool(self._processes.start, self.workers)
            tasks.append(partial(self._run_processes, self._worker_pool))
        if self._uses_device:
            tasks.append(self._run_device)
        for task in tasks:
            thread = threading.Thread(target=self._run_thread, args=(task,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run_thread(self, task: Callable[[], None]) -> None:
        """Runs a thread's task. An exception stops the whole run, so that nothing waits for a thread that has ended."""
        try:
            self._prepare()
            task()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._room.notify_all()
            self._oldest_done.notify_all()
            self._wake_all()

    def _wait_for_oldest(self) -> ScheduledItem[T] | None:
        """Waits until the oldest item is done; None after the last."""
        with self._lock:
            while not (
                self._stopped or (self._window and self._window[0].done) or (self._all_read and not self._window)
            ):
                self._oldest_done.wait()
            if self._error is not None:
                raise self._error
            return self._window[0] if self._window and not self._stopped else None

    def _admit_items(self, items: Iterable[T]) -> None:
        """The reading thread: admits items while there is room."""
        for order, item in enumerate(items):
            with self._lock:
                while (admitted := None if self._stopped else self._admitted(item)) is None:
                    if self._stopped:
                        return
                    self._room.wait()
                entry = ScheduledItem(order, *admitted)
                self._window.append(entry)
            self._advance(entry)
        with self._lock:
            self._all_read = True
            self._oldest_done.notify()
            self._wake_all()

    def _admitted(self, item: T) -> tuple[T, Callable[[], None]] | None:
        if len(self._window) >= self._max_items:
            return None
        return self._admit(item, not self._window)

    def _advance(self, entry: ScheduledItem[T]) -> None:
        """Moves an item to its next stage that has units for it, or marks it as done."""
        while entry.error is None and entry.stage + 1 < len(self._stages):
            entry.stage += 1
            stage = self._stages[entry.stage]
            try:
                units = [(stage.kind(work), WorkUnit(entry, work)) for work in stage.split(entry.item)]
            except Exception as error:
                entry.error = error
                break
            if units:
                entry.left = len(units)
                queue = self._device if stage.place == "device" else self._queue
                with self._lock:
                    for kind, unit in units:
                        queue.put((entry.stage, kind), unit)
                return
        if entry.error is not None:
            entry.item = self._failed(entry.item, entry.error)
        with self._lock:
            entry.done = True
            self._oldest_done.notify()
            if self._is_over():
                self._wake_all()

    def _notify_workers(self) -> None:
        if self._worker_pool is None:
            self._for_workers.notify()
        else:
            self._worker_pool.notify()

    def _wake_all(self) -> None:
        """Wakes all threads that wait for units, so that they notice the end."""
        self._for_workers.notify_all()
        self._for_device.notify_all()
        if self._worker_pool is not None:
            self._worker_pool.notify_all()

    def _is_over(self) -> bool:
        """Whether there can be no more units."""
        return self._stopped or (self._all_read and all(entry.done for entry in self._window))

    def _next(self, wait: bool = True) -> list[WorkUnit[T]]:
        """Units for a worker; empty at the end or, without `wait`, when no unit is ready."""

        def pop() -> list[WorkUnit[T]]:
            return self._queue.pop(partial(self._max_batch, limit=1 + len(self._queue) // (2 * self.workers)))

        return self._wait_for_units(pop, self._for_workers, wait)

    def _next_batch(self, wait: bool) -> list[WorkUnit[T]]:
        """Units for the device; as `_next`. While it works on others (not `wait`), a batch that is not full is left: it
        takes as long as a full one, and more units may come."""
        return self._wait_for_units(
            lambda: self._device.pop(self._max_batch, full_batches_first=True, full_only=not wait),
            self._for_device,
            wait,
        )

    def _wait_for_units(
        self, pop: Callable[[], list[WorkUnit[T]]], filled: threading.Condition, wait: bool
    ) -> list[WorkUnit[T]]:
        with self._lock:
            while not self._stopped:
                if units := pop():
                    return units
                if not wait or self._is_over():
                    break
                filled.wait()
            return []

    def _max_batch(self, kind: tuple[int, Hashable], limit: int = 1 << 30) -> int:
        """The batch size for a kind; kind: (index of the stage, the stage's own kind)."""
        number, own = kind
        return min(limit, self._stages[number].max_batch(own))

    def _run_worker(self) -> None:
        """A worker's thread."""
        while units := self._next():
            started = time.perf_counter()
            for unit in units:
                self._finish_unit(unit, unit.entry.error or run_unit(self._stages[unit.entry.stage], unit.work))
            with self._lock:
                self._busy += time.perf_counter() - started

    def _next_for_pool(self, worker_pool: WorkerPool[T]) -> list[WorkUnit[T]]:
        """Units for an idle process; if there are enough for all workers, also for a busy one to continue with."""
        if not worker_pool.idle and (worker_pool.saturated or len(self._queue) <= 2 * self.workers):
            return []
        return self._next(wait=False)

    def _run_processes(self, worker_pool: WorkerPool[T]) -> None:
        """The thread that serves all worker processes."""
        while True:
            while units := self._next_for_pool(worker_pool):
                wanted = [unit for unit in units if unit.entry.error is None]
                for unit in units:
                    if unit.entry.error is not None:  # another of its units has failed
                        self._finish_unit(unit, unit.entry.error)
                if wanted:
                    worker_pool.submit(wanted)
            with self._lock:
                if self._is_over() and not worker_pool.has_outcomes:
                    return
            for unit, outcome in worker_pool.collect():
                self._finish_unit(unit, outcome)

    def _finish_unit(self, unit: WorkUnit[T], outcome: Any) -> None:
        """Merges a unit's result into its item, and advances the item after its last unit."""
        entry = unit.entry
        if not isinstance(outcome, Exception):
            try:
                entry.item = self._stages[entry.stage].merge(entry.item, unit.work, outcome)
            except Exception as error:
                outcome = error
        with self._lock:
            if isinstance(outcome, Exception):
                entry.error = entry.error or outcome
            entry.left -= 1
            last = entry.left == 0
        if last:
            self._advance(entry)

    def _run_device(self) -> None:
        """The device's thread: starts a batch before it waits for the previous one, whatever their stages."""
        begun: deque[tuple[Stage[T], list[WorkUnit[T]], Callable[[], Sequence[Any]]]] = deque()
        while (units := self._next_batch(wait=not begun)) or begun:
            if units:
                stage = self._stages[units[0].entry.stage]
                begun.append((stage, units, start_batch(stage, [unit.work for unit in units])))
            if len(begun) > 1 or not units:
                stage, units, ending = begun.popleft()
                try:
                    outcomes = finish_batch(stage, [unit.work for unit in units], ending)
                except Exception as error:
                    at_work = [*units, *(unit for _, others, _ in begun for unit in others)]
                    error.add_note(f"on the device were {self._names(at_work)}")
                    raise
                for unit, outcome in zip(units, outcomes, strict=True):
                    self._finish_unit(unit, outcome)

    def _names(self, units: Sequence[WorkUnit[T]]) -> str:
        """Those of the units' items, the first MOST_NAMED."""
        return first_names(list(dict.fromkeys(self._name(unit.entry.item) for unit in units)), MOST_NAMED)

    def _run_sequentially(self, item: T) -> T:
        try:
            return run_stages(self._stages, item)
        except Exception as error:
            return self._failed(item, error)
