"""What becomes of a file: its image, certified, put together from parts; or why there is none."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.engine.transfers import Deviations, TileTask
from pipeline.jpeg.bitstream import Bitstream
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.outputs.formats import Format, Metadata, encode_image

Source = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""Of a JPEG file: its bytes, its path, or the file itself, open for reading in binary mode."""


def data_of(source: Source) -> bytes:
    """A file's bytes. Raises OSError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    return Path(source).read_bytes() if isinstance(source, str | os.PathLike) else source.read()


@dataclass(frozen=True)
class Restored:
    """One file's result.

    images: [K, C, H, W] uint8, K > 1 only for several samples. sample_mismatches: for each of them, how many of its
    `coefficients` libjpeg-turbo would write differently. Images of 16 bits, uint16, have no such certificate but an
    excess each: by how many quantisation steps, at most, a coefficient lies outside its interval. `bitstream` is what
    the file said: tables, sampling, ICC profile, EXIF."""

    images: Tensor
    sample_mismatches: list[int]
    coefficients: int
    seed: int
    bitstream: Bitstream
    sample_excess: list[float] = field(default_factory=list)

    @property
    def image(self) -> Tensor:
        """[C, H, W] uint8 or uint16: the (first) image."""
        return self.images[0]

    @property
    def excess(self) -> float | None:
        """The largest of all images; None of 8 bits."""
        return max(self.sample_excess, default=None)

    @property
    def mismatches(self) -> int | None:
        """Over all images; 0: libjpeg-turbo compresses each of them to exactly the file's coefficients. None of 16
        bits."""
        return None if self.sample_excess else sum(self.sample_mismatches)

    def pixels(self, sample: int = 0) -> NDArray[Any]:
        """[H, W, 3] or, gray, [H, W], uint8 or uint16."""
        return as_pixels(self.images[sample])

    def to_pil(self, sample: int = 0) -> Image.Image:
        """The image as Pillow has it, the file's ICC profile and EXIF in its `info`; pixels are not turned. Raises
        ValueError for colours of 16 bits, which Pillow does not have."""
        pixels = self.pixels(sample)
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            raise ValueError("Pillow has no RGB image of 16 bits a channel; take pixels(), or restore with bits=8")
        image = Image.fromarray(pixels)
        metadata = {"icc_profile": self.bitstream.icc, "exif": self.bitstream.exif}
        image.info |= {name: data for name, data in metadata.items() if data}
        return image

    def encode(self, format: Format = "png", sample: int = 0) -> bytes:
        """The image as a lossless file, with the JPEG file's ICC profile and EXIF. Raises EncodeError."""
        return encode_image(self.images[sample].numpy(), format, Metadata(self.bitstream.icc, self.bitstream.exif))


def as_pixels(image: Tensor) -> NDArray[Any]:
    """[C, H, W] → [H, W, 3] or [H, W]."""
    pixels = image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Restoration:
    """A file that is being restored: its tiles, to be restored in any order and company, and then the result.
    deviations: of each tile that is."""

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
    """A file that gave no image. `unsupported` when it is a kind of JPEG that is not modelled."""

    key: str
    error: JpegError

    @property
    def unsupported(self) -> bool:
        return isinstance(self.error, UnsupportedJpeg)


@dataclass(frozen=True)
class PendingFile:
    """On its way through `Restorer.restore_many`: its data until they are read, then its work, or why there is none."""

    key: str
    data: bytes
    work: Restoration | JpegError | None = None

    @classmethod
    def opened(cls, key: str, source: Source) -> Self:
        """Of a source that cannot be read, that is the failure."""
        try:
            return cls(key, data_of(source))
        except OSError as error:
            return cls(key, b"", BitstreamError(f"cannot be read: {error.strerror or error}"))

    def on_error(self, error: Exception) -> PendingFile:
        """See Scheduler: a JpegError is this file's result; any other error is raised."""
        if not isinstance(error, JpegError):
            raise error
        return PendingFile(self.key, b"", error)

    def result(self) -> Restored | Failure:
        """Once it is through."""
        assert self.work is not None
        return self.work.restored() if isinstance(self.work, Restoration) else Failure(self.key, self.work)
