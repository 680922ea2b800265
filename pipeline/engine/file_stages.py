"""The stages of a JPEG file, from its bytes to its manifest line.

    run.py: read → make_tasks (header, filters, key) → stages here → sink: image files, then the line

    read_together    only with DALI as front end: it decodes many files, whose coefficients are recovered from pixels
    entropy_decode   reads the quantised DCT coefficients; other kinds of JPEG (CMYK, RGB, …) are passed through
    tiles            decode, network, exact projection: Restorer.restore_tiles, on a GPU in batches from many files
    encode_images    compresses the images; with --verify, compresses them as JPEG again and compares coefficients

Worker processes run the stages that work on one file, and on a CPU the tiles. A file's coefficients and images stay in
shared memory (memory.Buffers). On a CPU one worker runs all stages of a file that is a single tile, which needs no
shared memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from pipeline.engine.device import check_gpu
from pipeline.engine.failures import CertificateError
from pipeline.engine.job import Job
from pipeline.engine.memory import Buffers
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import FileRestoration, Restored
from pipeline.engine.stage import Stage, item_stage, run_stages
from pipeline.engine.task import DecodedFile, PassedFile, RawFile, Step, Task
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.dali_frontend import MAX_BATCH as DALI_BATCH
from pipeline.jpeg.dali_frontend import bitstream_or_raise
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.fallback import fallback_decode
from pipeline.outputs.formats import encode_image
from pipeline.outputs.provenance import Provenance
from pipeline.outputs.verify import count_mismatches

MAX_MESSAGE_BYTES, MAX_MESSAGE_FILES = 16 << 20, 16
"""Estimated bytes and number of the files in one message to a worker: for small files the cost of a message
dominates."""


def stages(job: Job) -> list[Stage[Step]]:
    """The stages of every input. Inputs that have failed, are finished or are side members skip them."""
    restorer = job.restorer
    reading: Stage[Step] = Stage(
        split=files_of,
        do=lambda files: lambda: [entropy_decode(job, file) for file in files],
        merge=partial(merge_decoded, job),
        kind=lambda file: files_together(job, file.size),
        max_batch=lambda kind: kind,
    )
    writing: Stage[Step] = Stage(
        split=results_of,
        do=lambda results: lambda: [encode_images(job, *result) for result in results],
        merge=merge_images,
        kind=lambda result: files_together(job, result[0].bitstream.coefficients.size),
        max_batch=lambda kind: kind,
    )
    every = [reading, restorer.tiles_stage(work_of), writing]
    if restorer.dali is not None:
        together: Stage[Step] = Stage(
            split=files_of,
            do=lambda files: partial(read_together, restorer, files),
            merge=merge_dali_result,
            place="device",
            max_batch=lambda kind: DALI_BATCH,
            check=partial(check_gpu, restorer.device),
        )
        return [together, *every]
    return every if restorer.batched else [item_stage(partial(run_stages, every), without_shared_memory), *every]


def without_shared_memory(step: Step) -> bool:
    """Whether one worker runs all stages of the file: it is small, or there is only one worker."""
    return isinstance(step, Task) and step.file is not None and step.file.memory is None


def files_together(job: Job, size: tuple[int, int] | None) -> int:
    """How many files of a size, (height, width) in pixels, are sent in one message."""
    return max(1, min(MAX_MESSAGE_FILES, MAX_MESSAGE_BYTES // (1 + job.restorer.estimate_bytes(size))))


def files_of(step: Step) -> list[RawFile]:
    """The file of a step that has not been decoded; an empty list for other steps."""
    return [step.file] if isinstance(step, Task) and step.file is not None else []


def read_together(restorer: Restorer, files: Sequence[RawFile]) -> list[Callable[[], Bitstream]]:
    """Decodes files by DALI. Returns, for each, a function that returns its bitstream or raises its JpegError."""
    found = restorer.read_many([file.data for file in files], [file.layout for file in files])
    each = ((file.buffers(restorer), x) for file, x in zip(files, found, strict=True))
    return [
        partial(bitstream_or_raise, x if isinstance(x, JpegError) else in_memory(buffers, x)) for buffers, x in each
    ]


def merge_dali_result(step: Step, file: RawFile, found: Callable[[], Bitstream]) -> Step:
    """The step with what DALI found."""
    assert isinstance(step, Task)
    return replace(step, file=replace(file, dali_result=found))


def in_memory(buffers: Buffers | None, bitstream: Bitstream) -> Bitstream:
    """The bitstream with its coefficients copied into the buffers, if there are any."""
    if buffers is None:
        return bitstream
    return replace(bitstream, coefficients=buffers.fill(bitstream.coefficients))


def entropy_decode(job: Job, file: RawFile) -> DecodedFile | PassedFile:
    """Reads a file's coefficients, unless DALI has recovered them; decodes what is not modelled by Pillow. Raises
    JpegError."""
    restorer, buffers = job.restorer, file.buffers(job.restorer)
    try:
        if file.dali_result is None:
            planes = None if buffers is None else buffers.planes
            bitstream = in_memory(buffers, restorer.read(file.data, file.layout, planes))
        else:
            bitstream = file.dali_result()
    except UnsupportedJpeg as error:
        return pass_through(job, file, str(error))
    recovered = count_recovered(job, file.data, bitstream) if bitstream.recovered and job.verify else None
    return DecodedFile(bitstream, None if buffers is None else buffers.images, recovered)


def count_recovered(job: Job, data: bytes, bitstream: Bitstream) -> int:
    """The number of recovered coefficients that equal the file's own. Raises BitstreamError if libjpeg-turbo cannot
    read the file."""
    with job.restorer.stopwatch("verify"):
        own = read_bitstream(data, job.restorer.options.max_pixels).coefficients
        return own.count - int(own.mismatches(bitstream.coefficients))


def pass_through(job: Job, file: RawFile, reason: str) -> PassedFile:
    """The output of a file that is passed through, as `Filters.passed_through` says. Raises BitstreamError if Pillow
    cannot decode it."""
    how = job.filters.passed_through
    if how != "decode":
        return PassedFile((file.data,) if how == "copy" and file.data else (), file.size, reason)
    with job.restorer.stopwatch("pass through"):
        try:
            plain = fallback_decode(file.data, job.restorer.options.max_pixels)
        except BitstreamError as error:
            raise BitstreamError(f"{reason}; {error}") from error
        height, width = plain.pixels.shape[1:]
        image = encode_image(plain.pixels, job.format, plain.metadata, upright=job.upright)
        return PassedFile((image,), (height, width), reason)


def merge_decoded(job: Job, step: Step, file: RawFile, found: DecodedFile | PassedFile) -> Step:
    """The step with a complete record if the file is passed through, else with a restoration."""
    assert isinstance(step, Task)
    if isinstance(found, PassedFile):
        record = replace(step.record, status="passed_through", reason=found.reason, size=found.size)
        record = file.describe(replace(record, mode=None, weights=None, seed=None, strength=None))
        return Task(step.item, record, images=found.images)
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
    work = job.restorer.begin(bitstream, job.seed, step.item.key.removeprefix(step.item.prefix), found.images)
    return Task(step.item, record, memory=file.memory, work=work)


def work_of(step: Step) -> FileRestoration | None:
    """The step's restoration, if it has one."""
    return step.work if isinstance(step, Task) else None


