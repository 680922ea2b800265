"""Coefficients without entropy decoding on the CPU: DALI decodes (nvJPEG on a GPU), and they are recovered from pixels.

    front_end = DaliFrontend(torch.device("cuda:0"))
    for found in front_end.read_many([path.read_bytes() for path in paths]):
        found                                  # a Bitstream, `recovered`, or the JpegError of a file

DALI is asked twice, for the luma plane and for RGB. Its YCbCr is no help: it makes RGB first, then squeezes that into
the video range 16..235, and loses what RGB still had. The luma plane is the decoder's own, also where colours are
limited to 0..255. Chroma is repeated by nvJPEG unless told otherwise; on the CPU DALI decodes with libjpeg-turbo's
triangle filter, whatever it is told. `recovery` takes both. The header that DALI is given claims an image that fills
its last blocks, so that nothing of them is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kernels.coefficients import Subsampling
from pipeline.jpeg.bitstream import Bitstream, Layout, parse
from pipeline.jpeg.errors import BitstreamError, JpegError
from pipeline.jpeg.fallback import pillow_error
from pipeline.jpeg.recovery import recover

MAX_BATCH = 32
"""Files that DALI is given at once, at most."""

MAX_BATCH_PIXELS = 1 << 25
"""And how many pixels those have together, at most, unless it is one file."""

DecodedPixels = tuple[Tensor, Tensor | None]
"""luma [H, W] and, of colour images, RGB [H, W, 3]; uint8, on the device."""


class FrontendError(ValueError):
    """The front end cannot start; the message says why, and what to do."""


class DaliFrontend:
    """Reads JPEG files by decoding them on `device`, the CPU or a GPU. threads: of DALI's, 0: one for each core. What a
    file becomes does not depend on its company. One thread at a time may use it."""

    def __init__(self, device: torch.device, threads: int = 0) -> None:
        """Raises FrontendError when DALI is not installed. Nothing of it is loaded before the first file."""
        if not _is_installed():
            raise FrontendError(
                "--frontend dali needs NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130 (Linux "
                "only; nvidia-dali-cuda120 where the GPU's driver knows no CUDA 13); or leave it at --frontend libjpeg"
            )
        self._device = device
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pipelines: dict[bool, Any] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def check(self) -> None:
        """Raises FrontendError when DALI cannot decode a sound image here. Call it after forking: DALI has threads."""
        try:
            bitstream_or_raise(self.read_many([_sound_jpeg()])[0])
        except JpegError as error:
            raise FrontendError(f"--frontend dali: DALI does not work on {self._device}: {error}") from error

    def read_many(self, files: Sequence[bytes], max_pixels: int | None = None) -> list[Bitstream | JpegError]:
        """What each JPEG file says, as `read_bitstream` would read it, as far as it can be recovered.

        In a file's place stands its JpegError: UnsupportedJpeg for what `read_bitstream` does not take either,
        BitstreamError when the file is broken or DALI cannot decode it. Damage inside the scans is read as DALI's
        decoder reads it, which may be less strict. The limit is `read_bitstream`'s."""
        return self.read_scans(files, [parse(data, max_pixels) for data in files])

    @torch.inference_mode()
    def read_scans(self, files: Sequence[bytes], parsed: Sequence[Layout | JpegError]) -> list[Bitstream | JpegError]:
        """The rest of `read_many`, once it is known what the headers say."""
        layouts = [_check_complete(layout, data) for layout, data in zip(parsed, files, strict=True)]
        results: dict[int, Bitstream | JpegError] = {
            number: layout for number, layout in enumerate(layouts) if isinstance(layout, JpegError)
        }
        sound = {number: layout for number, layout in enumerate(layouts) if isinstance(layout, Layout)}
        with torch.cuda.stream(self._stream):
            for batch in _batches(sound):
                gray = sound[batch[0]].sampling is Subsampling.GRAY
                decoded = self._decode([sound[number].with_whole_blocks(files[number]) for number in batch], gray)
                for number, found in zip(batch, decoded, strict=True):
                    results[number] = found if isinstance(found, JpegError) else self._recover(sound[number], found)
        return [results[number] for number in range(len(files))]

    def _recover(self, layout: Layout, decoded: DecodedPixels) -> Bitstream:
        luma, rgb = decoded
        tables = torch.tensor(layout.tables, dtype=torch.int32, device=luma.device).unflatten(1, (8, 8))
        planes = recover(luma, rgb, tables, layout.sampling, layout.header.size)
        return layout.bitstream((plane.cpu() for plane in planes), recovered=True)

    def _decode(self, files: Sequence[bytes], gray: bool) -> Sequence[DecodedPixels | JpegError]:
        """DALI gives up a batch, and its pipeline, for one broken file; then each is tried alone."""
        try:
            return self._run(files, gray)
        except RuntimeError as error:
            self._pipelines.pop(gray, None)
            if len(files) == 1:
                return [_decode_error(files[0], error)]
        return [self._decode([data], gray)[0] for data in files]

    def _run(self, files: Sequence[bytes], gray: bool) -> list[DecodedPixels]:
        from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415 - only where it is needed

        if gray not in self._pipelines:
            self._pipelines[gray] = _build(self._device, self._threads, gray)
        encoded = [np.frombuffer(data, np.uint8) for data in files]
        outputs = self._pipelines[gray].run(self._stream, files=encoded)

        def copied(kind: int, number: int) -> Tensor:
            """Out of the buffers that DALI uses again."""
            found = outputs[kind][number]
            pixels = torch.empty(found.shape(), dtype=torch.uint8, device=self._device)
            feed_ndarray(found, pixels, cuda_stream=self._stream)
            return pixels

        return [(copied(0, n)[..., 0], None if gray else copied(1, n)) for n in range(len(files))]


