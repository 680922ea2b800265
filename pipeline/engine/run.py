"""A run from sources to sink: every input is read, restored, encoded and written, in order, and gets a manifest line.

One thread reads, this one writes, one drives the GPU, and worker processes do the rest (resources.py, scheduler.py).
The stages of a file are in file_stages.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import NoReturn

from tqdm import tqdm

from pipeline.engine.device import one_thread
from pipeline.engine.file_stages import merge_decoded, pass_through
from pipeline.engine.job import Job
from pipeline.engine.progress import closing_lines, keep_history, progress_bar, report_failures, time_left
from pipeline.engine.resources import open_resources
from pipeline.engine.signals import defer_signals
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.task import RawFile, Step, Task
from pipeline.inputs.keys import Keys
from pipeline.inputs.listing import Sources, list_sources
from pipeline.inputs.remote import contains, same_place
from pipeline.inputs.source import Item, ReadPosition, SideMember, read
from pipeline.jpeg.errors import UnsupportedJpeg
from pipeline.outputs.record import Record, SinkError
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import FolderSink, ManifestWriter, OutputNames, Sink

SinkOf = Callable[[Job, ManifestWriter, Sources], Sink]


def run(job: Job, sink_of: SinkOf | None = None) -> int:
    """Runs the job, or this rank's share of it. Returns the number of `failed` manifest lines, including earlier runs';
    of a rank, those of its part.

    sink_of: opens the output instead of `open_sink`.

    Raises SourceError and SinkError if it cannot start or continue; finished inputs stay finished."""
    sources = list_inputs(job)
    with ExitStack() as stack:
        stack.enter_context(one_thread(job.restorer.device))
        # Before the run has threads, and before outputs of an earlier run are changed:
        resources = stack.enter_context(open_resources(job))
        scheduler = stack.enter_context(resources.scheduler())
        manifest = stack.enter_context(job.open_manifest())
        sink = stack.enter_context((sink_of or open_sink)(job, manifest, sources))
        before = manifest.counts.total()
        total = None if job.share.part else input_total(sources.count, job.limit)
        label = f"rank {job.share.rank}" if job.share.part else ""
        progress = stack.enter_context(progress_bar(total, before, job.quiet, label))
        watch = job.restorer.stopwatch
        started = time.perf_counter()
        entries = job.share.entries(sources, job.shards)
        position = ReadPosition()
        items = read(
            *(entries, sink.finished, sink.shard_finished),
            wanted=wanted_names(job),
            side_members=sink.copies_members,
            position=position,
        )
        items = watch.each("read", islice(items, job.limit))
        tasks = make_tasks(job, items, Keys(per_shard=job.shards, taken=manifest.key_taken))
        left = time_left(position, None if total is not None or job.share.part else sources.shard_bytes)
        megapixels = write(scheduler.run(tasks), sink, progress, watch, left)
        with watch("write"):
            sink.close()
        counts = manifest.counts
    seconds, done = time.perf_counter() - started, counts.total() - before
    keep_history(job, done, megapixels, seconds, workers=scheduler.workers)
    if not job.quiet:
        print(closing_lines(job, scheduler, counts, done, megapixels=megapixels, seconds=seconds), file=sys.stderr)
    return counts["failed"]


def list_inputs(job: Job) -> Sources:
    """Lists the inputs. Raises SourceError; SinkError if outputs could overwrite inputs."""
    sources = list_sources(*job.inputs, exclude=job.output)
    for root in sources.roots:
        if same_place(job.output, root.folder) or (root.single is None and contains(job.output, root.folder)):
            raise SinkError(
                f"{job.output}: is an input folder or contains one, so outputs could overwrite inputs: "
                "choose another output folder"
            )
    return sources


def input_total(count: int | None, limit: int | None) -> int | None:
    """The number of inputs, at most `limit`; None if unknown."""
    return min((number for number in (count, limit) if number is not None), default=None)


def open_sink(job: Job, manifest: ManifestWriter, sources: Sources) -> Sink:
    names = OutputNames(job.format, job.restorer.images, copies=job.filters.passed_through == "copy")
    return ShardSink(manifest, sources, names) if job.shards else FolderSink(manifest, names)


def name_filter(job: Job, item: Item) -> str | None:
    """Why the filters leave an item out by its name; None if they do not, and for a folder or tar that could not be
    read, whatever it is called."""
    return None if item.is_container else job.filters.by_name(item.source.removeprefix(item.prefix))


def wanted_names(job: Job) -> Callable[[str], bool]:
    """Whether a file is read, by its path below its input: not if the filters leave it out and it has no output."""
    return lambda name: claims_key(job, job.filters.by_name(name))


def claims_key(job: Job, reason: str | None) -> bool:
    """Whether an item may have outputs, so that no other item may have its key. reason: from `name_filter`."""
    return reason is None or job.filters.passed_through != "skip"


def make_tasks(job: Job, items: Iterable[Item | SideMember], keys: Keys | None = None) -> Iterator[Step]:
    """Turns unfinished items into tasks; unreadable items and duplicate keys become failed tasks. Side members are
    yielded as they are."""
    keys = keys or Keys(per_shard=job.shards)
    advice = (
        "rename this one" if job.shards else "rename this one, or restore them into folders (or shards) of their own"
    )
    for item in items:
        if isinstance(item, SideMember):
            yield item
            continue
        reason = name_filter(job, item)
        wanted = claims_key(job, reason)
        owner = keys.claim(item) if wanted else None
        if item.data is None and item.error is None:
            continue
        record, bare = new_record(job, item), replace(item, data=None)
        if item.data is None and wanted:
            yield Task(bare, record.failed(item.error or "", item.transient))
        elif owner is not None:
            yield Task(bare, record.failed(f"duplicate key: {owner} has it already; {advice}"))
        else:
            yield start_task(job, Task(bare, record), item.data or b"", reason)


def new_record(job: Job, item: Item) -> Record:
    """The item's manifest line with what is known before the file is parsed."""
    strength = job.restorer.options.strength
    return Record(
        key=item.key,
        source=item.source,
        status="restored",
        seed=job.seed,
        mode=job.restorer.mode,
        weights=job.restorer.digest,
        strength=strength if strength < 1 else None,
    )


def start_task(job: Job, task: Task, data: bytes, reason: str | None) -> Step:
    """The task of a file that has been read. It is finished already if the file is passed through without being
    decoded. reason: from `name_filter`."""
    layout = job.filters.apply(job.restorer.parse(data), reason)
    file = RawFile(data, layout)
    if isinstance(layout, UnsupportedJpeg) and job.filters.passed_through != "decode":
        return merge_decoded(job, task, file, pass_through(job, file, str(layout)))
    return replace(task, file=file)


def write(
    steps: Iterable[Step],
    sink: Sink,
    progress: tqdm[NoReturn],
    watch: Stopwatch,
    left: Callable[[], str] = lambda: "",
) -> float:
    """Writes all steps to the sink; returns the restored megapixels. left: describes the remaining time."""
    pixels, started = 0, time.perf_counter()
    for step in steps:
        with watch("write"):
            if isinstance(step, SideMember):
                failed = sink.copy_member(step)
                report_failures(progress, [failed] if failed else [])
                continue
            with defer_signals():  # keeps outputs and their line together
                record = sink.write(step.item, step.record, step.images)
        pixels += record.pixels
        report_failures(progress, [record])
        rate = pixels / 1e6 / (time.perf_counter() - started)
        progress.set_postfix_str(f"{rate:.2f} MP/s{left()}", refresh=False)
        progress.update()
    return pixels / 1e6
