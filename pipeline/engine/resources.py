"""What restores files on this machine: worker processes, the memory that they share, and the device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from kernels import Subsampling
from pipeline.engine.admission import Admission
from pipeline.engine.byte_limit import max_bytes
from pipeline.engine.failures import fail
from pipeline.engine.file_stages import stages
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory, bytes_needed
from pipeline.engine.restorer import MAX_BATCH, Restorer
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import Stage, uses_device
from pipeline.engine.task import Step, Task
from pipeline.engine.worker import WorkerLauncher
from pipeline.jpeg.header import MAX_DIMENSION

MAX_FILES, MAX_FILES_PER_WORKER = 4 * MAX_BATCH, 64
"""Number of files in the scheduler, and more per worker."""


@dataclass(frozen=True)
class RunResources:
    """Made by `open_resources`. memory, processes: None with one worker on a CPU, which does everything in
    sequence."""

    job: Job
    stages: list[Stage[Step]]
    workers: int
    memory: SharedMemory | None
    processes: WorkerLauncher | None

    def scheduler(self) -> Scheduler[Step]:
        """A scheduler for one run over items."""
        return Scheduler(
            self.stages,
            fail,
            workers=self.workers,
            admit=Admission(self.job, max_bytes(self.workers, self.job.restorer.batched), self.memory),
            max_items=MAX_FILES + MAX_FILES_PER_WORKER * self.workers,
            prepare=partial(torch.set_num_threads, 1),
            name=lambda step: step.item.source if isinstance(step, Task) else str(step),
            processes=self.processes,
        )


def max_file_bytes(restorer: Restorer) -> int:
    """Bytes of shared memory that the largest permitted file needs."""
    pixels = restorer.options.max_pixels
    square = min(MAX_DIMENSION, int(pixels**0.5) + 1)
    frame = 16 * 2 * MAX_DIMENSION  # padding to whole MCUs, at most
    size = (square, -(-(pixels + frame) // square))
    return bytes_needed(Subsampling.S444, size, restorer.images, restorer.options.pixel)


@contextmanager
def open_resources(job: Job) -> Iterator[RunResources]:
    """Opens the worker processes, the shared memory and the device.

    The order matters, because a process with threads or a CUDA context cannot be forked safely: the CPU's kernels are
    compiled first (workers inherit them), then the fork server is started, then the GPU is initialised. Raises
    FrontendError."""
    restorer, workers = job.restorer, job.workers or job.share.cores
    if restorer.device.type == "cpu":
        from kernels.numba_ops import compile_kernels  # noqa: PLC0415  # a GPU needs no numba

        compile_kernels(job.quiet)
    every, prepare = stages(job), partial(torch.set_num_threads, 1)
    memory = processes = None
    with ExitStack() as stack:
        if workers > 1 or uses_device(every):
            memory = SharedMemory(max_bytes(workers, restorer.batched) + max_file_bytes(restorer))
            do = [stage.do for stage in every]
            processes = stack.enter_context(WorkerLauncher(do, memory, prepare, restorer.stopwatch))
        restorer.prepare_device(job.share.cores - 1, not job.quiet)
        if memory is not None and restorer.device.type == "cuda":
            try:
                memory.pin(max_bytes(workers, restorer.batched), restorer.device)
                stack.callback(memory.unpin)
            except RuntimeError as error:
                print(f"{error}: copies to and from {restorer.device} will be slower", file=sys.stderr)
        yield RunResources(job, every, workers, memory, processes)
