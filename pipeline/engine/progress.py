"""What a run says of itself: its progress, and the closing lines."""

from __future__ import annotations

from collections import Counter
from typing import Any, NoReturn, get_args

from tqdm import tqdm

from pipeline.engine.job import Job
from pipeline.engine.scheduler import Scheduler
from pipeline.outputs.manifest import manifest_address
from pipeline.outputs.record import Status


def progress_bar(total: int | None, done: int, quiet: bool) -> tqdm[NoReturn]:
    """total: inputs; None where nobody knows. done: by earlier runs."""
    where = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" if total else "{n_fmt} images [{elapsed}"
    bar = where + ", {rate_noinv_fmt}{postfix}]"
    return tqdm(total=total, initial=done, unit=" images", disable=quiet, smoothing=0.1, bar_format=bar)


def summary(
    counts: Counter[str], done: int, job: Job, *, megapixels: float, seconds: float, how: str, table: str
) -> str:
    """Where the time went, how fast and how, what became of the inputs, and where to look. done: inputs in this run."""
    fates = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in get_args(Status))
    return (
        f"{table}\n{megapixels:.2f} MP in {seconds:.1f} s, {megapixels / seconds:.2f} MP/s{how}\n"
        f"{counts.total()} inputs: {fates} ({done} in this run)\n"
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
