"""A run on a Ray cluster. Ray starts workers on its nodes and carries messages.

    driver: inputs → units (a shard, or some loose files) → … → manifest lines, written here only
    worker: a unit → its outputs, put in place as in any run → its manifest lines, sent to the driver

There is one worker per GPU, or per `cpus` cores. If a worker, its GPU or its node is lost, its unit is given to
another, which writes the same outputs; the driver writes a unit's lines once. Workers end with their driver; the next
run continues from the manifest. All nodes must see the inputs and the output under the same names, which each worker
checks at its start."""

from __future__ import annotations

import itertools
import secrets
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pipeline.distributed.ray_worker import PROBE, TIMEOUT_S, UnitResult, Worker, WorkerReady, WorkerSetup
from pipeline.distributed.units import InputUnit, split_into_units
from pipeline.engine.device import DeviceError, DeviceLostError
from pipeline.engine.job import Job
from pipeline.engine.progress import keep_history, progress_bar, report_failures, summary
from pipeline.engine.run import claims_key, list_inputs, name_filter
from pipeline.engine.stopwatch import Stopwatch
from pipeline.inputs.remote import Address, RemoteError
from pipeline.inputs.source import Item
from pipeline.outputs.record import SinkError
from pipeline.outputs.store import PARTIAL

MAX_ATTEMPTS = 5
"""Workers that may be lost over a unit before the run gives it up."""

STARTUP_WARNING_S = 60.0
"""Seconds without any worker after which the driver prints a warning."""


class ClusterError(Exception):
    """The cluster cannot be used. Finished inputs stay finished."""


