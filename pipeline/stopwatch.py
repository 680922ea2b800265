"""Wall and CPU seconds by stage, for the closing summary."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Times:
    """Seconds; `cpu` is that of the whole process, all its threads."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Stopwatch:
    """`with stopwatch("decode"): ...` adds to that stage. Stages of one stopwatch do not overlap."""

    stages: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            times = self.stages[stage]
            times.wall += time.perf_counter() - wall
            times.cpu += time.process_time() - cpu

    def table(self, megapixels: float) -> str:
        """A line a stage: wall and CPU seconds, and CPU milliseconds a megapixel."""
        lines = [f"{'stage':<12}{'wall s':>10}{'CPU s':>10}{'CPU ms/MP':>12}"]
        for stage, times in self.stages.items():
            each = 1000 * times.cpu / megapixels if megapixels else 0.0
            lines.append(f"{stage:<12}{times.wall:>10.2f}{times.cpu:>10.2f}{each:>12.1f}")
        return "\n".join(lines)
