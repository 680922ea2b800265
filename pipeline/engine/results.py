"""What becomes of a file: its image, certified, put together from parts; or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engine.transfers import Mismatches, Part
from pipeline.jpeg.bitstream import Bitstream
from pipeline.jpeg.errors import JpegError, UnsupportedJpeg


@dataclass(frozen=True)
class Restored:
    """One file's result.

    images: [K, C, H, W] uint8, K > 1 only for several samples. sample_mismatches: for each of them, how many of its
    `coefficients` libjpeg-turbo would write differently. `bitstream` is what the file said: tables, sampling, ICC
    profile, EXIF."""

    images: Tensor
    sample_mismatches: list[int]
    coefficients: int
    seed: int
    bitstream: Bitstream

    @property
    def image(self) -> Tensor:
        """[C, H, W] uint8: the (first) image."""
        return self.images[0]

    @property
    def mismatches(self) -> int:
        """Over all images; 0: libjpeg-turbo compresses each of them to exactly the file's coefficients."""
        return sum(self.sample_mismatches)

    def pixels(self, sample: int = 0) -> NDArray[np.uint8]:
        """[H, W, 3] or, gray, [H, W] uint8, as Pillow takes it."""
        return as_pixels(self.images[sample])


def as_pixels(image: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] uint8 → [H, W, 3] or [H, W]."""
    pixels: NDArray[np.uint8] = image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Work:
    """A file that is being restored: its tiles, to be restored in any order and company, and then the result.
    mismatches: of each tile that is."""

    bitstream: Bitstream
    seed: int
    parts: list[Part]
    mismatches: list[Mismatches] = field(default_factory=list)

    def refused(self, error: Exception) -> NoReturn:
        """Nothing is wrong with a file that has been read."""
        raise error

    def restored(self) -> Restored:
        """The result, once all tiles are restored."""
        mismatches = [sum(found) for found in zip(*self.mismatches, strict=True)]
        count = self.bitstream.coefficients.count
        return Restored(self.parts[0].picture.images, mismatches, count, self.seed, self.bitstream)


@dataclass(frozen=True)
class Failure:
    """A file that gave no image. `unsupported` when it is a kind of JPEG that is not modelled."""

    key: str
    error: JpegError

    @property
    def unsupported(self) -> bool:
        return isinstance(self.error, UnsupportedJpeg)


@dataclass(frozen=True)
class File:
    """On its way through `Restorer.restore_many`: its data until they are read, then its work, or why there is none."""

    key: str
    data: bytes
    work: Work | JpegError | None = None

    def refused(self, error: Exception) -> File:
        """Only what is wrong with a file is its failure: raises any other error."""
        if not isinstance(error, JpegError):
            raise error
        return File(self.key, b"", error)

    def result(self) -> Restored | Failure:
        """Once it is through."""
        assert self.work is not None
        return self.work.restored() if isinstance(self.work, Work) else Failure(self.key, self.work)
