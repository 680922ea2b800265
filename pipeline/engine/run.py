"""A run from sources to sink: every input is read, restored, encoded and written, in order, and gets its manifest line.

    items → prepare (bitstream) → tiles (network, exact projection) → finish (image file, verification) → sink

With DALI as front end a stage before `prepare` reads many files together, in the thread that drives the device.

Reading has a thread, writing is done here, and everything in between is a Scheduler. On the CPU, worker processes do
what takes long: a small file as a whole, and the tiles of a larger one. On a GPU, tiles of several files are batches,
and one thread drives it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from tqdm import tqdm

from pipeline.engine.device import one_thread
from pipeline.engine.job import Job
from pipeline.engine.progress import closing_lines, progress_bar
from pipeline.engine.restorer import MAX_BATCH, Restorer
from pipeline.engine.results import Work
from pipeline.engine.scheduler import Scheduler, Stage, whole
from pipeline.engine.signals import undisturbed
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.transfers import Part, Piece
from pipeline.engine.worker import WorkerError
from pipeline.inputs.keys import Keys
from pipeline.inputs.remote import same_place
from pipeline.inputs.source import Item, SideMember, Sources, list_sources, read
from pipeline.jpeg.bitstream import Bitstream, Layout, read_bitstream
from pipeline.jpeg.dali_frontend import MAX_BATCH as DALI_BATCH
from pipeline.jpeg.dali_frontend import as_read
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.fallback import plain_decode
from pipeline.outputs.formats import EncodeError, encode_image
from pipeline.outputs.record import Record, SinkError
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import FolderSink, Ledger, Sink, failed
from pipeline.outputs.verify import count_mismatches

WINDOW, WINDOW_WORKER = 256 << 20, 64 << 20
"""Bytes of files that may be under way, and more for each worker. So much is needed where small files wait for a large
one before them, as they are written in order."""

FILES, FILES_WORKER = 4 * MAX_BATCH, 64
"""How many files may be under way, and more for each worker."""


class CertificateError(Exception):
    """An output does not have the coefficients that its certificate promises."""


@dataclass(frozen=True)
class Task:
    """One input on its way. The item's data and `layout`, what their header says, until they are read; `work` until it
    is restored; then `images`. found: gives or raises what DALI has made of the data."""

    item: Item
    record: Record
    layout: Layout | JpegError | None = None
    found: Callable[[], Bitstream] | None = None
    work: Work | None = None
    images: tuple[bytes, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of a file that can be read."""
        return self.layout.header.size if isinstance(self.layout, Layout) else None


Step = Task | SideMember
SinkOf = Callable[[Job, Ledger, Sources], Sink]


def run(job: Job, sink_of: SinkOf | None = None) -> int:
    """Does the job, or this rank's share of it, and returns how many lines of the manifest say `failed`, earlier runs'
    included; of a share, lines of its part. sink_of: opens another sink than `open_sink`.

    Raises SourceError and SinkError when it cannot start or go on; what is finished stays finished."""
    sources = list_inputs(job)
    with ExitStack() as stack:
        stack.enter_context(one_thread(job.restorer.device))
        scheduler = stack.enter_context(open_scheduler(job))  # forks, which threads would not survive
        job.restorer.get_ready(job.share.cores - 1, not job.quiet)  # before anything of an earlier run is touched
        manifest = stack.enter_context(job.open_manifest())
        sink = stack.enter_context((sink_of or open_sink)(job, manifest, sources))
        before = manifest.counts.total()
        total = None if job.share.part else sources.count
        progress = stack.enter_context(progress_bar(total, before, job.quiet))
        watch = job.restorer.stopwatch
        started = time.perf_counter()
        entries = job.share.of(sources, job.shards)
        items = watch.each("read", read(entries, sink.finished, sink.whole, side_members=sink.carries))
        megapixels = write(scheduler.run(claim(job, items)), sink, progress, watch)
        with watch("write"):
            sink.close()
        counts = manifest.counts
    if not job.quiet:
        seconds = time.perf_counter() - started
        done = counts.total() - before
        print(closing_lines(job, scheduler, counts, done, megapixels=megapixels, seconds=seconds), file=sys.stderr)
    return counts["failed"]


def list_inputs(job: Job) -> Sources:
    """What there is to restore. Raises SourceError; SinkError if the output would be mixed in."""
    sources = list_sources(job.input, exclude=job.output)
    if same_place(job.output, sources.root):
        raise SinkError(f"{job.output}: the input's own folder, whose files outputs could replace; choose another one")
    return sources


