"""Limits the files in the scheduler by the memory that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from pipeline.engine.failures import TooLargeError, fail
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory, bytes_needed
from pipeline.engine.task import Step, Task
from pipeline.inputs.source import SideMember
from pipeline.jpeg.bitstream import Layout


class Admission:
    """Admits files while their estimated sizes add up to at most `limit` bytes and shared memory is free."""

    def __init__(self, job: Job, limit: int, memory: SharedMemory | None) -> None:
        self._job, self._limit, self._memory, self._weight = job, limit, memory, 0

    def __call__(self, step: Step, alone: bool) -> tuple[Step, Callable[[], None]] | None:
        """See scheduler.Admit."""
        weight = self._estimate_bytes(step)
        if not alone and self._weight + weight > self._limit:
            return None
        piece = None
        layout = step.file.layout if isinstance(step, Task) and step.file is not None else None
        if isinstance(layout, Layout) and self._memory is not None and not is_small(self._job, step):
            restorer = self._job.restorer
            size = bytes_needed(layout.sampling, layout.header.size, restorer.images, restorer.options.pixel)
            piece = self._memory.allocate(size)
            if piece is None and not alone:
                return None
            step = with_memory(step, piece) if piece is not None else fail(step, TooLargeError(size, self._memory.size))
        self._weight += weight
        return step, partial(self._release, weight, piece)

    def _estimate_bytes(self, step: Step) -> int:
        if isinstance(step, SideMember):
            return len(step.data)
        if step.file is None:
            return sum(map(len, step.images))
        return len(step.file.data) + estimate_bytes(self._job, step.file.size or (0, 0))

    def _release(self, weight: int, piece: Tensor | None) -> None:
        self._weight -= weight
        if self._memory is not None and piece is not None:
            self._memory.free(piece)


def with_memory(step: Step, piece: Tensor) -> Step:
    """The step with its piece of shared memory, [bytes] uint8."""
    assert isinstance(step, Task)
    assert step.file is not None
    return replace(step, file=replace(step.file, memory=piece))


def is_small(job: Job, step: Step) -> bool:
    """Whether one CPU worker restores the file as a whole: it is a single tile, or its header cannot be read."""
    if not isinstance(step, Task) or step.file is None:
        return False
    restorer, size = job.restorer, step.file.size
    return not (restorer.batched or restorer.dali) and (size is None or len(restorer.tiles(size)) == 1)


def estimate_bytes(job: Job, size: tuple[int, int]) -> int:
    """Estimated bytes of a file's coefficients, images and image files. size: (height, width) in pixels."""
    return size[0] * size[1] * (6 + 6 * job.restorer.images * job.restorer.options.pixel.itemsize)
