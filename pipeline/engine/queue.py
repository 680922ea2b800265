"""Units of work that are ready, in the order in which the scheduler takes them."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Entry(Generic[T]):
    """An item on its way. left: units of its stage that are not done."""

    order: int
    item: T
    weight: int
    stage: int = -1
    left: int = 0
    error: Exception | None = None
    done: bool = False


@dataclass(frozen=True)
class Unit(Generic[T]):
    entry: Entry[T]
    work: Any


class Queue(Generic[T]):
    """Units that are ready, those of the oldest item first. Not thread-safe: its owner has a lock."""

    def __init__(self, lock: threading.Lock) -> None:
        self.filled = threading.Condition(lock)
        self._kinds: dict[Hashable, list[tuple[int, int, Unit[T]]]] = {}
        self._count = 0

    def put(self, kind: Hashable, units: Iterable[Unit[T]]) -> None:
        heap = self._kinds.setdefault(kind, [])
        for unit in units:
            self._count += 1
            heapq.heappush(heap, (unit.entry.order, self._count, unit))
            self.filled.notify()

    def pop(self, max_batch: Callable[[Any], int]) -> list[Unit[T]]:
        """As many units of one kind as may go together, or none. The oldest unit's kind, but one that is complete goes
        before one that is not."""
        if not self._kinds:
            return []
        full = [kind for kind, heap in self._kinds.items() if len(heap) >= max_batch(kind)]
        kind = min(full or self._kinds, key=lambda kind: self._kinds[kind][0][:2])
        heap = self._kinds[kind]
        units = [heapq.heappop(heap)[2] for _ in range(min(len(heap), max_batch(kind)))]
        if not heap:
            del self._kinds[kind]
        return units
