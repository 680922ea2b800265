"""The way of a JPEG file, stage by stage.

    item → [read_together] → read_file → tiles → write_images → sink

    read_together   with DALI as front end: coefficients of many files at once, from the pixels that it decodes
    read_file       the entropy-coded data become coefficients; a kind that is not modelled is decoded as it is
    tiles           decode, network, exact projection: the Restorer's, by tiles, on a GPU in batches of many files
    write_images    image files, and with --verify their independent check

Worker processes do all that is done file by file, and on a CPU the tiles. A file's coefficients and images lie in
memory that processes share (memory.Buffers), and stay there. On a CPU a file that is a single tile is restored
`at_once`, by one process that needs no such memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.job import Job
from pipeline.engine.memory import Buffers, SharedMemory, bytes_needed
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import Restored, Work
from pipeline.engine.stage import Stage, whole
from pipeline.engine.worker import WorkerError
from pipeline.inputs.source import Item, SideMember
from pipeline.jpeg.bitstream import Bitstream, Layout, read_bitstream
from pipeline.jpeg.dali_frontend import MAX_BATCH as DALI_BATCH
from pipeline.jpeg.dali_frontend import as_read
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.fallback import plain_decode
from pipeline.outputs.formats import EncodeError, encode_image
from pipeline.outputs.record import Record
from pipeline.outputs.sink import failed
from pipeline.outputs.verify import count_mismatches

MESSAGE, MESSAGE_FILES = 1 << 20, 16
"""Bytes and number of the files that a process is sent together: what a message costs is much for a small file."""


class CertificateError(Exception):
    """An output does not have the coefficients that its certificate promises."""


@dataclass(frozen=True)
class Unread:
    """A file as it came. layout: what its header says. memory: what the processes share of it, if they do. found:
    gives or raises what DALI has made of it, if that is the front end."""

    data: bytes
    layout: Layout | JpegError
    memory: Tensor | None = None
    found: Callable[[], Bitstream] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), if it can be read."""
        return self.layout.header.size if isinstance(self.layout, Layout) else None

    def buffers(self, images: int) -> Buffers | None:
        """Where its coefficients and so many images go, unless each process has its own."""
        if self.memory is None or not isinstance(self.layout, Layout):
            return None
        return Buffers.within(self.memory, self.layout.sampling, self.layout.header.size, images)


@dataclass(frozen=True)
class Plain:
    """An image file that was decoded as it is, for a reason, and its (height, width)."""

    image: bytes
    size: tuple[int, int]
    reason: str


@dataclass(frozen=True)
class Read:
    """images: where the restored ones go, if processes share that. recovered: how many coefficients are the file's own,
    where DALI has recovered them and --verify asks."""

    bitstream: Bitstream
    images: Tensor | None
    recovered: int | None


@dataclass(frozen=True)
class Task:
    """One input on its way: `file` until it is read, `work` until it is restored, then `images`. The item has no data.
    memory: what the processes share of it, once it is read."""

    item: Item
    record: Record
    file: Unread | None = None
    memory: Tensor | None = None
    work: Work | None = None
    images: tuple[bytes, ...] = ()


Step = Task | SideMember


def stages(job: Job) -> list[Stage[Step]]:
    """What is done with each input. What has failed, is done or is no image passes by."""
    restorer = job.restorer
    reading: Stage[Step] = Stage(
        split=files_of,
        do=lambda files: lambda: [read_file(job, file) for file in files],
        take=partial(take_read, job),
        kind=lambda file: files_together(job, file.size or (0, 0)),
        max_batch=lambda kind: kind,
    )
    writing: Stage[Step] = Stage(
        split=results_of,
        do=lambda results: lambda: [write_images(job, *result) for result in results],
        take=take_images,
        kind=lambda result: files_together(job, result[0].bitstream.coefficients.size),
        max_batch=lambda kind: kind,
    )
    every = [reading, restorer.tiles_stage(work_of), writing]
    if restorer.dali is not None:
        together: Stage[Step] = Stage(
            split=files_of,
            do=lambda files: partial(read_together, restorer, files),
            take=take_found,
            place="device",
            max_batch=lambda kind: DALI_BATCH,
        )
        return [together, *every]
    return every if restorer.batched else [whole(partial(at_once, job), shares_nothing), *every]


def is_small(job: Job, step: Step) -> bool:
    """Whether one process does all of it, without a device: what is a single tile, and what has none."""
    if not isinstance(step, Task) or step.file is None:
        return False
    restorer, size = job.restorer, step.file.size
    return not (restorer.batched or restorer.dali) and (size is None or len(restorer.tiles(size)) == 1)