def bitstream_or_raise(found: Bitstream | JpegError) -> Bitstream:
    """Raises the JpegError that stands in a file's place."""
    if isinstance(found, JpegError):
        raise found
    return found


def _is_installed() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def _check_complete(layout: Layout | JpegError, data: bytes) -> Layout | JpegError:
    """Refuses a file without an end-of-image marker, too: decoders differ in what they make of it."""
    if isinstance(layout, JpegError) or data.rfind(b"\xff\xd9", layout.header.scan_offset) >= 0:
        return layout
    return BitstreamError("truncated: the file has no end-of-image marker")


def _batches(layouts: dict[int, Layout]) -> Iterator[list[int]]:
    """Numbers of files that go together: gray ones or others."""
    for gray in (True, False):
        batch: list[int] = []
        pixels = 0
        for number, layout in layouts.items():
            if (layout.sampling is Subsampling.GRAY) != gray:
                continue
            height, width = layout.header.size
            if batch and (len(batch) == MAX_BATCH or pixels + height * width > MAX_BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(number)
            pixels += height * width
        if batch:
            yield batch


def _build(device: torch.device, threads: int, gray: bool) -> Any:
    """DALI's pipeline: `files` → luma [H, W, 1] and, unless all are gray, RGB [H, W, 3]; uint8, on the device."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - it exists for Linux alone

    gpu = device.type == "cuda"
    number = (torch.cuda.current_device() if device.index is None else device.index) if gpu else None

    def graph() -> Any:
        encoded = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        return tuple(
            fn.decoders.image(
                encoded,
                device="mixed" if gpu else "cpu",
                output_type=output,
                adjust_orientation=False,  # pixels stay as they are stored
                jpeg_fancy_upsampling=False,
                hw_decoder_load=1.0,  # a part of each batch would make a file's decoder depend on its company
            )
            for output in ((types.GRAY,) if gray else (types.GRAY, types.RGB))
        )

    pipeline = pipeline_def(
        graph, batch_size=MAX_BATCH, num_threads=threads, device_id=number, prefetch_queue_depth=1
    )()
    pipeline.build()
    return pipeline


def _sound_jpeg() -> bytes:
    """A sound image."""
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()


def _decode_error(data: bytes, error: RuntimeError) -> BitstreamError:
    """DALI does not say what is wrong with a file, so Pillow's error is given."""
    if (reason := pillow_error(data)) is not None:
        return BitstreamError(f"DALI cannot decode it, nor can Pillow: {reason}")
    return BitstreamError(
        f"DALI cannot decode it, though Pillow can ({dali_cause(error)}): restore it with --frontend libjpeg"
    )


def dali_cause(error: RuntimeError) -> str:
    """The line of DALI's error message that names the cause; the exception's type if there is none."""
    cause = str(error).rpartition("encountered:")[2].strip()
    return cause.partition("\n")[0] or type(error).__name__
