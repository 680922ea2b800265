"""Pillow's codecs (libjpeg-turbo and zlib), the reference of several benchmarks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLINGS = ("gray", "4:4:4", "4:2:2", "4:2:0")
"""Those that Pillow writes; it takes other names, too, for some of these."""


def to_jpeg(pixels: NDArray[np.uint8], quality: int, sampling: str) -> bytes:
    """The JPEG file of an image [H, W, 3]. sampling: one of SAMPLINGS."""
    image = Image.fromarray(pixels)
    return encode_jpeg(image.convert("L") if sampling == "gray" else image, quality, sampling)


def encode_jpeg(image: Image.Image, quality: int, sampling: str, **options: Any) -> bytes:
    """The same of an RGB image, or of a gray one when `sampling` is `gray`. options: Pillow's; it takes `qtables`
    for those of quality 50, and scales them."""
    stream = io.BytesIO()
    options |= {} if sampling == "gray" else {"subsampling": sampling}
    image.save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def decode(data: bytes) -> Image.Image:
    """A file's pixels, decoded at once."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encode_png(image: Image.Image) -> bytes:
    """At level 1, the fastest that compresses."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
