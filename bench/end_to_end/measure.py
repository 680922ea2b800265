"""The measurements, each in a fresh process: the pipeline on shards; and, on the same files with as many workers, the
network alone and Pillow's decode and PNG."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from bench.pillow import decode, encode_png
from pipeline.engine import run as engine
from pipeline.engine.device import dtype_name, one_thread
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory
from pipeline.engine.options import Mode, Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import item_stage
from pipeline.engine.stopwatch import Stopwatch, Times
from pipeline.engine.transfers import TileTask
from pipeline.engine.worker import WorkerLauncher
from pipeline.inputs.listing import Sources, list_sources
from pipeline.inputs.source import Item, read
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.record import Record
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import ManifestWriter, OutputNames, Sink

T = TypeVar("T")

PILLOW_DECODE, PILLOW_PNG = "Pillow decode", "Pillow PNG"


class BenchError(Exception):
    """The figures would not be of what was asked for."""


@dataclass(frozen=True)
class Setup:
    """How files are restored; the fields are the command line's options. workers: at least 1. throttle: the output
    disk's limit in bytes a second; 0: none."""

    weights: str
    mode: Mode | None
    samples: int
    device: str
    dtype: str
    workers: int
    throttle: float = 0.0

    def restorer(self) -> Restorer:
        options = Options(self.mode, self.samples)
        return Restorer.from_pretrained(self.weights, self.device, self.dtype, options)


Factory = Callable[[Setup, Path], Restorer]
"""Makes a restorer for the shards in a folder."""


@dataclass(frozen=True)
class Run:
    """A run of the pipeline, from listing the shards to closing the output's. images, megapixels: restored, according
    to the manifest. mismatches: the sum of the certificates. seconds: wall time. cpu: seconds, user and system, of all
    processes. gpu_bytes: PyTorch's peak."""

    images: int
    megapixels: float
    mismatches: int
    seconds: float
    cpu: float
    stages: dict[str, Times]
    mode: Mode
    device: str
    dtype: str
    batched: bool
    gpu_bytes: int


@dataclass(frozen=True)
class Others:
    """rate: megapixels a second of the network alone, in all workers at once, on `batch` tiles of `tile` (height,
    width). enlarged: pixels given to the network for one of the image, with halos, padding and draws. pillow: times of
    decoding and of writing PNG, summed over the files."""

    rate: float
    tile: tuple[int, int]
    batch: int
    enlarged: float
    pillow: dict[str, Times]

    @property
    def ceiling(self) -> float:
        """Megapixels of images a second, if only the network took time."""
        return self.rate / self.enlarged


def restore_shards(setup: Setup, shards: Path, warm_up: Path, output: Path, factory: Factory | None = None) -> Run:
    """Restores the shards of `warm_up`, which the figures do not include, then `shards`, into `output`. factory: makes
    another restorer than the setup's. Raises BenchError if a file fails, and what `Restorer.from_pretrained` and
    `engine.run` raise."""
    restorer = factory(setup, shards) if factory else setup.restorer()
    begin = partial(Job, restorer, shards=True, quiet=True)
    engine.run(begin((warm_up,), output / "warm-up", workers=1))
    restorer.stopwatch = Stopwatch()
    on_gpu = restorer.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(restorer.device)
        torch.cuda.reset_peak_memory_stats(restorer.device)
    cpu, start = cpu_seconds(), time.perf_counter()
    sink_of = partial(slow_sink, setup.throttle) if setup.throttle else None
    engine.run(begin((shards,), output / "restored", workers=setup.workers), sink_of)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    images, pixels, mismatches = count(output / "restored" / MANIFEST)
    return Run(
        images=images,
        megapixels=pixels / 1e6,
        mismatches=mismatches,
        seconds=seconds,
        cpu=cpu,
        stages=dict(restorer.stopwatch.stages),
        mode=restorer.mode,
        device=torch.cuda.get_device_name(restorer.device) if on_gpu else "CPU",
        dtype=dtype_name(restorer.dtype),
        batched=restorer.batched,
        gpu_bytes=torch.cuda.max_memory_reserved(restorer.device) if on_gpu else 0,
    )


class SlowSink(ShardSink):
    """Shards on a disk that is limited to `throttle` bytes a second."""

    throttle = 0.0

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        time.sleep(sum(map(len, images)) / self.throttle)
        return super().write(item, record, images)


def slow_sink(throttle: float, job: Job, manifest: ManifestWriter, sources: Sources) -> Sink:
    sink = SlowSink(manifest, sources, OutputNames(job.format, job.restorer.images))
    sink.throttle = throttle
    return sink


