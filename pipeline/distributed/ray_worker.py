"""The worker on a Ray cluster's nodes: restores one unit at a time, writes its outputs, returns its manifest lines."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from pipeline.distributed.units import InputUnit
from pipeline.engine.device import DeviceLostError, dtype_name, one_thread
from pipeline.engine.job import Job
from pipeline.engine.options import Options
from pipeline.engine.progress import progress_bar
from pipeline.engine.resources import open_resources
from pipeline.engine.restorer import Restorer
from pipeline.engine.run import make_tasks, open_sink, wanted_names, write
from pipeline.engine.stopwatch import Times
from pipeline.inputs.keys import Keys, PrecomputedKeys
from pipeline.inputs.listing import SourceError, Sources
from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.inputs.source import read
from pipeline.outputs.object_store import RemoteStore
from pipeline.outputs.record import Record, SinkError
from pipeline.outputs.store import PARTIAL, LocalStore

PROBE = ".restore-probe"
TIMEOUT_S = 10.0
"""Seconds until a file of one node must be visible on another, because network file systems have a delay, and until
workers must have closed."""


@dataclass(frozen=True)
class UnitResult:
    """The result of a unit. problem: why the whole run has to stop, or empty."""

    records: Sequence[Record] = ()
    megapixels: float = 0.0
    times: dict[str, Times] | None = None
    problem: str = ""


@dataclass(frozen=True)
class WorkerReady:
    """A worker's first message: its node, its dtype, and why it cannot work, or empty."""

    node: str
    dtype: str = ""
    problem: str = ""


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker is started with.

    weights, device, dtype, options: of its Restorer.
    digest: hash of the weights that it must have.
    job: the job's other fields.
    token: the content of the probe file."""

    weights: str | None
    digest: str
    device: str
    dtype: str
    options: Options
    job: dict[str, Any]
    sources: Sources
    token: str


class RecordCollector:
    """A ManifestWriter that collects the lines of one unit, to be sent to the driver."""

    def __init__(self, store: LocalStore | RemoteStore, unit: InputUnit) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        self.records: list[Record] = []
        self._unit = unit

    def finished(self, source: str) -> bool:
        """See ManifestWriter."""
        return source in self._unit.finished

    def shard_finished(self, shard: str) -> bool:
        """See ManifestWriter."""
        return shard in self._unit.finished_shards

    def append(self, records: Sequence[Record]) -> None:
        """See ManifestWriter."""
        self.records += records
        self.counts.update(record.status for record in records)


class Worker:
    """A Ray actor. Its constructor does nothing that can fail, so that errors are distinguished from a lost process."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        self._setup, self._name, self._open = setup, name, ExitStack()

    def begin(self) -> WorkerReady:
        """Loads the weights, and checks that inputs and output are visible. Raises DeviceLostError, like `restore`."""
        node, setup = socket.gethostname(), self._setup
        try:
            restorer = Restorer.from_pretrained(setup.weights, setup.device, setup.dtype, setup.options)
            self._job = Job(restorer=restorer, **setup.job)
            if restorer.digest != setup.digest:
                return WorkerReady(node, problem=f"has different weights {setup.weights or restorer.digest}")
            for root in setup.sources.roots:
                if isinstance(root.folder, Path) and not root.folder.exists():
                    return WorkerReady(node, problem=f"does not see the input {root.folder}")
            if not _can_read_probe(self._job.output, setup.token):
                problem = f"does not see what the driver writes to {self._job.output}"
                return WorkerReady(node, problem=f"{problem}; use a shared file system or a store")
            self._store = self._open_store(self._job.output)
            self._resources = self._open.enter_context(open_resources(self._job))
        except (ValueError, OSError, RemoteError, SinkError) as error:
            return WorkerReady(node, problem=f"{type(error).__name__}: {error}")
        except torch.AcceleratorError as error:
            raise DeviceLostError(f"{node}: {setup.device} does not work: {error}") from error
        return WorkerReady(node, dtype_name(restorer.dtype))

    def _open_store(self, output: Address) -> LocalStore | RemoteStore:
        if isinstance(output, Remote):
            return RemoteStore(output)
        store = LocalStore(output, self._name)
        store.scratch.mkdir()  # the next run removes the parent folder, which stops a worker that outlived its run
        return store

    def restore(self, unit: InputUnit) -> UnitResult:
        """Restores a unit. Its outputs are in place when this returns."""
        job, collector, watch = self._job, RecordCollector(self._store, unit), self._job.restorer.stopwatch
        watch.stages.clear()
        keys = Keys(per_shard=True) if unit.owners is None else PrecomputedKeys(unit.owners)
        try:
            with ExitStack() as stack:
                sink = stack.enter_context(open_sink(job, collector, self._setup.sources))
                stack.enter_context(one_thread(job.restorer.device))
                scheduler = stack.enter_context(self._resources.scheduler())
                progress: tqdm[NoReturn] = stack.enter_context(progress_bar(None, 0, quiet=True))
                items = read(unit.entries, sink.finished, wanted=wanted_names(job), side_members=sink.copies_members)
                items = watch.each("read", items)
                megapixels = write(scheduler.run(make_tasks(job, items, keys)), sink, progress, watch)
                with watch("write"):
                    sink.close()
                    if isinstance(self._store, RemoteStore):
                        self._store.settle()
        except (SinkError, SourceError) as error:
            return UnitResult(problem=f"{socket.gethostname()}: {error}")
        return UnitResult(collector.records, megapixels, dict(watch.stages))

    def close(self) -> None:
        """Ends the worker processes and removes the scratch folder."""
        self._open.close()
        if isinstance(self._store, RemoteStore):
            self._store.close()
        else:
            self._store.scratch.rmdir()


def _can_read_probe(output: Address, token: str) -> bool:
    """Whether the driver's probe file is visible here."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        with suppress(FileNotFoundError):
            if isinstance(output, Path):
                found: bytes | None = (output / PARTIAL / PROBE).read_bytes()
            else:
                found, _ = (output / PROBE).read_limited(100)
            if found == token.encode():
                return True
        if isinstance(output, Remote) or time.monotonic() > end:
            return False
        time.sleep(0.2)