def open_sink(job: Job, manifest: Ledger, sources: Sources) -> Sink:
    samples = job.restorer.images
    if job.shards:
        return ShardSink(manifest, sources.root, job.format, samples)
    return FolderSink(manifest, job.format, samples)


def open_scheduler(job: Job) -> Scheduler[Step]:
    """Forks workers, as soon as they can have the CPU's kernels from here."""
    if job.restorer.device.type == "cpu":
        from kernels.numba_ops import compile_kernels  # noqa: PLC0415  # where it is used: a GPU needs no numba

        compile_kernels(job.quiet)
    workers = job.workers or job.share.cores
    return Scheduler(
        stages(job),
        fail,
        workers=workers,
        weigh=partial(weigh, job),
        limit=WINDOW + WINDOW_WORKER * workers,
        most=FILES + FILES_WORKER * workers,
        prepare=partial(torch.set_num_threads, 1),
        stopwatch=job.restorer.stopwatch,
    )


def stages(job: Job) -> list[Stage[Step]]:
    """The way of a file, at once if it is a single tile. What has failed, is done or is no image passes by."""
    restorer = job.restorer

    def unread(step: Step) -> bool:
        return isinstance(step, Task) and step.item.data is not None

    def small(step: Step) -> bool:
        return isinstance(step, Task) and unread(step) and (step.size is None or len(restorer.tiles(step.size)) == 1)

    tiles: Stage[Step] = Stage(
        split=parts_of,
        do=restorer.restore_parts,
        take=partial(put, later=restorer.batched),
        place="device" if restorer.batched else "process" if restorer.dali is None else "worker",  # DALI has threads
        kind=restorer.shape,
        max_batch=restorer.max_batch,
    )
    by_tiles: list[Stage[Step]] = [
        whole(partial(prepare, job), unread),
        tiles,
        whole(partial(finish, job), lambda step: bool(parts_of(step))),
    ]
    if restorer.dali is not None:
        together: Stage[Step] = Stage(
            split=lambda step: (step,) if unread(step) else (),
            do=lambda tasks: partial(read_together, restorer, tasks),
            take=lambda step, task, found: replace(task, found=found),
            place="device",
            max_batch=lambda kind: DALI_BATCH,
        )
        return [together, *by_tiles]
    return by_tiles if restorer.batched else [whole(partial(at_once, job), small, "process"), *by_tiles]


def read_together(restorer: Restorer, tasks: Sequence[Task]) -> list[Callable[[], Bitstream]]:
    files = [task.item.data for task in tasks if task.item.data is not None]
    layouts = [task.layout for task in tasks if task.layout is not None]
    return [partial(as_read, found) for found in restorer.read_many(files, layouts)]


def parts_of(step: Step) -> list[Part]:
    """The tiles of a file that is being restored, and none of another."""
    return step.work.parts if isinstance(step, Task) and step.work is not None else []


def put(step: Step, part: Part, piece: Piece, later: bool = False) -> Step:
    """later: pasting is left to `finish`. A copy of each image would hold up the thread that drives the device."""
    assert isinstance(step, Task)
    assert step.work is not None
    step.work.put(part, piece, later)
    return step


def weigh(job: Job, step: Step) -> int:
    """About how many bytes a file takes on its way: coefficients, images and image files."""
    if isinstance(step, SideMember):
        return len(step.data)
    height, width = step.size or (0, 0)
    return len(step.item.data or b"") + height * width * (6 + 6 * job.restorer.images)


def fail(step: Step, error: Exception) -> Step:
    """Whatever a stage raises is the failure of its file, and the run goes on."""
    assert isinstance(step, Task)  # nothing is done to others
    known = isinstance(error, JpegError | EncodeError | CertificateError | WorkerError)
    reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"  # out of memory, or a bug
    return Task(replace(step.item, data=None), failed(step.record, reason, is_transient(error)))


def is_transient(error: Exception) -> bool:
    """Whether it says nothing about the file: memory, a worker process, a disk."""
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # PyTorch's on the CPU
    return no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError | WorkerError | OSError)


def claim(job: Job, items: Iterable[Item | SideMember], keys: Keys | None = None) -> Iterator[Step]:
    """Items that are not finished, as tasks; those unreadable or of a key that is taken have failed already."""
    keys = keys or Keys(per_shard=job.shards)
    for item in items:
        if isinstance(item, SideMember):
            yield item
            continue
        owner = keys.claim(item)
        record = Record(
            key=item.key,
            source=item.source,
            status="restored",
            seed=job.seed,
            mode=job.restorer.mode,
            weights=job.restorer.digest,
        )
        if item.error is not None:
            yield Task(item, failed(record, item.error, item.transient))
        elif item.data is not None and owner is not None:
            yield Task(replace(item, data=None), failed(record, f"duplicate key: {owner} has it already"))
        elif item.data is not None:
            yield Task(item, record, job.restorer.parse(item.data))