def count(manifest: Path) -> tuple[int, int, int]:
    """(files, pixels, mismatches) of a manifest. Raises BenchError unless every file was restored."""
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for record in records:
        if record["status"] != "restored":
            raise BenchError(f"{record['source']} {record['status'].replace('_', ' ')}: {record['reason']}")
    pixels = sum(record["size"][0] * record["size"][1] for record in records)
    return len(records), pixels, sum(record["mismatches"] for record in records)


def cpu_seconds() -> float:
    """User and system, of this process and of its descendants that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_others(setup: Setup, shards: Path, seconds: float) -> Others:
    """seconds: for timing the network, about. Raises what `Restorer.from_pretrained` raises."""
    stopwatch, first = Stopwatch(), next(files(shards))
    by_pillow(Stopwatch(), first)
    in_workers(partial(by_pillow, stopwatch), files(shards), setup.workers, stopwatch)
    restorer = setup.restorer()  # only now: a process that uses a GPU must not fork
    with one_thread(restorer.device):
        c = restorer.read(first).coefficients
        parts = restorer.tile_tasks(c, (0,))
        shapes = Counter(map(restorer.shape, parts))
        (tile, _), *_ = shapes.most_common(1)
        part = next(part for part in parts if restorer.shape(part) == tile)
        if restorer.batched:
            rate = network_on_gpu(restorer, part, seconds)
        else:
            rate = network_on_cpu(restorer, part, setup.workers, seconds)
    given = sum(height * width * number for (height, width), number in shapes.items())
    enlarged = setup.samples * given / (c.size[0] * c.size[1])
    return Others(rate, tile, restorer.max_batch(tile), enlarged, dict(stopwatch.stages))


def files(shards: Path) -> Iterator[bytes]:
    for item in read(list_sources(shards)):
        if isinstance(item, Item) and item.data is not None:
            yield item.data


def in_workers(function: Callable[[T], None], items: Iterable[T], workers: int, stopwatch: Stopwatch) -> None:
    """Calls the function for each item in worker processes such as the pipeline's, forked here. The stopwatch receives
    the times that its copies in them measure."""

    def call(item: T) -> T:
        function(item)
        return item

    stage = item_stage(call, lambda item: True)
    processes = WorkerLauncher([stage.do], SharedMemory(1), partial(torch.set_num_threads, 1), stopwatch)
    with processes, Scheduler([stage], fail, workers=workers, processes=processes) as scheduler:
        for _ in scheduler.run(items):
            pass


def fail(item: object, error: Exception) -> NoReturn:
    raise error


def draw(restorer: Restorer, part: TileTask) -> Callable[[], object]:
    """One pass of the network over a full batch of copies of a tile."""
    batch = restorer.max_batch(restorer.shape(part))
    parts = [*restorer.load([part])] * batch
    decoded = restorer.decode(parts)
    return lambda: restorer.draw(parts, decoded, [(number,) for number in range(batch)])


def network_on_cpu(restorer: Restorer, part: TileTask, workers: int, seconds: float) -> float:
    """Megapixels of tiles a second, in all workers at once, each with its own tiles."""
    once, stopwatch = draw(restorer, part), Stopwatch()
    once()
    start = time.perf_counter()
    once()
    passes = workers * max(3, round(seconds / (time.perf_counter() - start)))

    def timed(number: int) -> None:
        with stopwatch("network"):
            once()

    in_workers(timed, range(passes), workers, stopwatch)
    height, width = restorer.shape(part)
    return workers * passes * height * width / stopwatch.stages["network"].wall / 1e6


def network_on_gpu(restorer: Restorer, part: TileTask, seconds: float) -> float:
    """The same of one GPU, on full batches; it synchronises only after the last."""
    once, (height, width) = draw(restorer, part), restorer.shape(part)

    def timed(passes: int) -> float:
        torch.cuda.synchronize(restorer.device)
        start = time.perf_counter()
        for _ in range(passes):
            once()
        torch.cuda.synchronize(restorer.device)
        return time.perf_counter() - start

    timed(3)
    passes = max(3, round(3 * seconds / timed(3)))
    return passes * restorer.max_batch((height, width)) * height * width / timed(passes) / 1e6


def by_pillow(stopwatch: Stopwatch, data: bytes) -> None:
    """Decodes, and writes as PNG."""
    with stopwatch(PILLOW_DECODE):
        image = decode(data)
    with stopwatch(PILLOW_PNG):
        encode_png(image)
