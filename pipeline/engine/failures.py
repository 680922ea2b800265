"""Turns an exception into the failure of one file, and separates final failures from transient ones."""

from __future__ import annotations

import torch

from pipeline.engine.task import Step, Task
from pipeline.engine.worker import WorkerError
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.formats import EncodeError


class CertificateError(Exception):
    """An output, compressed again, has other mismatches than its certificate says."""


class TooLargeError(MemoryError):
    """A file needs more shared memory than there is in total; sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"needs {size >> 20} MiB of shared memory, but only {limit >> 20} MiB are available (ulimit -v): "
            "raise the limit, or use --workers 1, which needs no shared memory"
        )


def fail(step: Step, error: Exception) -> Step:
    """The failed task of an input whose stage raised `error`. The run continues with the other inputs."""
    assert isinstance(step, Task)  # no stage works on a SideMember
    return Task(step.item, step.record.failed(_reason(error), is_transient(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, JpegError | EncodeError | CertificateError | WorkerError | TooLargeError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"too little memory on the GPU (--batch and --tile lower what is needed): {error}"
    return f"unexpected {type(error).__name__}: {error}"  # lack of memory, or a defect


def is_transient(error: Exception) -> bool:
    """Whether the error has, or may have, another cause than the file: memory, a worker process, a disk, a GPU."""
    return isinstance(error, RuntimeError | MemoryError | WorkerError | OSError)
