"""How an exception becomes the failure of one file, and which failures are final: those that are the file's."""

from __future__ import annotations

import torch

from pipeline.engine.task import Step, Task
from pipeline.engine.worker import WorkerError
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.formats import EncodeError


class CertificateError(Exception):
    """An output does not have the coefficients that its certificate promises."""


class TooLargeError(MemoryError):
    """A file takes more than all of the memory that processes share."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"takes {size >> 20} MiB of memory that processes share, which can have {limit >> 20} MiB here "
            "(ulimit -v): a higher limit, or --workers 1, which shares none"
        )


def fail(step: Step, error: Exception) -> Step:
    """Whatever a stage raises is the failure of its file, and the run goes on."""
    assert isinstance(step, Task)  # nothing is done to others
    known = isinstance(error, JpegError | EncodeError | CertificateError | WorkerError | TooLargeError)
    reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"  # out of memory, or a bug
    return Task(step.item, step.record.failed(reason, is_transient(error)))


def is_transient(error: Exception) -> bool:
    """Whether it says nothing about the file: memory, a worker process, a disk."""
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # PyTorch's on the CPU
    return no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError | WorkerError | OSError)