class WorkerSet:
    """The workers of a run: starting, idle, and busy with a unit."""

    def __init__(self, ray: Any, setup: WorkerSetup, cpus: int | None) -> None:
        self._ray, self._setup, self._cpus = ray, setup, cpus
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, InputUnit]] = {}
        self._numbers = itertools.count()
        self._lost, self._last_error = 0, ""
        self.kind, self.dtype = setup.device, ""
        self._warn_at = time.monotonic() + STARTUP_WARNING_S
        self.nodes: set[str] = set()
        self.peak_workers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        workers = [*self._idle, *self._starting.values(), *(worker for worker, _ in self._busy.values())]
        if error is None:
            with suppress(Exception):
                self._ray.get([worker.close.remote() for worker in self._idle], timeout=TIMEOUT_S)
        for worker in workers:
            with suppress(Exception):
                self._ray.kill(worker)

    def results(self, units: Iterable[InputUnit]) -> Iterator[UnitResult]:
        """The results of all units, in the order in which they arrive. Raises ClusterError if workers cannot start or
        work, and, after all other units are done, if a unit has lost too many workers."""
        waiting, again, given_up = iter(units), deque[InputUnit](), list[InputUnit]()
        while self._assign(again, waiting):
            self._start_workers()
            for message in self._ray.wait([*self._starting, *self._busy], timeout=1.0)[0]:
                if message in self._starting:
                    self._register(message, self._starting.pop(message))
                    continue
                worker, unit = self._busy.pop(message)
                if (result := self._receive(message)) is not None:
                    self._idle.append(worker)
                    yield result
                    continue
                self._ray.kill(worker)
                if unit.attempt + 1 < MAX_ATTEMPTS:
                    again.append(replace(unit, attempt=unit.attempt + 1))
                else:
                    given_up.append(unit)
        if given_up:
            what = "; ".join(map(str, given_up))
            raise ClusterError(
                f"{what}: {MAX_ATTEMPTS} workers were lost over it; all other units are done; "
                f"the last error: {self._last_error}"
            )

    def _assign(self, again: deque[InputUnit], waiting: Iterator[InputUnit]) -> bool:
        """Gives units to idle workers. Returns False when no unit is left and no worker is busy."""
        while True:
            if not again:
                again.extend(itertools.islice(waiting, 1))
            if not (again and self._idle):
                return bool(again or self._busy)
            worker, unit = self._idle.pop(), again.popleft()
            self._busy[worker.restore.remote(unit)] = (worker, unit)

    def _start_workers(self) -> None:
        """Starts workers up to the number that the cluster's nodes have room for, which shrinks when a node is lost."""
        cpus, gpus, wanted = worker_slots(self._ray.nodes(), self.kind, self._cpus)
        self.kind = "cuda" if gpus else "cpu"  # fixed from now on: the other kind gives slightly different images
        if not (wanted or self._starting or self._busy):
            raise ClusterError(f"no node of the cluster has {cpus} CPUs {'and a GPU ' * gpus}for a worker")
        if time.monotonic() > self._warn_at and not (self._idle or self._busy):
            self._warn_at = float("inf")
            tqdm.write(f"the cluster has started none of {wanted} workers yet; is it busy?", file=sys.stderr)
        actor = self._ray.remote(Worker)
        device = "cuda:0" if gpus else "cpu"  # each worker sees only its own GPU
        setup = replace(self._setup, device=device, job=self._setup.job | {"workers": cpus})
        while len(self._starting) + len(self._idle) + len(self._busy) < wanted:
            name = f"ray-{self._setup.token}-{next(self._numbers)}"
            worker = actor.options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote(setup, name)
            self._starting[worker.begin.remote()] = worker
        self.peak_workers = max(self.peak_workers, len(self._idle) + len(self._busy))

    def _register(self, message: Any, worker: Any) -> None:
        ready: WorkerReady | None = self._receive(message)
        if ready is not None and ready.problem and ready.node in self.nodes:  # it has worked: its GPU or disk is gone
            self._last_error = f"node {ready.node}: {ready.problem}"
            ready = None
        if ready is None:
            self._ray.kill(worker)
            self._lost += 1
            if self._lost >= MAX_ATTEMPTS and not (self._idle or self._busy):
                raise ClusterError(
                    f"{self._lost} workers ended before they were ready; the last error: {self._last_error}"
                )
            return
        self.dtype = self.dtype or ready.dtype
        if ready.problem:
            raise ClusterError(f"node {ready.node}: {ready.problem}")
        if ready.dtype != self.dtype:
            raise ClusterError(
                f"node {ready.node} computes in {ready.dtype}, others in {self.dtype}: choose one with --dtype"
            )
        self._lost = 0
        self.nodes.add(ready.node)
        self._idle.append(worker)

    def _receive(self, message: Any) -> Any:
        """A worker's message; None if the worker or its GPU is lost. Raises ClusterError if its GPU cannot be used as
        asked, and other exceptions of the worker."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(message)
        except errors.RayTaskError as error:
            if not isinstance(error.cause, DeviceError):
                raise
            if not isinstance(error.cause, DeviceLostError):
                raise ClusterError(str(error.cause)) from error
            self._last_error = str(error.cause)
            return None
        except errors.RayError as error:
            self._last_error = str(error)
            return None


def worker_slots(nodes: Iterable[dict[str, Any]], device: str, cpus: int | None) -> tuple[int, int, int]:
    """(CPUs per worker, GPUs per worker, number of workers) that Ray's `nodes` permit.

    device: `auto` uses GPUs if there are any.
    cpus: per worker; None: one, or on nodes with GPUs each GPU's share."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [x for x in found if x.get("GPU", 0) >= 1]
    if device == "cpu" or (device == "auto" and not with_gpu):
        cpus = cpus or 1
        return cpus, 0, sum(int(x.get("CPU", 0)) // cpus for x in found)
    cpus = cpus or max(1, min((int(x.get("CPU", 0) // x["GPU"]) for x in with_gpu), default=1))
    return cpus, 1, sum(min(int(x.get("CPU", 0)) // cpus, int(x["GPU"])) for x in with_gpu)


def run(job: Job, weights: str | None, device: str, dtype: str, *, address: str, cpus: int | None) -> int:
    """As engine.run, on the cluster at `address`. Returns the number of `failed` manifest lines.

    job: with absolute paths; its Restorer may be on any device.
    weights, device, dtype: for the workers' Restorers.
    cpus: per worker; see `worker_slots`.

    Raises ClusterError, SourceError and SinkError."""
    sources, watch = list_inputs(job), Stopwatch()

    def may_have_outputs(item: Item) -> bool:
        return claims_key(job, name_filter(job, item))

    with ExitStack() as stack:
        ray = stack.enter_context(connected(address))
        manifest = stack.enter_context(job.open_manifest())
        token = stack.enter_context(_probe(job.output))
        job_fields = {field.name: getattr(job, field.name) for field in fields(job) if field.name != "restorer"}
        options, digest = job.restorer.options, job.restorer.digest
        setup = WorkerSetup(weights, digest, device, dtype, options, job_fields | {"quiet": True}, sources, token)
        before, started, megapixels = manifest.counts.total(), time.perf_counter(), 0.0
        progress = stack.enter_context(progress_bar(sources.count, before, job.quiet))
        workers = stack.enter_context(WorkerSet(ray, setup, cpus))
        for result in workers.results(split_into_units(sources, job.shards, manifest, may_have_outputs)):
            if result.problem:
                raise ClusterError(result.problem)
            manifest.append(result.records)
            megapixels += result.megapixels
            watch.merge(result.times or {})
            report_failures(progress, result.records)
            progress.set_postfix_str(f"{megapixels / (time.perf_counter() - started):.2f} MP/s", refresh=False)
            progress.update(len(result.records))
    counts, seconds = manifest.counts, time.perf_counter() - started
    done, device = counts.total() - before, f"{workers.kind} on {len(workers.nodes)} Ray hosts"
    keep_history(job, done, megapixels, seconds, workers=workers.peak_workers, device=device, dtype=workers.dtype)
    if not job.quiet:
        table = watch.table(megapixels, seconds, dict.fromkeys(watch.stages, max(1, workers.peak_workers)))
        how = f"; up to {workers.peak_workers} workers on {len(workers.nodes)} hosts"
        print(summary(counts, done, job, megapixels=megapixels, seconds=seconds, how=how, table=table), file=sys.stderr)
    return counts["failed"]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connects to Ray; yields the package. Raises ClusterError if it is not installed or there is no cluster."""
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ClusterError(f"--engine ray needs Ray: pip install '.[cluster]' ({error})") from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        how = "start one (`ray start --head`), give its --address, or use --address local for this machine only"
        raise ClusterError(f"no Ray cluster at {address!r}: {error}; {how}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's handler would end this process at once
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _probe(output: Address) -> Iterator[str]:
    """Writes a random token to a file in the output folder, which workers must be able to read; yields the token.
    Afterwards removes it and the scratch folders of lost workers."""
    token = secrets.token_hex(4)
    if isinstance(output, Path):
        (output / PARTIAL / PROBE).write_text(token)
        try:
            yield token
        finally:
            (output / PARTIAL / PROBE).unlink(missing_ok=True)
            for scratch in (output / PARTIAL).glob(f"ray-{token}-*"):  # of lost or killed workers
                shutil.rmtree(scratch, ignore_errors=True)
        return
    place = output / PROBE
    try:
        place.write_bytes(token.encode())
        try:
            yield token
        finally:
            place.unlink()
    except RemoteError as error:
        raise SinkError(f"{output}: cannot be used for output: {error}") from error
