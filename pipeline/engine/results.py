"""What becomes of a file: its image, certified, put together from parts; or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engine import tiling
from pipeline.engine.transfers import Part, Piece
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


class Work:
    """A file that is being restored: its parts, in any order and from any thread to be made into pieces and `put` here,
    and then the result."""

    def __init__(self, bitstream: Bitstream, seed: int, parts: list[Part], images: int) -> None:
        c = bitstream.coefficients
        self.parts, self._bitstream, self._seed = parts, bitstream, seed
        self._images = tiling.canvas(images, c.sampling.components, c.size)
        self._mismatches: list[tuple[int, ...]] = []
        self._kept: list[tuple[Part, Piece]] = []

    def put(self, part: Part, piece: Piece, later: bool = False) -> None:
        """Pastes a piece into the image, or leaves that to `restored`."""
        if later:
            self._kept.append((part, piece))
            return
        for image, core in zip(self._images, piece.images, strict=True):
            tiling.paste(image, core, part.tile)
        self._mismatches.append(piece.mismatches)

    def restored(self) -> Restored:
        """The result, once there is a piece of every part."""
        while self._kept:
            self.put(*self._kept.pop())
        mismatches = [sum(found) for found in zip(*self._mismatches, strict=True)]
        return Restored(self._images, mismatches, self._bitstream.coefficients.count, self._seed, self._bitstream)


@dataclass(frozen=True)
class Failure:
    """A file that gave no image. `unsupported` when it is a kind of JPEG that is not modelled."""

    key: str
    error: JpegError

    @property
    def unsupported(self) -> bool:
        return isinstance(self.error, UnsupportedJpeg)
