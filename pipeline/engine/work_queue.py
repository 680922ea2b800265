"""The scheduler's queue of work units that are ready to run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class ScheduledItem(Generic[T]):
    """An item in the scheduler.

    order: its number among all items.
    release: frees what the item was admitted with.
    stage: index of its current stage; -1 before the first.
    left: work units of that stage that are not finished.
    error: the first error of a unit."""

    order: int
    item: T
    release: Callable[[], None]
    stage: int = -1
    left: int = 0
    error: Exception | None = None
    done: bool = False


@dataclass(eq=False)
class WorkUnit(Generic[T]):
    """One work unit of an item's current stage.

    deaths: worker processes that died while they had this unit only."""

    entry: ScheduledItem[T]
    work: Any
    deaths: int = 0


class WorkQueue(Generic[T]):
    """Units that are ready, those of the oldest item first. Not thread-safe: the scheduler locks it."""

    def __init__(self, notify: Callable[[], None]) -> None:
        """notify: called for each unit that is put."""
        self._notify = notify
        self._kinds: dict[Hashable, list[tuple[int, int, WorkUnit[T]]]] = {}
        self._count = 0

    def put(self, kind: Hashable, unit: WorkUnit[T]) -> None:
        self._count += 1
        heapq.heappush(self._kinds.setdefault(kind, []), (unit.entry.order, self._count, unit))
        self._notify()

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    def pop(
        self, max_batch: Callable[[Any], int], full_batches_first: bool = False, full_only: bool = False
    ) -> list[WorkUnit[T]]:
        """Up to `max_batch(kind)` units of one kind: the kind of the oldest unit; an empty list if the queue is empty.

        full_batches_first: prefer a kind that fills its batch over an older one that does not; full_only: leave one
        that does not."""
        full_batches_first |= full_only
        full = [kind for kind, heap in self._kinds.items() if full_batches_first and len(heap) >= max_batch(kind)]
        if not self._kinds or (full_only and not full):
            return []
        kind = min(full or self._kinds, key=lambda kind: self._kinds[kind][0][:2])
        heap = self._kinds[kind]
        units = [heapq.heappop(heap)[2] for _ in range(min(len(heap), max_batch(kind)))]
        if not heap:
            del self._kinds[kind]
        return units