def at_once(job: Job, task: Task) -> Task:
    """All stages of a file."""
    task = prepare(job, task)
    for part in parts_of(task):
        (piece,) = job.restorer.restore_parts([part])()
        put(task, part, piece)
    return finish(job, task) if task.work is not None else task


def prepare(job: Job, task: Task) -> Task:
    """Reads the bitstream, unless DALI has; a kind that is not modelled is decoded as it is."""
    data = task.item.data
    assert data is not None  # only failed tasks have none
    found, layout = task.found, task.layout
    task = replace(task, item=replace(task.item, data=None), layout=None, found=None)
    try:
        bitstream = job.restorer.read(data, layout) if found is None else found()
    except UnsupportedJpeg as error:
        return pass_through(job, task, data, str(error))
    c = bitstream.coefficients
    record = replace(
        task.record,
        size=c.size,
        sampling=c.sampling.label,
        quality=bitstream.quality,
        tables=hashlib.blake2b(c.tables.numpy().tobytes(), digest_size=8).hexdigest(),
        coefficients=c.count,
        coefficients_from=job.restorer.options.frontend if bitstream.recovered else None,
        recovered=count_recovered(job, bitstream, data) if bitstream.recovered and job.verify else None,
    )
    return replace(task, record=record, work=job.restorer.begin(bitstream, job.seed, task.item.key))


def count_recovered(job: Job, bitstream: Bitstream, data: bytes) -> int:
    """How many recovered coefficients are the file's own. Raises BitstreamError when libjpeg-turbo cannot read it."""
    with job.restorer.stopwatch("verify"):
        own = read_bitstream(data, job.restorer.options.max_pixels)
        c = bitstream.coefficients
        return c.count - int(c.mismatches(own.coefficients))


def pass_through(job: Job, task: Task, data: bytes, reason: str) -> Task:
    """Decodes with Pillow what is not modelled, and says why."""
    with job.restorer.stopwatch("pass through"):
        try:
            plain = plain_decode(data, job.restorer.options.max_pixels)
        except BitstreamError as error:
            raise BitstreamError(f"{reason}; {error}") from error
        encoded = encode_image(plain.pixels, job.format, plain.icc, plain.exif)
    height, width = plain.pixels.shape[1:]
    record = replace(
        task.record,
        status="passed_through",
        reason=reason,
        size=(height, width),
        mode=None,
        weights=None,
        seed=None,
    )
    return replace(task, record=record, images=(encoded,))


def finish(job: Job, task: Task) -> Task:
    """Encodes the images and, if wished, checks their certificates."""
    assert task.work is not None
    restored, watch = task.work.restored(), job.restorer.stopwatch
    source, several = restored.bitstream, len(restored.sample_mismatches) > 1
    with watch("encode"):
        images = tuple(encode_image(x.numpy(), job.format, source.icc, source.exif) for x in restored.images)
    if job.verify:
        with watch("verify"):
            found = [count_mismatches(image, source) for image in images]
        if found != restored.sample_mismatches:
            raise CertificateError(
                f"libjpeg-turbo finds {found} mismatches, the certificate says {restored.sample_mismatches}"
            )
    record = replace(
        task.record,
        mismatches=restored.mismatches,
        sample_mismatches=tuple(restored.sample_mismatches) if several else None,
    )
    return replace(task, record=record, work=None, images=images)


def write(steps: Iterable[Step], sink: Sink, progress: tqdm[NoReturn], watch: Stopwatch) -> float:
    """Hands everything to the sink and returns how many megapixels were restored."""
    pixels, started = 0, time.perf_counter()
    for step in steps:
        with watch("write"):
            if isinstance(step, SideMember):
                sink.carry(step)
                continue
            with undisturbed():  # an output and its line
                record = sink.write(step.item, step.record, step.images)
        if record.status == "restored" and record.size is not None:
            pixels += record.size[0] * record.size[1] * len(record.outputs)
        if record.status == "failed":
            progress.write(f"failed: {record.source}: {record.reason}", file=sys.stderr)
        rate = pixels / 1e6 / (time.perf_counter() - started)
        progress.set_postfix_str(f"{rate:.2f} MP/s", refresh=False)
        progress.update()
    return pixels / 1e6
