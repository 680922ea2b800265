"""Wall and CPU seconds by stage, for the closing summary."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Times:
    """Seconds. Of stages in several threads the wall times overlap; the CPU times add up to the process's."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Stopwatch:
    """`with stopwatch("decode"): ...` adds to that stage, from any thread. Stages do not nest.

    A stage in a worker thread, one that called `add_worker`, has that thread's CPU time. One elsewhere has that of the
    whole process, PyTorch's threads included, without the workers'."""

    stages: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    _clocks: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), self._cpu()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, self._cpu() - cpu
            with self._lock:
                self.stages[stage].wall += wall
                self.stages[stage].cpu += cpu

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """`items`; the time that it takes to come by them is the stage's."""
        iterator = iter(items)
        while True:
            with self(stage):
                following = next(iterator, None)
            if following is None:
                return
            yield following

    def add_worker(self) -> None:
        """The calling thread is a worker from now on."""
        thread = threading.get_ident()
        with self._lock:
            self._clocks[thread] = time.pthread_getcpuclockid(thread)

    def forget_workers(self) -> None:
        """To be called once they have ended."""
        self._clocks.clear()

    def _cpu(self) -> float:
        with self._lock:
            if threading.get_ident() in self._clocks:
                return time.thread_time()
            return time.process_time() - sum(time.clock_gettime(clock) for clock in self._clocks.values())

    def table(self, megapixels: float) -> str:
        """A line a stage: wall and CPU seconds, and CPU milliseconds a megapixel."""
        lines = [f"{'stage':<14}{'wall s':>10}{'CPU s':>10}{'CPU ms/MP':>12}"]
        for stage, times in self.stages.items():
            each = 1000 * times.cpu / megapixels if megapixels else 0.0
            lines.append(f"{stage:<14}{times.wall:>10.2f}{times.cpu:>10.2f}{each:>12.1f}")
        return "\n".join(lines)
