"""A run from sources to sink: every input is read, restored, encoded and written, in order, and gets its manifest line.

    items → prepare (bitstream) → restore (network, exact projection) → finish (image file, verification) → sink

`prepare` and `finish` may run in worker threads, a few files ahead and behind; the rest happens here.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pipeline.bitstream import Bitstream
from pipeline.manifest import Manifest, Record, RunIdentity
from pipeline.markers import JpegError, UnsupportedJpeg
from pipeline.restorer import Restored, Restorer, plain_decode
from pipeline.sink import EncodeError, FolderSink, Format, ShardSink, Sink, encode_image
from pipeline.source import Item, Keys, SideMember, list_sources, read
from pipeline.verify import count_mismatches


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
    """One input on its way. `bitstream` until it is restored, `restored` until it is encoded, then `images`."""

    item: Item
    record: Record
    bitstream: Bitstream | None = None
    restored: Restored | None = None
    images: tuple[bytes, ...] = ()


Step = Task | SideMember


def run(job: Job) -> int:
    """Does the job and returns how many lines of the manifest say `failed`, earlier runs' included.

    Raises SourceError and SinkError when it cannot start or go on; what is finished stays finished."""
    sources = list_sources(job.input, exclude=job.output)
    samples = job.restorer.options.samples if job.restorer.options.mode == "sample" else 1
    with ExitStack() as stack:
        manifest = stack.enter_context(Manifest.open(job.output, job.identity(), job.overwrite))
        sink: Sink = stack.enter_context(
            ShardSink(manifest, sources.root, job.format, samples)
            if job.shards
            else FolderSink(manifest, job.format, samples)
        )
        pool = stack.enter_context(ThreadPoolExecutor(job.workers)) if job.workers else None
        before = sum(manifest.counts.values())
        progress = stack.enter_context(
            tqdm(total=sources.count, initial=before, unit="img", disable=job.quiet, smoothing=0.1)
        )
        steps: Iterator[Step] = claim(job, read(sources, sink.finished, sink.whole, side_members=sink.carries))
        steps = ahead(pool, lambda step: prepare(job, step), steps, 2 * job.workers)
        steps = (restore(job, step) for step in steps)
        steps = ahead(pool, lambda step: finish(job, step), steps, 2 * job.workers)
        megapixels = write(steps, sink, progress)
        sink.close()
        progress.refresh()
        elapsed = progress.format_dict["elapsed"]
        counts = dict(manifest.counts)
    if not job.quiet:
        print(summary(job, counts, sum(counts.values()) - before, megapixels, elapsed), file=sys.stderr)
    return counts.get("failed", 0)


def ahead(
    pool: ThreadPoolExecutor | None, function: Callable[[Step], Step], steps: Iterable[Step], depth: int
) -> Iterator[Step]:
    """`map(function, steps)` in order, up to `depth` of them under way in the pool; without a pool, one by one here."""
    if pool is None:
        yield from map(function, steps)
        return
    waiting: deque[Future[Step]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(function, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def claim(job: Job, items: Iterable[Item | SideMember]) -> Iterator[Step]:
    """Items that are not finished, as tasks; unreadable ones and later ones of a key that is taken have failed already."""
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
        if item.data is None and item.error is None:
            continue
        if item.error is not None:
            record = failed(record, item.error)
        elif owner is not None:
            record = failed(record, f"duplicate key: {owner} has it already")
        yield Task(item, record)


def failed(record: Record, reason: str) -> Record:
    return replace(record, status="failed", reason=reason)


def prepare(job: Job, step: Step) -> Step:
    """Reads the bitstream; a kind that is not modelled is decoded as it is."""
    if isinstance(step, SideMember) or step.record.status == "failed" or step.item.data is None:
        return step
    data = step.item.data
    try:
        bitstream = job.restorer.read(data)
    except UnsupportedJpeg as error:
        return pass_through(job, step, data, str(error))
    except JpegError as error:
        return replace(step, record=failed(step.record, str(error)))
    c = bitstream.coefficients
    record = replace(
        step.record,
        size=c.size,
        sampling=c.sampling.label,
        quality=bitstream.quality,
        tables=hashlib.blake2b(c.tables.numpy().tobytes(), digest_size=8).hexdigest(),
        coefficients=c.count,
    )
    return replace(step, record=record, bitstream=bitstream)


def pass_through(job: Job, task: Task, data: bytes, reason: str) -> Task:
    """Decodes with Pillow what we do not model, and says why."""
    with job.restorer.stopwatch("pass through"):
        try:
            image, pixels = plain_decode(data)
            encoded = encode_image(pixels.numpy(), job.format, image.info.get("icc_profile"), image.info.get("exif"))
        except (OSError, ValueError, SyntaxError, EncodeError) as error:
            return replace(task, record=failed(task.record, f"{reason}; plain decoding: {error}"))
    record = replace(
        task.record,
        status="passed_through",
        reason=reason,
        size=tuple(pixels.shape[1:]),
        mode=None,
        weights=None,
        seed=None,
    )
    return replace(task, record=record, images=(encoded,))


def restore(job: Job, step: Step) -> Step:
    """The network and the exact projection."""
    if isinstance(step, SideMember) or step.bitstream is None:
        return step
    restored = job.restorer.restore_bitstream(step.bitstream, job.seed, step.item.key)
    several = len(restored.mismatches) > 1
    record = replace(
        step.record,
        mismatches=sum(restored.mismatches),
        sample_mismatches=tuple(restored.mismatches) if several else None,
    )
    return replace(step, record=record, bitstream=None, restored=restored)


def finish(job: Job, step: Step) -> Step:
    """Encodes the images and, if wished, checks their certificates."""
    if isinstance(step, SideMember) or step.restored is None:
        return step
    restored, record = step.restored, step.record
    try:
        with job.restorer.stopwatch("encode"):
            source = restored.bitstream
            images = tuple(encode_image(x.numpy(), job.format, source.icc, source.exif) for x in restored.images)
    except EncodeError as error:
        return replace(step, record=failed(record, str(error)), restored=None)
    if job.verify:
        with job.restorer.stopwatch("verify"):
            found = [count_mismatches(image, restored.bitstream) for image in images]
        if found != restored.mismatches:
            reason = f"verification: libjpeg-turbo finds {found} mismatches, the certificate says {restored.mismatches}"
            return replace(step, record=failed(record, reason), restored=None)
    return replace(step, record=record, restored=None, images=images)


def write(steps: Iterable[Step], sink: Sink, progress: tqdm[None]) -> float:
    """Hands everything to the sink and returns how many megapixels were restored."""
    pixels = 0
    for step in steps:
        if isinstance(step, SideMember):
            sink.carry(step)
            continue
        record = sink.write(step.item, step.record, step.images)
        if record.status == "restored" and record.size is not None:
            pixels += record.size[0] * record.size[1] * max(1, len(record.outputs))
        if record.status == "failed":
            progress.write(f"failed: {record.source}: {record.reason}", file=sys.stderr)
        progress.update()
        progress.set_postfix(
            {"MP/s": f"{pixels / 1e6 / max(1e-9, progress.format_dict['elapsed']):.2f}"}, refresh=False
        )
    return pixels / 1e6


def summary(job: Job, counts: dict[str, int], done: int, megapixels: float, seconds: float) -> str:
    """The closing lines: what became of the inputs, how fast, and where the time went."""
    fates = ", ".join(
        f"{counts.get(status, 0)} {status.replace('_', ' ')}" for status in ("restored", "passed_through", "failed")
    )
    restorer = job.restorer
    lines = [
        f"{sum(counts.values())} inputs: {fates} ({done} in this run). Manifest: {job.output / 'manifest.jsonl'}",
        f"{megapixels:.2f} MP in {seconds:.1f} s, {megapixels / max(seconds, 1e-9):.2f} MP/s, {done / max(seconds, 1e-9):.2f} "
        f"images/s on {restorer.device}, network in {str(restorer.dtype).removeprefix('torch.')}",
    ]
    if restorer.stopwatch.stages:
        lines.append(restorer.stopwatch.table(megapixels))
    return "\n".join(lines)