def results_of(step: Step) -> list[tuple[Restored, Tensor | None]]:
    """(the restored file, its piece of shared memory) of a step whose tiles are restored; an empty list for other
    steps."""
    return [(step.work.restored(), step.memory)] if isinstance(step, Task) and step.work is not None else []


def encode_images(job: Job, restored: Restored, memory: Tensor | None) -> Sequence[bytes | Tensor]:
    """Encodes the images; with --verify checks their certificates, and raises CertificateError if one is wrong. The
    files are written to `memory`, over the coefficients, if those are not needed and leave room: if this process dies,
    another one does the same again. Raises EncodeError."""
    source, watch = restored.bitstream, job.restorer.stopwatch
    with watch("encode"):
        images = [
            encode_image(x.numpy(), job.format, source.metadata, provenance_of(job, restored, number), job.upright)
            for number, x in enumerate(restored.images)
        ]
    if job.verify:
        with watch("verify"):
            found = [count_mismatches(image, source) for image in images]
        if found != restored.sample_mismatches:
            raise CertificateError(
                f"libjpeg-turbo finds {found} mismatches, but the certificate says {restored.sample_mismatches}"
            )
    lengths = [len(image) for image in images]
    if memory is None or job.verify or sum(lengths) > restored.images.data_ptr() - memory.data_ptr():
        return images
    places: Sequence[Tensor] = memory[: sum(lengths)].split(lengths)
    for place, image in zip(places, images, strict=True):
        place.numpy()[:] = np.frombuffer(image, np.uint8)
    return places


def provenance_of(job: Job, restored: Restored, number: int) -> Provenance | None:
    """The metadata that records the restoration in an output file; None if it is switched off. number: of the
    sample."""
    if not job.provenance:
        return None
    restorer = job.restorer
    return Provenance(
        weights=restorer.digest,
        mode=restorer.mode,
        seed=None if restorer.mode == "mmse" else restored.seed,
        sample=number if restorer.mode == "sample" else None,
        strength=restorer.options.strength if restorer.mode == "sample" else None,
        averaged=restorer.options.samples if restorer.mode == "mean" else None,
        coefficients=restored.coefficients,
        coefficients_from=restorer.options.frontend if restored.bitstream.recovered else None,
        mismatches=None if restored.sample_excess else restored.sample_mismatches[number],
        excess=restored.sample_excess[number] if restored.sample_excess else None,
    )


def merge_images(step: Step, result: tuple[Restored, Tensor | None], images: Sequence[bytes | Tensor]) -> Step:
    """The step with its image files, copied out of shared memory, and a complete record."""
    assert isinstance(step, Task)
    restored = result[0]
    record = replace(
        step.record,
        mismatches=restored.mismatches,
        excess=None if restored.excess is None else round(restored.excess, 4),
        sample_mismatches=tuple(restored.sample_mismatches) if len(restored.sample_mismatches) > 1 else None,
    )
    return Task(step.item, record, images=tuple(x.numpy().tobytes() if isinstance(x, Tensor) else x for x in images))