def shares_nothing(step: Step) -> bool:
    """Whether it has no part of the memory that processes share: it is small, or there is one worker."""
    return isinstance(step, Task) and step.file is not None and step.file.memory is None


def weigh(job: Job, size: tuple[int, int]) -> int:
    """About how many bytes a file takes on its way: coefficients, images and image files."""
    return size[0] * size[1] * (6 + 6 * job.restorer.images)


def files_together(job: Job, size: tuple[int, int]) -> int:
    """How many files of a size are sent together."""
    return max(1, min(MESSAGE_FILES, MESSAGE // (1 + weigh(job, size))))


class TooLargeError(MemoryError):
    """A file takes more than all of the memory that processes share."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"takes {size >> 20} MiB of memory that processes share, which can have {limit >> 20} MiB here "
            "(ulimit -v): a higher limit, or --workers 1, which shares none"
        )


class Admission:
    """Lets files in as long as they weigh no more than `limit` bytes together, with their part of the shared memory."""

    def __init__(self, job: Job, limit: int, memory: SharedMemory | None) -> None:
        self._job, self._limit, self._memory, self._weight = job, limit, memory, 0

    def __call__(self, step: Step, alone: bool) -> tuple[Step, Callable[[], None]] | None:
        """See scheduler.Admit."""
        weight = self._weigh(step)
        if not alone and self._weight + weight > self._limit:
            return None
        piece = None
        layout = step.file.layout if isinstance(step, Task) and step.file is not None else None
        if isinstance(layout, Layout) and self._memory is not None and not is_small(self._job, step):
            size = bytes_needed(layout.sampling, layout.header.size, self._job.restorer.images)
            piece = self._memory.allocate(size)
            if piece is None and not alone:
                return None
            step = with_memory(step, piece) if piece is not None else fail(step, TooLargeError(size, self._memory.size))
        self._weight += weight
        return step, partial(self._release, weight, piece)

    def _weigh(self, step: Step) -> int:
        if isinstance(step, SideMember):
            return len(step.data)
        return 0 if step.file is None else len(step.file.data) + weigh(self._job, step.file.size or (0, 0))

    def _release(self, weight: int, piece: Tensor | None) -> None:
        self._weight -= weight
        if self._memory is not None and piece is not None:
            self._memory.free(piece)


def with_memory(step: Step, piece: Tensor) -> Step:
    assert isinstance(step, Task)
    assert step.file is not None
    return replace(step, file=replace(step.file, memory=piece))


def fail(step: Step, error: Exception) -> Step:
    """Whatever a stage raises is the failure of its file, and the run goes on."""
    assert isinstance(step, Task)  # nothing is done to others
    known = isinstance(error, JpegError | EncodeError | CertificateError | WorkerError | TooLargeError)
    reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"  # out of memory, or a bug
    return Task(step.item, failed(step.record, reason, is_transient(error)))


def is_transient(error: Exception) -> bool:
    """Whether it says nothing about the file: memory, a worker process, a disk."""
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # PyTorch's on the CPU
    return no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError | WorkerError | OSError)


def files_of(step: Step) -> list[Unread]:
    return [step.file] if isinstance(step, Task) and step.file is not None else []


def read_together(restorer: Restorer, files: Sequence[Unread]) -> list[Callable[[], Bitstream]]:
    """By DALI."""
    found = restorer.read_many([file.data for file in files], [file.layout for file in files])
    each = ((file.buffers(restorer.images), x) for file, x in zip(files, found, strict=True))
    return [partial(as_read, x if isinstance(x, JpegError) else in_memory(buffers, x)) for buffers, x in each]


def take_found(step: Step, file: Unread, found: Callable[[], Bitstream]) -> Step:
    assert isinstance(step, Task)
    return replace(step, file=replace(file, found=found))


def in_memory(buffers: Buffers | None, bitstream: Bitstream) -> Bitstream:
    """Its coefficients where processes share them, if they do."""
    if buffers is None:
        return bitstream
    return replace(bitstream, coefficients=buffers.fill(bitstream.coefficients))


def at_once(job: Job, step: Step) -> Step:
    """All stages of a file."""
    for file in files_of(step):
        step = take_read(job, step, file, read_file(job, file))
    if (work := work_of(step)) is not None:
        for part in work.parts:
            work.mismatches.extend(job.restorer.restore_parts([part])())
    for result in results_of(step):
        step = take_images(step, result, write_images(job, *result))
    return step


def read_file(job: Job, file: Unread) -> Read | Plain:
    """Its coefficients, unless DALI has read them; what is not modelled is decoded as it is."""
    restorer, buffers = job.restorer, file.buffers(job.restorer.images)
    try:
        if file.found is None:
            planes = None if buffers is None else buffers.planes
            bitstream = in_memory(buffers, restorer.read(file.data, file.layout, planes))
        else:
            bitstream = file.found()
    except UnsupportedJpeg as error:
        return decode_plainly(job, file.data, str(error))
    recovered = count_recovered(job, file.data, bitstream) if bitstream.recovered and job.verify else None
    return Read(bitstream, None if buffers is None else buffers.images, recovered)


def count_recovered(job: Job, data: bytes, bitstream: Bitstream) -> int:
    """How many coefficients are the file's own. Raises BitstreamError when libjpeg-turbo cannot read it."""
    with job.restorer.stopwatch("verify"):
        own = read_bitstream(data, job.restorer.options.max_pixels).coefficients
        return own.count - int(own.mismatches(bitstream.coefficients))


def decode_plainly(job: Job, data: bytes, reason: str) -> Plain:
    """With Pillow."""
    with job.restorer.stopwatch("pass through"):
        try:
            plain = plain_decode(data, job.restorer.options.max_pixels)
        except BitstreamError as error:
            raise BitstreamError(f"{reason}; {error}") from error
        height, width = plain.pixels.shape[1:]
        return Plain(encode_image(plain.pixels, job.format, plain.icc, plain.exif), (height, width), reason)


def take_read(job: Job, step: Step, file: Unread, found: Read | Plain) -> Step:
    """What has been read goes into the record, and into the work that is left."""
    assert isinstance(step, Task)
    if isinstance(found, Plain):
        fate = replace(step.record, status="passed_through", reason=found.reason, size=found.size)
        return Task(step.item, replace(fate, mode=None, weights=None, seed=None), images=(found.image,))
    bitstream, c = found.bitstream, found.bitstream.coefficients
    record = replace(
        step.record,
        size=c.size,
        sampling=c.sampling.label,
        quality=bitstream.quality,
        tables=hashlib.blake2b(c.tables.numpy().tobytes(), digest_size=8).hexdigest(),
        coefficients=c.count,
        coefficients_from=job.restorer.options.frontend if bitstream.recovered else None,
        recovered=found.recovered,
    )
    work = job.restorer.begin(bitstream, job.seed, step.item.key, found.images)
    return Task(step.item, record, memory=file.memory, work=work)


def work_of(step: Step) -> Work | None:
    """What is being restored."""
    return step.work if isinstance(step, Task) else None


def results_of(step: Step) -> list[tuple[Restored, Tensor | None]]:
    """What is restored, and the memory that processes share of it."""
    return [(step.work.restored(), step.memory)] if isinstance(step, Task) and step.work is not None else []


def write_images(job: Job, restored: Restored, memory: Tensor | None) -> Sequence[bytes | Tensor]:
    """Image files, whose certificates are checked if that is wished. They lie in the memory, if there is room: what it
    held is not needed any more."""
    source, watch = restored.bitstream, job.restorer.stopwatch
    with watch("encode"):
        images = [encode_image(x.numpy(), job.format, source.icc, source.exif) for x in restored.images]
    if job.verify:
        with watch("verify"):
            found = [count_mismatches(image, source) for image in images]
        if found != restored.sample_mismatches:
            raise CertificateError(
                f"libjpeg-turbo finds {found} mismatches, the certificate says {restored.sample_mismatches}"
            )
    lengths = [len(image) for image in images]
    if memory is None or sum(lengths) > len(memory):
        return images
    places: Sequence[Tensor] = memory[: sum(lengths)].split(lengths)
    for place, image in zip(places, images, strict=True):
        place.numpy()[:] = np.frombuffer(image, np.uint8)
    return places


def take_images(step: Step, result: tuple[Restored, Tensor | None], images: Sequence[bytes | Tensor]) -> Step:
    """Out of the memory, which is the file's no longer."""
    assert isinstance(step, Task)
    restored = result[0]
    record = replace(
        step.record,
        mismatches=restored.mismatches,
        sample_mismatches=tuple(restored.sample_mismatches) if len(restored.sample_mismatches) > 1 else None,
    )
    return Task(step.item, record, images=tuple(x.numpy().tobytes() if isinstance(x, Tensor) else x for x in images))
