"""Clean photographs for the benchmarks, and JPEG files made of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.listing import list_sources
from pipeline.inputs.source import Item, read

Pixels = NDArray[np.uint8]


def load(path: Path, limit: int | None = None) -> list[Pixels]:
    """Every JPEG under `path` (a tar, a folder or a file), [H, W, 3]."""
    images: list[Pixels] = []
    for item in read(list_sources(path)):
        if isinstance(item, Item) and item.data is not None and (limit is None or len(images) < limit):
            images.append(np.asarray(Image.open(io.BytesIO(item.data)).convert("RGB")))
    return images


def to_jpeg(image: Pixels, quality: int, sampling: str) -> bytes:
    """Pillow's libjpeg-turbo; `sampling` as `4:2:0` or gray."""
    stream = io.BytesIO()
    if sampling == "gray":
        Image.fromarray(image).convert("L").save(stream, "JPEG", quality=quality)
    else:
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=sampling)
    return stream.getvalue()
