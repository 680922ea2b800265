"""Limits the files in the scheduler by the memory that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from pipeline.engine.byte_limit import ByteLimit
from pipeline.engine.failures import TooLargeError, fail
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory, bytes_needed
from pipeline.engine.restorer import Restorer
from pipeline.engine.task import Step, Task
from pipeline.inputs.source import SideMember
from pipeline.jpeg.bitstream import Layout


class Admission:
    """Admits files while their estimated sizes add up to at most `limit` bytes and shared memory is free."""

    def __init__(self, job: Job, limit: int, memory: SharedMemory | None) -> None:
        self._job, self._memory = job, memory
        self._within_limit = ByteLimit(limit, partial(bytes_of, job.restorer))

    def __call__(self, step: Step, alone: bool) -> tuple[Step, Callable[[], None]] | None:
        """See scheduler.Admit."""
        admitted = self._within_limit(step, alone)
        layout = step.file.layout if isinstance(step, Task) and step.file is not None else None
        if admitted is None or self._memory is None or not isinstance(layout, Layout) or is_small(self._job, step):
            return admitted
        restorer, release = self._job.restorer, admitted[1]
        size = bytes_needed(layout.sampling, layout.size, restorer.images, restorer.options.pixel)
        piece = self._memory.allocate(size)
        if piece is not None:
            return with_memory(step, piece), partial(self._release, release, piece)
        if alone:
            return fail(step, TooLargeError(size, self._memory.size)), release
        release()
        return None

    def _release(self, release: Callable[[], None], piece: Tensor) -> None:
        release()
        assert self._memory is not None
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


def bytes_of(restorer: Restorer, step: Step) -> int:
    """Estimated bytes of what a step holds, and of what it will hold."""
    if isinstance(step, SideMember):
        return len(step.data)
    if step.file is None:
        return sum(map(len, step.images))
    return restorer.estimate_bytes(step.file.size, step.file.data)
