"""Shards of JPEG files: of one size, made from clean photographs, or real files unchanged."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bench.machine import CORES
from bench.photographs import Pixels
from bench.pillow import to_jpeg
from pipeline.engine.options import Options
from pipeline.inputs.listing import list_sources
from pipeline.inputs.source import Item, read
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.jpeg.errors import JpegError

PATCH = 1024
"""Pixels a side. In a larger picture each patch of this size has another photograph, extended by mirroring. One
photograph alone would repeat itself, which makes the picture easier to compress."""

PER_SHARD = 256
MOST_PIXELS = Options().max_pixels
GOLDEN = 0.618
"""The fractional parts of its multiples are spread evenly over 0..1."""


@dataclass(frozen=True)
class Size:
    """In pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`4000x3000`. Raises ValueError."""
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
            raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT, such as 512x512")
        width, height = map(int, text.split("x"))
        return cls(width, height)

    @classmethod
    def of(cls, megapixels: float) -> Self:
        """A size of 4:3 with about this area."""
        height = max(1, round((megapixels * 1e6 * 3 / 4) ** 0.5))
        return cls(max(1, round(megapixels * 1e6 / height)), height)

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Workload:
    """Files of one size, as bench.pillow.to_jpeg writes them."""

    size: Size
    files: int
    quality: int
    sampling: str

    @property
    def megapixels(self) -> float:
        """Of the images, without halos and padding."""
        return self.files * self.size.megapixels

    @property
    def label(self) -> str:
        return str(self.size)

    def __str__(self) -> str:
        files = f"{self.files} file{'s'[: self.files != 1]}"
        return f"{files} of {self.size}, {self.megapixels:.2f} MP, quality {self.quality} {self.sampling}"


@dataclass(frozen=True)
class AsIs:
    """Real files. qualities: the number of files of each; left_out: of files that cannot be restored."""

    files: int
    megapixels: float
    qualities: dict[int, int]
    left_out: int

    label = "as they are"

    def __str__(self) -> str:
        files = ", ".join(f"{count} of quality {quality}" for quality, count in self.qualities.items())
        without = f", {self.left_out} left out that cannot be restored" if self.left_out else ""
        return f"{self.files} files as they are, {self.megapixels:.2f} MP: {files}{without}"


def write_shards(photographs: Sequence[Pixels], workload: Workload, folder: Path) -> Path:
    """Makes the files, in tar shards in a new folder, which is returned. Uses threads on all cores: Pillow's encoder
    releases the GIL."""

    def make(number: int) -> bytes:
        return to_jpeg(picture(photographs, workload.size, number), workload.quality, workload.sampling)

    with ThreadPoolExecutor(CORES) as pool:
        return _pack(pool.map(make, range(workload.files)), folder)


def write_as_is(path: Path, files: int | None, megapixels: float | None, folder: Path) -> tuple[Path, AsIs]:
    """The JPEG files under `path`, in shards likewise: the first `files`, or as many as make `megapixels`, or all.
    Raises SourceError."""
    chosen: list[bytes] = []
    qualities: Counter[int] = Counter()
    area, left_out = 0.0, 0
    for item in read(list_sources(path)):
        if not isinstance(item, Item) or item.data is None:
            continue
        if len(chosen) == files or (megapixels is not None and area >= megapixels):
            break
        try:
            bitstream = read_bitstream(item.data, MOST_PIXELS)
        except JpegError:
            left_out += 1
            continue
        height, width = bitstream.coefficients.size
        chosen.append(item.data)
        qualities[bitstream.quality] += 1
        area += height * width / 1e6
    return _pack(chosen, folder), AsIs(len(chosen), area, dict(sorted(qualities.items())), left_out)


def _pack(files: Iterable[bytes], folder: Path) -> Path:
    folder.mkdir()
    rest = iter(enumerate(files))
    for shard_number, first in enumerate(rest):
        with tarfile.open(folder / f"{shard_number:05}.tar", "w") as shard:
            for number, data in chain([first], islice(rest, PER_SHARD - 1)):
                member = tarfile.TarInfo(f"{number:06}.jpg")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return folder


def picture(photographs: Sequence[Pixels], size: Size, number: int) -> Pixels:
    """[H, W, 3]: a patch of a photograph, or a mosaic of patches; photographs and positions differ by `number`."""
    canvas = np.empty((size.height, size.width, 3), np.uint8)
    corners = [(top, left) for top in range(0, size.height, PATCH) for left in range(0, size.width, PATCH)]
    for turn, (top, left) in enumerate(corners, number * len(corners)):
        patch = canvas[top : top + PATCH, left : left + PATCH]
        place = (0.5 + GOLDEN * (turn // len(photographs))) % 1
        photograph = photographs[turn % len(photographs)]
        rows, columns = (_positions(photograph.shape[axis], patch.shape[axis], place) for axis in (0, 1))
        patch[:] = photograph[rows][:, columns]
    return canvas


def _positions(length: int, wanted: int, place: float) -> NDArray[np.int64]:
    """`wanted` neighbouring positions on an axis of `length`, mirrored at its ends. place: 0..1, where on the axis they
    begin if they are fewer than its length."""
    forth = np.arange(length)
    first = int(place * max(0, length - wanted))
    return np.take(np.concatenate([forth, forth[::-1]]), np.arange(first, first + wanted), mode="wrap")
