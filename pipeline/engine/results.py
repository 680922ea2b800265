"""A file's restoration and its result: certified images, or the reason for which there are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.engine.transfers import Deviations, TileTask
from pipeline.jpeg.bitstream import Bitstream, Layout
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.outputs.formats import Format, encode_image
from pipeline.outputs.xmp import xmp_packet

Source = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""A JPEG file: its bytes, its path, or a file open for reading in binary mode."""


def data_of(source: Source) -> bytes:
    """A file's bytes. Raises OSError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    return Path(source).read_bytes() if isinstance(source, str | os.PathLike) else source.read()


@dataclass(frozen=True)
class Restored:
    """The result of one file.

    images: [K, C, H, W] uint8, or uint16 with 16 bits; K > 1 only with several samples.
    sample_mismatches: for each image, how many of its `coefficients` differ when libjpeg-turbo compresses it; empty
        with 16 bits, which libjpeg-turbo cannot compress.
    sample_excess: with 16 bits, for each image, the largest distance of a coefficient from its interval in quantisation
        steps.
    bitstream: the file's tables, sampling, ICC profile and EXIF."""

    images: Tensor
    sample_mismatches: list[int]
    coefficients: int
    seed: int
    bitstream: Bitstream
    sample_excess: list[float] = field(default_factory=list)

    @property
    def image(self) -> Tensor:
        """[C, H, W] uint8 or uint16: the first image."""
        return self.images[0]

    @property
    def excess(self) -> float | None:
        """The largest excess of all images in quantisation steps; None with 8 bits."""
        return max(self.sample_excess, default=None)

    @property
    def mismatches(self) -> int | None:
        """Mismatches of all images together. 0: libjpeg-turbo compresses each of them to exactly the file's
        coefficients. None with 16 bits."""
        return None if self.sample_excess else sum(self.sample_mismatches)

    def pixels(self, sample: int = 0) -> NDArray[Any]:
        """[H, W, 3] or, for gray, [H, W]; uint8 or uint16."""
        return as_pixels(self.images[sample])

    def to_pil(self, sample: int = 0) -> Image.Image:
        """The image as a Pillow image, with the file's metadata in its `info`; not rotated. Raises ValueError for
        colour with 16 bits, which Pillow does not support."""
        pixels = self.pixels(sample)
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            raise ValueError(
                "Pillow does not support RGB images with 16 bits per channel: use pixels(), or restore with bits=8"
            )
        image = Image.fromarray(pixels)
        own = self.bitstream.metadata
        metadata = {"icc_profile": own.icc, "exif": own.exif, "xmp": xmp_packet(own.xmp, None), "dpi": own.dpi}
        image.info |= {name: data for name, data in metadata.items() if data}
        return image

    def encode(self, format: Format = "png", sample: int = 0, upright: bool = False) -> bytes:
        """The image as a lossless file, with the JPEG file's metadata. upright: turned as its EXIF says. Raises
        EncodeError."""
        return encode_image(self.images[sample].numpy(), format, self.bitstream.metadata, upright=upright)


def as_pixels(image: Tensor) -> NDArray[Any]:
    """[C, H, W] → [H, W, 3] or, for gray, [H, W]."""
    pixels = image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class FileRestoration:
    """A file that is being restored. Its tiles can be restored in any order, in batches with those of other files.

    deviations: one entry for each tile that is restored."""

    bitstream: Bitstream
    seed: int
    tasks: list[TileTask]
    deviations: list[Deviations] = field(default_factory=list)

    def restored(self) -> Restored:
        """The result, once all tiles are restored."""
        images, count = self.tasks[0].image.images, self.bitstream.coefficients.count
        if images.dtype != torch.uint8:
            excess = [max(0.0, *found) for found in zip(*self.deviations, strict=True)]
            return Restored(images, [], count, self.seed, self.bitstream, excess)
        mismatches = [int(sum(found)) for found in zip(*self.deviations, strict=True)]
        return Restored(images, mismatches, count, self.seed, self.bitstream)


@dataclass(frozen=True)
class Failure:
    """A file that cannot be restored. unsupported: a kind of JPEG that is not modelled."""

    key: str
    error: JpegError

    @property
    def unsupported(self) -> bool:
        return isinstance(self.error, UnsupportedJpeg)


@dataclass(frozen=True)
class PendingFile:
    """A file in `Restorer.restore_many`: its data until it has been decoded, then its restoration or the error."""

    key: str
    data: bytes
    layout: Layout | JpegError
    work: FileRestoration | JpegError | None = None

    @classmethod
    def opened(cls, key: str, source: Source, parse: Callable[[bytes], Layout | JpegError]) -> Self:
        """Reads and parses a source; an OSError becomes the file's error."""
        try:
            data = data_of(source)
        except OSError as error:
            return cls(key, b"", BitstreamError(f"cannot be read: {error.strerror or error}"))
        return cls(key, data, parse(data))

    def on_error(self, error: Exception) -> PendingFile:
        """See Scheduler: a JpegError is this file's result; other errors are raised."""
        if not isinstance(error, JpegError):
            raise error
        return self.read(error)

    def read(self, work: FileRestoration | JpegError) -> PendingFile:
        """The file without its data, with its restoration or the error."""
        return replace(self, data=b"", work=work)

    def result(self) -> Restored | Failure:
        """The result, once the file has passed all stages."""
        assert self.work is not None
        return self.work.restored() if isinstance(self.work, FileRestoration) else Failure(self.key, self.work)
