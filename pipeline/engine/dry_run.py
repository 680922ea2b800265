"""--dry-run: reads all headers, restores a few files to measure the speed, and writes nothing."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NoReturn

from tqdm import tqdm

from pipeline.engine.device import one_thread
from pipeline.engine.job import Job
from pipeline.engine.progress import progress_bar, time_left
from pipeline.engine.resources import RunResources, open_resources
from pipeline.engine.run import input_total, list_inputs, make_tasks, wanted_names
from pipeline.engine.task import Step, Task
from pipeline.inputs.keys import Keys
from pipeline.inputs.remote import RemoteError
from pipeline.inputs.source import Item, ReadPosition, SideMember, read
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.fallback import fallback_open
from pipeline.outputs.manifest import finished_inputs
from pipeline.outputs.record import FinishedInputs, Record, SinkError
from pipeline.report.statistics import Reasons, Statistics

RESERVOIR_FILES = 64
"""Files in a random sample, some of which are restored to measure the speed."""

RESERVOIR_BYTES = 256 << 20
"""Bytes of a sample's files in memory."""

MEASURED_MEGAPIXELS, MEASURED_MEGAPIXELS_GPU = 4.0, 200.0
"""Megapixels that are restored to measure the speed: per worker on a CPU, and in total on a GPU."""

MAX_REPEATS = 8
"""How often each file of a small sample is restored, at most."""


@dataclass
class Reservoir:
    """Reservoir sampling (Vitter's algorithm R) of a stream of files, with a fixed seed: RESERVOIR_FILES files, or
    fewer if they are larger than RESERVOIR_BYTES together."""

    files: list[Item] = field(default_factory=list)
    seen: int = 0
    bytes: int = 0
    limit: int = RESERVOIR_FILES
    random_state: random.Random = field(default_factory=lambda: random.Random(0))

    def offer(self, item: Item) -> None:
        """Adds a file to the stream."""
        self.seen += 1
        if len(self.files) < self.limit:
            self._keep(item)
        elif self.random_state.randrange(self.seen) < self.limit:
            self._drop()
            self._keep(item)
        while self.bytes > RESERVOIR_BYTES and len(self.files) > 1:
            self._drop()
            self.limit = len(self.files)

    def _keep(self, item: Item) -> None:
        self.files.append(item)
        self.bytes += len(item.data or b"")

    def _drop(self) -> None:
        item = self.files.pop(self.random_state.randrange(len(self.files)))
        self.bytes -= len(item.data or b"")


@dataclass
class Survey:
    """What would happen to the inputs.

    finished: number of inputs that earlier runs have finished.
    restored, passed_through: samples of these files."""

    finished: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    restored: Reservoir = field(default_factory=Reservoir)
    passed_through: Reservoir = field(default_factory=Reservoir)


@dataclass(frozen=True)
class Throughput:
    """A measurement: seconds for so many files (the same ones again, if there are few), megapixels and bytes of
    outputs."""

    seconds: float
    files: int
    distinct: int
    megapixels: float
    bytes: int


def dry_run(job: Job) -> str:
    """A description of what `run` would do. Raises SourceError, and SinkError if the output cannot be read."""
    sources = list_inputs(job)
    with ExitStack() as stack:
        stack.enter_context(one_thread(job.restorer.device))
        resources = stack.enter_context(open_resources(job))
        done, position, total = finished_before(job), ReadPosition(), input_total(sources.count, job.limit)
        items = read(sources, done.finished, wanted=wanted_names(job), position=position)
        left = time_left(position, None if total is not None else sources.shard_bytes)
        with progress_bar(total, 0, job.quiet) as progress:
            found = survey(job, islice(items, job.limit), Keys(job.shards, done.key_taken), progress, left)
        restored, passed_through = (measure(resources, sample) for sample in (found.restored, found.passed_through))
    return describe(job, resources.workers, found, restored, passed_through)


def finished_before(job: Job) -> FinishedInputs:
    """What an earlier run has finished. Raises SinkError if the folder holds the outputs of another run or cannot be
    read."""
    if job.overwrite:
        return FinishedInputs()
    try:
        return finished_inputs(job.output, job.identity(), job.retry_failed)
    except FileNotFoundError:
        return FinishedInputs()
    except (OSError, RemoteError) as error:
        raise SinkError(f"{job.output}: cannot be read: {error}") from error


def survey(
    job: Job,
    items: Iterable[Item | SideMember],
    keys: Keys,
    progress: tqdm[NoReturn],
    left: Callable[[], str] = lambda: "",
) -> Survey:
    """Reads every header."""
    found = Survey()
    for item in items:
        assert isinstance(item, Item)  # side members are not requested
        steps = list(make_tasks(job, [item], keys))
        found.finished += not steps
        for step in steps:
            record = expected(job, step)
            found.statistics.note(record)
            if record.status != "failed" and item.data is not None:
                (found.restored if record.status == "restored" else found.passed_through).offer(item)
        progress.set_postfix_str(left().removeprefix(", "), refresh=False)
        progress.update()
    return found


