"""Clean photographs, JPEG or PNG, from tars, folders and files: one at a time to measure on, or all in memory to train
on."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from tqdm import tqdm

from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.names import JPEG_OR_PNG
from pipeline.inputs.source import Item, read
from pipeline.jpeg.bitstream import MAX_PIXELS
from pipeline.jpeg.errors import BitstreamError, JpegError
from pipeline.jpeg.fallback import fallback_decode
from train.data.index import PNG_SIGNATURE, image_size

DATA_HELP = "clean photographs, JPEG or PNG: a tar, a folder or a file"

OFF_GRID = 5, 3
"""Rows at the top and columns at the left of a JPEG that are not measured on. JPEGs that are made from the rest have
their blocks at other places: at the same ones, quantisation after quantisation is nearly lossless at some qualities
(one of quality 95 again at 95: 51 dB for 41), and its figures mean nothing for other photographs."""

Photograph = tuple[str, Tensor]
"""An image's key, which seeds its noise, and the image [3, H, W] uint8."""


@dataclass(frozen=True)
class Photographs:
    """The images of a tar, a folder or a file, RGB, in a fixed order, with one at a time in memory; the first `limit`
    of them, JPEGs without what OFF_GRID says unless `whole`. Each iteration reads them again, and raises SourceError
    for an unreadable image or an empty set."""

    path: Path
    limit: int | None = None
    whole: bool = False

    def __iter__(self) -> Iterator[Photograph]:
        count = 0
        for item in read(list_sources(self.path, kind=JPEG_OR_PNG)):
            if count == self.limit:
                return
            if isinstance(item, Item):
                image = _decoded(item, self.path)
                yield item.key, image if self.whole else _off_grid(image, item.data or b"")
                count += 1
        if not count:
            raise SourceError(f"{self.path}: no JPEG or PNG image in it; give a tar, a folder or a file of photographs")


def load_images(paths: Sequence[str], smallest: int, whole: bool = True) -> list[Tensor]:
    """All images under `paths` (tar shards, folders, files) that are at least `smallest` pixels high and wide,
    [3, H, W] uint8; `whole`: as of Photographs. Says how many are smaller. Raises SourceError if there are no others,
    and for one that cannot be decoded."""
    images, small = [], 0
    for path in map(Path, paths):
        for _, image in tqdm(Photographs(path, whole=whole), desc=f"loading {path.name}", unit="img", leave=False):
            if min(image.shape[1:]) >= smallest:
                images.append(image)
            else:
                small += 1
    if not images:
        raise SourceError(f"no image of at least {smallest}x{smallest} pixels in {', '.join(paths)}: give larger ones")
    if small:
        tqdm.write(f"{small} of {small + len(images)} images are left out: smaller than {smallest}x{smallest} pixels")
    return images


def _off_grid(image: Tensor, data: bytes) -> Tensor:
    """The image [3, H, W] without the rows and columns of OFF_GRID if its file `data` is a JPEG larger than a block."""
    top, left = OFF_GRID
    if data.startswith(PNG_SIGNATURE) or min(image.shape[1:]) <= 8:
        return image
    return image[:, top:, left:]


def _decoded(item: Item, path: Path) -> Tensor:
    advice = "remove it from the set, or repair it"
    if item.data is None:
        raise SourceError(f"{item.source} (of {path}): {item.error}; {advice}")
    decode = _decode_png if item.data.startswith(PNG_SIGNATURE) else _decode_jpeg
    try:
        return decode(item.data).expand(3, -1, -1)
    except JpegError as error:
        raise SourceError(f"{item.source} (of {path}) cannot be decoded: {error}; {advice}") from error


def _decode_jpeg(data: bytes) -> Tensor:
    return torch.from_numpy(fallback_decode(data, MAX_PIXELS).pixels.copy())


def _decode_png(data: bytes) -> Tensor:
    """Without transparency, as everywhere in training. Raises JpegError, also for what the DALI loader leaves out."""
    image_size(lambda offset, length: data[offset : offset + length], len(data))
    try:
        pixels = np.array(PngImageFile(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # Pillow raises half a dozen types over damaged files
        raise BitstreamError(f"Pillow cannot load it: {str(error) or type(error).__name__}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
