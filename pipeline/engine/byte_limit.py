"""Limits what is in the scheduler by the memory that it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BYTES, MAX_BYTES_PER_WORKER, MAX_BYTES_PER_WORKER_BATCHED = 256 << 20, 64 << 20, 256 << 20
"""Bytes of files in the scheduler, and more per worker. Outputs are written in order, so small files accumulate behind
a large one. Batches of a GPU are full only if there are tiles of their shape to choose from: of web images of 300 to
1500 pixels a GPU computes, by simulation, 1.5 times their pixels, where it was 1.7 with 64 MiB."""


def max_bytes(workers: int, batched: bool) -> int:
    """Bytes of files in the scheduler; a single file may be larger. batched: of a Restorer."""
    return MAX_BYTES + (MAX_BYTES_PER_WORKER_BATCHED if batched else MAX_BYTES_PER_WORKER) * workers


class ByteLimit(Generic[T]):
    """Admits items while their bytes add up to at most `limit`; an item alone may have more. See scheduler.Admit."""

    def __init__(self, limit: int, bytes_of: Callable[[T], int]) -> None:
        self._limit, self._bytes_of, self._used = limit, bytes_of, 0

    def __call__(self, item: T, alone: bool) -> tuple[T, Callable[[], None]] | None:
        size = self._bytes_of(item)
        if not alone and self._used + size > self._limit:
            return None
        self._used += size
        return item, partial(self._release, size)

    def _release(self, size: int) -> None:
        self._used -= size
