"""A run from sources to sink: every input is read, restored, encoded and written, in order, and gets its manifest line.

    items → prepare (bitstream) → restore (network, exact projection) → finish (image file, verification) → sink

`prepare` and `finish` may run in worker threads, a few files ahead and behind; the rest happens here.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, get_args

from tqdm import tqdm

from pipeline.bitstream import Bitstream
from pipeline.manifest import MANIFEST, Manifest, Record, RunIdentity, SinkError, Status
from pipeline.markers import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.plain import plain_decode
from pipeline.restorer import Restored, Restorer
from pipeline.sink import EncodeError, FolderSink, Format, ShardSink, Sink, encode_image
from pipeline.source import Item, Keys, SideMember, Sources, list_sources, read
from pipeline.stopwatch import Stopwatch
from pipeline.verify import count_mismatches


class CertificateError(Exception):
    """An output does not have the coefficients that its certificate promises."""


@dataclass(frozen=True)
class Job:
    """What `run` does; the fields are the command line's options."""

    restorer: Restorer
    input: Path
    output: Path
    seed: int = 0
    format: Format = "png"
    shards: bool = False
    workers: int = 0
    overwrite: bool = False
    verify: bool = False
    quiet: bool = False

    def identity(self) -> RunIdentity:
        """What must not change when the run goes on."""
        options = self.restorer.options
        return RunIdentity(
            weights=self.restorer.digest,
            mode=options.mode,
            seed=self.seed,
            samples=options.samples,
            format=self.format,
            shards=self.shards,
            input=str(self.input.resolve()),
        )


@dataclass(frozen=True)
class Task:
    """One input on its way. The item's data until they are read, `bitstream` until it is restored, `restored` until it
    is encoded, then `images`."""

    item: Item
    record: Record
    bitstream: Bitstream | None = None
    restored: Restored | None = None
    images: tuple[bytes, ...] = ()


Step = Task | SideMember
Stage = Callable[[Job, Task], Task]


def run(job: Job) -> int:
    """Does the job and returns how many lines of the manifest say `failed`, earlier runs' included.

    Raises SourceError and SinkError when it cannot start or go on; what is finished stays finished."""
    sources = list_sources(job.input, exclude=job.output)
    if job.output.exists() and job.output.samefile(sources.root):
        raise SinkError(f"{job.output}: the input's own folder, whose files outputs could replace; choose another one")
    with ExitStack() as stack:
        manifest = stack.enter_context(Manifest.open(job.output, job.identity(), job.overwrite))
        sink = stack.enter_context(open_sink(job, manifest, sources))
        pool = stack.enter_context(worker_pool(job))
        before = manifest.counts.total()
        progress = stack.enter_context(progress_bar(job, sources.count, before))
        watch = job.restorer.stopwatch
        started = time.perf_counter()
        items = watch.each("read", read(sources, sink.finished, sink.whole, side_members=sink.carries))
        steps = ahead(pool, job, prepare, claim(job, items))
        steps = (attempt(job, restore, step) for step in steps)
        steps = ahead(pool, job, finish, steps)
        megapixels = write(steps, sink, progress, watch)
        with watch("write"):
            sink.close()
        counts = manifest.counts
    if not job.quiet:
        seconds = time.perf_counter() - started
        print(summary(job, counts, counts.total() - before, megapixels, seconds), file=sys.stderr)
    return counts["failed"]


def open_sink(job: Job, manifest: Manifest, sources: Sources) -> Sink:
    samples = job.restorer.options.samples if job.restorer.options.mode == "sample" else 1
    if job.shards:
        return ShardSink(manifest, sources.root, job.format, samples)
    return FolderSink(manifest, job.format, samples)


