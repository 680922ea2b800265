"""What a run says of itself: its progress, and the closing lines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from tqdm import tqdm

from pipeline.engine.job import Job
from pipeline.engine.scheduler import Scheduler
from pipeline.inputs.source import ReadPosition
from pipeline.outputs.history import append_run
from pipeline.outputs.manifest import manifest_address
from pipeline.outputs.record import STATUSES, Record, describe_counts


def progress_bar(total: int | None, done: int, quiet: bool) -> tqdm[NoReturn]:
    """total: inputs; None where nobody knows. done: by earlier runs."""
    where = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" if total else "{n_fmt} images [{elapsed}"
    bar = where + ", {rate_noinv_fmt}{postfix}]"
    return tqdm(total=total, initial=done, unit=" images", disable=quiet, smoothing=0.1, bar_format=bar)


def report_failures(progress: tqdm[NoReturn], records: Iterable[Record]) -> None:
    """Prints a line to stderr for each record that failed."""
    for record in records:
        if record.status == "failed":
            progress.write(f"failed: {record.source}: {record.reason}", file=sys.stderr)


def time_left(position: ReadPosition, total: int | None) -> Callable[[], str]:
    """A function that says, of tars whose members nobody has counted, how much is read and how long the rest will take,
    by the bytes read since it was first called. total: of all tars; None or 0: it says nothing."""
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
    """Where the time went, how fast and how, what became of the inputs, and where to look. done: inputs in this run."""
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
    alone = ("read", "write", *(("decode", "network", "project") if restorer.batched else ()))
    alone += ("bitstream",) if restorer.dali is not None else ()
    shared = {stage: 1 if stage in alone else workers for stage in restorer.stopwatch.stages}
    busy = f", busy for {scheduler.busy / seconds / workers:.0%} of the time"
    how_many = f"{workers} workers{busy}" if workers > 1 else "1 worker"
    return summary(
        counts,
        done,
        job,
        megapixels=megapixels,
        seconds=seconds,
        how=f", {done / seconds:.2f} images/s on {restorer.device}, "
        f"network in {str(restorer.dtype).removeprefix('torch.')}; {how_many}",
        table=restorer.stopwatch.table(megapixels, seconds, shared),
    )


def keep_history(
    job: Job, done: int, megapixels: float, seconds: float, *, workers: int, device: str = "", dtype: str = ""
) -> None:
    """Write down beside the manifest how fast the run was. device, dtype: if not the restorer's. Raises SinkError."""
    append_run(
        job.output,
        job.share.part,
        seconds=seconds,
        inputs=done,
        megapixels=megapixels,
        device=device or str(job.restorer.device),
        dtype=dtype or str(job.restorer.dtype).removeprefix("torch."),
        workers=workers,
    )
