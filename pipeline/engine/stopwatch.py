"""Wall and CPU seconds by stage, for the closing summary."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class Times:
    """Seconds, summed over threads and processes."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Stopwatch:
    """`with stopwatch("decode"): ...` adds to that stage, from any thread. A stage is charged with the CPU time of the
    thread that runs it, not with that of threads which PyTorch starts for it. `merge` adds what other processes
    measured. Pickled for another process, it starts there at zero."""

    stages: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _launched: deque[tuple[str, torch.cuda.Event, torch.cuda.Event, float]] = field(default_factory=deque)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - wall, time.thread_time() - cpu)

    @contextmanager
    def on_gpu(self, stage: str, device: torch.device) -> Iterator[None]:
        """Measures what is launched on the device's current stream. The wall time is the stream's, from the start of
        the first kernel to the end of the last, including gaps in which the stream waits for the host. `settle` adds
        it."""
        stream = torch.cuda.current_stream(device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        cpu = time.thread_time()
        start.record(stream)
        try:
            yield
        finally:
            end.record(stream)
            with self._lock:
                self._launched.append((stage, start, end, time.thread_time() - cpu))

    def __reduce__(self) -> tuple[type[Stopwatch], tuple[()]]:
        return Stopwatch, ()

    def settle(self) -> None:
        """Adds those measurements of `on_gpu` that the device has finished. Does not wait for the device."""
        with self._lock:
            while self._launched and self._launched[0][2].query():
                stage, start, end, cpu = self._launched.popleft()
                self._add(stage, start.elapsed_time(end) / 1000, cpu)

    def add(self, stage: str, wall: float, cpu: float) -> None:
        """Adds wall and CPU seconds to a stage."""
        with self._lock:
            self._add(stage, wall, cpu)

    def _add(self, stage: str, wall: float, cpu: float) -> None:
        self.stages[stage].wall += wall
        self.stages[stage].cpu += cpu

    def merge(self, stages: Mapping[str, Times]) -> None:
        """Adds what another stopwatch measured."""
        for stage, times in stages.items():
            self.add(stage, times.wall, times.cpu)

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yields `items`; charges the stage with the time that the iterator takes."""
        iterator = iter(items)
        while True:
            with self(stage):
                following = next(iterator, None)
            if following is None:
                return
            yield following

    def table(self, megapixels: float, seconds: float = 0.0, workers: Mapping[str, int] | None = None) -> str:
        """One line per stage: wall and CPU seconds, CPU milliseconds per megapixel and, if `seconds` (the run's length)
        is given, the utilisation of the stage's workers.

        workers: number of workers by stage; 1 where missing."""
        busy = f"{'busy':>8}" if seconds else ""
        lines = [f"{'stage':<14}{'wall s':>10}{'CPU s':>10}{'CPU ms/MP':>12}{busy}"]
        for stage, times in self.stages.items():
            each = 1000 * times.cpu / megapixels if megapixels else 0.0
            share = times.wall / seconds / (workers or {}).get(stage, 1) if seconds else 0.0
            busy = f"{share:>8.0%}" if seconds else ""
            lines.append(f"{stage:<14}{times.wall:>10.2f}{times.cpu:>10.2f}{each:>12.1f}{busy}")
        return "\n".join(lines)