def expected(job: Job, step: Step) -> Record:
    """The manifest line that an input will get, as far as its header shows."""
    assert isinstance(step, Task)
    file = step.file
    if file is None:
        return step.record
    record = replace(file.describe(step.record), outputs=("",) * job.restorer.images)
    if isinstance(file.layout, UnsupportedJpeg):
        try:
            if job.filters.passed_through == "decode":
                fallback_open(file.data, job.restorer.options.max_pixels)
        except BitstreamError as error:
            return record.failed(f"{file.layout}; {error}")
        return replace(record, status="passed_through", reason=str(file.layout))
    if isinstance(file.layout, JpegError):
        return record.failed(str(file.layout))
    return record


def measure(resources: RunResources, sample: Reservoir) -> Throughput | None:
    """Restores some files of a sample and discards the outputs. None if the sample is empty."""
    files = sample.files.copy()
    sample.random_state.shuffle(files)
    times, written, sources, started = [], 0, set(), time.perf_counter()
    with resources.scheduler() as scheduler:
        for step in scheduler.run(measured_tasks(resources, files)):
            if isinstance(step, Task) and step.record.size is not None:
                times.append((time.perf_counter() - started, step.record.size[0] * step.record.size[1]))
                written += sum(map(len, step.images))
                sources.add(step.record.source)
    if not times:
        return None
    pixels, done, seconds = sum(size for _, size in times), len(times), times[-1][0]
    if len(times) >= 2 * resources.workers + 2:  # exclude the first file, which includes the workers' start
        seconds, pixels, done = seconds - times[0][0], pixels - times[0][1], done - 1
        written = written * done // len(times)
    return Throughput(seconds, done, len(sources), pixels / 1e6, written)


def measured_tasks(resources: RunResources, files: list[Item]) -> Iterator[Step]:
    """Tasks of a sample's files, repeated if they are few, until there are enough megapixels."""
    job = resources.job
    left = MEASURED_MEGAPIXELS_GPU if job.restorer.batched else MEASURED_MEGAPIXELS * resources.workers
    for item in files * MAX_REPEATS:
        for step in make_tasks(job, [item]):
            if left <= 0 or not isinstance(step, Task):
                return
            height, width = (step.file.size if step.file is not None else None) or (1000, 1000)
            left -= height * width / 1e6
            yield step


def describe(
    job: Job, workers: int, found: Survey, restored: Throughput | None, passed_through: Throughput | None
) -> str:
    """The description, line by line."""
    statistics = found.statistics
    counts = statistics.counts
    lines = [f"{counts.total() + found.finished} inputs, nothing written"]
    if found.finished:
        lines.append(f"{found.finished:>9} finished by an earlier run")
    megapixels = statistics.megapixels / job.restorer.images
    lines.append(f"{counts['restored']:>9} to restore, {megapixels:.1f} megapixels")
    tens: Counter[int] = Counter()
    for quality, count in statistics.qualities.items():
        tens[min(quality // 10 * 10, 90)] += count
    lines += [f"{n:>17} of quality {ten} to {ten + 9 + (ten == 90)}" for ten, n in sorted(tens.items())]
    lines += [f"{n:>17} {sampling}" for sampling, n in statistics.samplings.most_common()]
    lines += reason_lines(counts["passed_through"], "to pass through", statistics.passed_through)
    lines += reason_lines(counts["failed"], "that will fail", statistics.failed)
    shares = []  # of each kind: the measurement, and by what factor the run is larger
    if restored is not None and restored.megapixels:
        shares.append((restored, megapixels / restored.megapixels))
    if passed_through is not None:
        shares.append((passed_through, counts["passed_through"] / passed_through.files))
    if shares:
        seconds = sum(x.seconds * share for x, share in shares)
        size = sum(x.bytes * share for x, share in shares)
        duration = f"about {tqdm.format_interval(seconds)}" if seconds >= 1 else "less than a second"
        distinct = sum(x.distinct for x, _ in shares)
        lines.append(
            f"{duration} on {job.restorer.device} with {workers} {'worker' if workers == 1 else 'workers'} and "
            f"{size / 1e6:,.{1 if size > 1e6 else 2}f} MB of outputs, estimated from {distinct} of the files"
        )
    return "\n".join(lines)


def reason_lines(count: int, what: str, reasons: Reasons) -> list[str]:
    """A line with the count, and a line for each reason."""
    if not count:
        return []
    return [f"{count:>9} {what}"] + [f"{group.count:>17} {group.pattern}" for group in reasons.groups()]
