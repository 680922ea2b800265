"""The progress bar, the closing summary and the history of a run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from tqdm import tqdm

from pipeline.engine.device import dtype_name
from pipeline.engine.job import Job
from pipeline.engine.scheduler import Scheduler
from pipeline.inputs.source import ReadPosition
from pipeline.outputs.history import append_run
from pipeline.outputs.manifest import manifest_address
from pipeline.outputs.record import STATUSES, Record, describe_counts

LOGGED_EVERY_S = 30.0
"""Seconds between two states of a bar in a file, where all of them stay."""


def update_interval() -> float:
    """Seconds between two states of a bar on stderr, at least."""
    return 0.1 if sys.stderr.isatty() else LOGGED_EVERY_S


def progress_bar(total: int | None, done: int, quiet: bool, label: str = "") -> tqdm[NoReturn]:
    """total: number of inputs; None if unknown. done: inputs that earlier runs have finished. label: of one bar among
    several."""
    where = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" if total else "{desc}{n_fmt} images [{elapsed}"
    bar = where + ", {rate_noinv_fmt}{postfix}]"
    return tqdm(
        desc=f"{label}: " if label else None,
        total=total,
        initial=done,
        unit=" images",
        disable=quiet,
        smoothing=0.1,
        bar_format=bar,
        mininterval=update_interval(),
        maxinterval=LOGGED_EVERY_S,
    )


def report_failures(progress: tqdm[NoReturn], records: Iterable[Record]) -> None:
    """Prints a line to stderr for each record that failed."""
    for record in records:
        if record.status == "failed":
            progress.write(f"failed: {record.source}: {record.reason}", file=sys.stderr)


def time_left(position: ReadPosition, total: int | None) -> Callable[[], str]:
    """Returns a function that describes progress and remaining time, from the bytes read since its first call, where
    the number of inputs is unknown because they are tar members. total: bytes of all tars; None or 0: the text is
    empty."""
    began: tuple[float, int] | None = None

    def left() -> str:
        nonlocal began
        now, read = time.perf_counter(), position.bytes
        if not total:
            return ""
        began = began or (now, read)
        seconds, so_far = now - began[0], read - began[1]
        if seconds < 1 or so_far <= 0:
            return ""
        return f", {read / total:.0%} read, {tqdm.format_interval((total - read) * seconds / so_far)} left"

    return left


def summary(
    counts: Counter[str], done: int, job: Job, *, megapixels: float, seconds: float, how: str, table: str
) -> str:
    """The closing lines: times by stage, speed, counts by status, and where the outputs are. done: inputs of this
    run."""
    described = describe_counts(dict.fromkeys(STATUSES, 0) | counts)
    return (
        f"{table}\n{megapixels:.2f} MP in {seconds:.1f} s, {megapixels / seconds:.2f} MP/s{how}\n"
        f"{counts.total():,} inputs: {described} ({done:,} in this run)\n"
        f"images are in {job.output}, a line for each input in {manifest_address(job.output, job.share.part)}"
    )


def closing_lines(
    job: Job, scheduler: Scheduler[Any], counts: Counter[str], done: int, *, megapixels: float, seconds: float
) -> str:
    """The summary of a run on this machine."""
    restorer, workers = job.restorer, scheduler.workers
    single = ("read", "write", *(("decode", "network", "project") if restorer.batched else ()))
    single += ("bitstream",) if restorer.dali is not None else ()
    threads = {stage: 1 if stage in single else workers for stage in restorer.stopwatch.stages}
    busy = f", busy for {scheduler.busy / seconds / workers:.0%} of the time"
    how_many = f"{workers} workers{busy}" if workers > 1 else "1 worker"
    return summary(
        counts,
        done,
        job,
        megapixels=megapixels,
        seconds=seconds,
        how=f", {done / seconds:.2f} images/s on {restorer.device}, "
        f"network in {dtype_name(restorer.dtype)}; {how_many}",
        table=restorer.stopwatch.table(megapixels, seconds, threads),
    )


def keep_history(
    job: Job, done: int, megapixels: float, seconds: float, *, workers: int, device: str = "", dtype: str = ""
) -> None:
    """Appends this run's speed to the history beside the manifest. device, dtype: empty: the restorer's. Raises
    SinkError."""
    append_run(
        job.output,
        job.share.part,
        seconds=seconds,
        inputs=done,
        megapixels=megapixels,
        device=device or str(job.restorer.device),
        dtype=dtype or dtype_name(job.restorer.dtype),
        workers=workers,
    )