@contextmanager
def worker_pool(job: Job) -> Iterator[ThreadPoolExecutor | None]:
    """The worker threads, None for none. An interrupted run waits only for what they have begun."""
    if not job.workers:
        yield None
        return
    watch = job.restorer.stopwatch
    pool = ThreadPoolExecutor(job.workers, "worker", watch.add_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        watch.forget_workers()


def progress_bar(job: Job, total: int | None, done: int) -> tqdm[NoReturn]:
    where = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" if total else "{n_fmt} images [{elapsed}"
    bar = where + ", {rate_noinv_fmt}{postfix}]"
    return tqdm(total=total, initial=done, unit=" images", disable=job.quiet, smoothing=0.1, bar_format=bar)


def ahead(pool: ThreadPoolExecutor | None, job: Job, stage: Stage, steps: Iterable[Step]) -> Iterator[Step]:
    """Each step's `attempt`, in order; with a pool, as many ahead of their turn as it has threads."""
    if pool is None:
        yield from (attempt(job, stage, step) for step in steps)
        return
    waiting: deque[Future[Step]] = deque()
    for step in steps:
        waiting.append(pool.submit(attempt, job, stage, step))
        if len(waiting) > job.workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def attempt(job: Job, stage: Stage, step: Step) -> Step:
    """The stage's result. Whatever it raises is the failure of this file, and the run goes on."""
    if isinstance(step, SideMember) or step.record.status != "restored":
        return step
    try:
        return stage(job, step)
    except (JpegError, EncodeError, CertificateError) as error:
        reason = str(error)
    except Exception as error:  # out of memory, or a bug
        reason = f"unexpected {type(error).__name__}: {error}"
    return Task(replace(step.item, data=None), failed(step.record, reason))


def claim(job: Job, items: Iterable[Item | SideMember]) -> Iterator[Step]:
    """Items that are not finished, as tasks; those unreadable or of a key that is taken have failed already."""
    keys = Keys(per_shard=job.shards)
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
            mode=job.restorer.options.mode,
            weights=job.restorer.digest,
        )
        if item.error is not None:
            yield Task(item, failed(record, item.error))
        elif item.data is not None:
            yield Task(item, record if owner is None else failed(record, f"duplicate key: {owner} has it already"))


def failed(record: Record, reason: str) -> Record:
    return replace(record, status="failed", reason=reason, mismatches=None, sample_mismatches=None)


def prepare(job: Job, task: Task) -> Task:
    """Reads the bitstream; a kind that is not modelled is decoded as it is."""
    data = task.item.data
    assert data is not None  # only failed tasks have none
    task = replace(task, item=replace(task.item, data=None))
    try:
        bitstream = job.restorer.read(data)
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
    )
    return replace(task, record=record, bitstream=bitstream)


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


def restore(job: Job, task: Task) -> Task:
    """The network and the exact projection."""
    assert task.bitstream is not None
    restored = job.restorer.restore_bitstream(task.bitstream, job.seed, task.item.key)
    several = len(restored.sample_mismatches) > 1
    record = replace(
        task.record,
        mismatches=restored.mismatches,
        sample_mismatches=tuple(restored.sample_mismatches) if several else None,
    )
    return replace(task, record=record, bitstream=None, restored=restored)


def finish(job: Job, task: Task) -> Task:
    """Encodes the images and, if wished, checks their certificates."""
    restored, watch = task.restored, job.restorer.stopwatch
    assert restored is not None
    source = restored.bitstream
    with watch("encode"):
        images = tuple(encode_image(x.numpy(), job.format, source.icc, source.exif) for x in restored.images)
    if job.verify:
        with watch("verify"):
            found = [count_mismatches(image, source) for image in images]
        if found != restored.sample_mismatches:
            raise CertificateError(
                f"libjpeg-turbo finds {found} mismatches, the certificate says {restored.sample_mismatches}"
            )
    return replace(task, restored=None, images=images)


def write(steps: Iterable[Step], sink: Sink, progress: tqdm[NoReturn], watch: Stopwatch) -> float:
    """Hands everything to the sink and returns how many megapixels were restored."""
    pixels, started = 0, time.perf_counter()
    for step in steps:
        with watch("write"):
            if isinstance(step, SideMember):
                sink.carry(step)
                continue
            record = sink.write(step.item, step.record, step.images)
        if record.status == "restored" and record.size is not None:
            pixels += record.size[0] * record.size[1] * len(record.outputs)
        if record.status == "failed":
            progress.write(f"failed: {record.source}: {record.reason}", file=sys.stderr)
        rate = pixels / 1e6 / (time.perf_counter() - started)
        progress.set_postfix_str(f"{rate:.2f} MP/s", refresh=False)
        progress.update()
    return pixels / 1e6


def summary(job: Job, counts: Counter[str], done: int, megapixels: float, seconds: float) -> str:
    """The closing lines: what became of the inputs, how fast, and where the time went."""
    fates = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in get_args(Status))
    restorer = job.restorer
    lines = [
        f"{counts.total()} inputs: {fates} ({done} in this run). Manifest: {job.output / MANIFEST}",
        f"{megapixels:.2f} MP in {seconds:.1f} s, {megapixels / seconds:.2f} MP/s, {done / seconds:.2f} images/s "
        f"on {restorer.device}, network in {str(restorer.dtype).removeprefix('torch.')}",
        restorer.stopwatch.table(megapixels),
    ]
    return "\n".join(lines)
