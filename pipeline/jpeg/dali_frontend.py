"""Reads coefficients without entropy decoding on the CPU: DALI decodes (nvJPEG on a GPU), and the coefficients are
recovered from the pixels.

    front_end = DaliFrontend(torch.device("cuda:0"))
    for found in front_end.read_many([path.read_bytes() for path in paths]):
        found                                  # a Bitstream, `recovered`, or the JpegError of a file

DALI decodes twice, to the luma plane and to RGB. The luma plane is the decoder's own, also where RGB is clipped. DALI's
YCbCr output is not used: it is converted from RGB to the video range 16..235, which loses precision. nvJPEG repeats
chroma samples by default, DALI's CPU decoder always uses libjpeg-turbo's triangle filter; `recovery` supports both.
DALI gets a header that claims whole blocks, so that it does not crop them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kernels.coefficients import Subsampling
from kernels.cores import available_cores
from pipeline.jpeg.bitstream import Bitstream, Layout, parse
from pipeline.jpeg.errors import BitstreamError, JpegError
from pipeline.jpeg.fallback import pillow_error
from pipeline.jpeg.recovery import recover

MAX_BATCH = 32
"""Files per DALI batch, at most."""

MAX_BATCH_PIXELS = 1 << 25
"""Pixels per DALI batch, at most, unless it is a single file."""

DecodedPixels = tuple[Tensor, Tensor | None]
"""Luma [H, W] and, for colour images, RGB [H, W, 3]; uint8, on the device."""


class FrontendError(ValueError):
    """The front end cannot start; the message says why, and what to do."""


class DaliFrontend:
    """Reads JPEG files by decoding them on `device`, a CPU or a GPU. For one thread at a time. A file's result does not
    depend on the other files. threads: DALI's threads; 0: one per core."""

    def __init__(self, device: torch.device, threads: int = 0) -> None:
        """Raises FrontendError if DALI is not installed. DALI is imported with the first file."""
        if not _is_installed():
            raise FrontendError(
                "--frontend dali needs NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130 (Linux "
                "only; nvidia-dali-cuda120 if the GPU's driver does not support CUDA 13); or use --frontend libjpeg"
            )
        self._device = device
        self._threads = threads or available_cores()
        self._pipelines: dict[bool, Any] = {}

    @cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        """Made with the first file, because it starts CUDA, which is to be done after forking."""
        return torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def check(self) -> None:
        """Raises FrontendError if DALI cannot decode a valid image. Must be called after forking: DALI starts
        threads."""
        try:
            bitstream_or_raise(self.read_many([_sound_jpeg()])[0])
        except JpegError as error:
            raise FrontendError(f"--frontend dali: DALI does not work on {self._device}: {error}") from error

    def read_many(self, files: Sequence[bytes], max_pixels: int | None = None) -> list[Bitstream | JpegError]:
        """Reads JPEG files as `read_bitstream` does, as far as their coefficients can be recovered.

        max_pixels: as in `read_bitstream`.

        For a file that cannot be read, the list has its JpegError: UnsupportedJpeg as from `read_bitstream`,
        BitstreamError if the file is broken or DALI cannot decode it. DALI's decoder may be more tolerant of damage
        inside the scans."""
        return self.read_scans(files, [parse(data, max_pixels) for data in files])

    @torch.inference_mode()
    def read_scans(self, files: Sequence[bytes], parsed: Sequence[Layout | JpegError]) -> list[Bitstream | JpegError]:
        """As `read_many`, for files whose headers have been parsed."""
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
        planes = recover(luma, rgb, tables, layout.sampling, layout.size)
        return layout.bitstream((plane.cpu() for plane in planes), recovered=True)

    def _decode(self, files: Sequence[bytes], gray: bool) -> Sequence[DecodedPixels | JpegError]:
        """Decodes a batch. DALI fails as a whole for one broken file; then each file is decoded by itself."""
        try:
            return self._run(files, gray)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._pipelines.pop(gray, None)
            if self._stream is not None:
                self._stream.synchronize()  # raises if the GPU is lost: not an error of the file
            if len(files) == 1:
                return [_decode_error(files[0], error)]
        return [self._decode([data], gray)[0] for data in files]

    def _run(self, files: Sequence[bytes], gray: bool) -> list[DecodedPixels]:
        from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415 - an optional dependency

        if gray not in self._pipelines:
            self._pipelines[gray] = _build(self._device, self._threads, gray)
        encoded = [np.frombuffer(data, np.uint8) for data in files]
        outputs = self._pipelines[gray].run(self._stream, files=encoded)

        def copied(kind: int, number: int) -> Tensor:
            """A copy, because DALI reuses its buffers."""
            found = outputs[kind][number]
            pixels = torch.empty(found.shape(), dtype=torch.uint8, device=self._device)
            feed_ndarray(found, pixels, cuda_stream=self._stream)
            return pixels

        return [(copied(0, n)[..., 0], None if gray else copied(1, n)) for n in range(len(files))]


def bitstream_or_raise(found: Bitstream | JpegError) -> Bitstream:
    """Returns the bitstream, or raises the JpegError."""
    if isinstance(found, JpegError):
        raise found
    return found


def _is_installed() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def _check_complete(layout: Layout | JpegError, data: bytes) -> Layout | JpegError:
    """Refuses a file without an end-of-image marker, because decoders treat it differently."""
    if isinstance(layout, JpegError) or data.rfind(b"\xff\xd9", layout.header.scan_offset) >= 0:
        return layout
    return BitstreamError("truncated: the file has no end-of-image marker")


def _batches(layouts: dict[int, Layout]) -> Iterator[list[int]]:
    """Splits files into batches, of gray files or of colour files. Yields their indices."""
    for gray in (True, False):
        batch: list[int] = []
        pixels = 0
        for number, layout in layouts.items():
            if (layout.sampling is Subsampling.GRAY) != gray:
                continue
            height, width = layout.size
            if batch and (len(batch) == MAX_BATCH or pixels + height * width > MAX_BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(number)
            pixels += height * width
        if batch:
            yield batch


def _build(device: torch.device, threads: int, gray: bool) -> Any:
    """DALI's pipeline: `files` → luma [H, W, 1] and, for colour, RGB [H, W, 3]; uint8, on the device."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - an optional dependency, for Linux only

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
                hw_decoder_load=1.0,  # with a fraction, a file's decoder would depend on the batch
            )
            for output in ((types.GRAY,) if gray else (types.GRAY, types.RGB))
        )

    pipeline = pipeline_def(
        graph, batch_size=MAX_BATCH, num_threads=threads, device_id=number, prefetch_queue_depth=1
    )()
    pipeline.build()
    return pipeline


def _sound_jpeg() -> bytes:
    """A valid JPEG file."""
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()


def _decode_error(data: bytes, error: RuntimeError) -> BitstreamError:
    """The error of a file that DALI cannot decode. DALI does not name the cause, so Pillow's is given."""
    if (reason := pillow_error(data)) is not None:
        return BitstreamError(f"DALI cannot decode it, nor can Pillow: {reason}")
    return BitstreamError(
        f"DALI cannot decode it, though Pillow can ({dali_cause(error)}): restore it with --frontend libjpeg"
    )


def dali_cause(error: RuntimeError) -> str:
    """The line of DALI's error message that names the cause; the exception's type if there is none."""
    cause = str(error).rpartition("encountered:")[2].strip()
    return cause.partition("\n")[0] or type(error).__name__
