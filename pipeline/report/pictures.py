"""The gallery's pixels: a file as an ordinary decoder decodes it, its outputs, and their differences.

Images are [H, W, 3] uint8. They are embedded as lossless WebP without colour profiles, so that before and after are
shown in the same colours."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.jpeg.fallback import fallback_decode
from pipeline.jpeg.orientation import orientation_of, turn_upright
from pipeline.outputs.formats import decode_image

Pixels = NDArray[np.uint8]

BLOCK = 16
"""Pixels; crops begin at multiples."""

MAX_CROP = 1 << 20
"""Pixels of a crop, at most."""

OVERVIEW = 176
"""Pixels of an overview's longer side."""

SCALE = (1, 2, 4, 8, 16, 32, 64, 128)
"""Gray levels at the end of a heat map's scale: the possible values."""

HEAT = ((0, 0, 4), (60, 15, 112), (142, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))
"""The heat map's colours, equally spaced: a few of matplotlib's magma."""


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Pixels) -> Pixels:
        """The part of the image, a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def smaller(self, factor: float) -> Box:
        """Its centre, with both sides multiplied by `factor`."""
        height, width = (max(1, int(side * factor)) for side in (self.height, self.width))
        return Box(self.top + (self.height - height) // 2, self.left + (self.width - width) // 2, height, width)


def decode_before(jpeg: bytes, pixels: int) -> tuple[Pixels, int]:
    """Decodes a JPEG file of at most `pixels` pixels with Pillow: ([H, W, 3] uint8, upright, EXIF's orientation of the
    file). Raises ValueError."""
    decoded = fallback_decode(jpeg, pixels)
    orientation = orientation_of(decoded.metadata.exif)
    return turn_upright(as_rgb(decoded.pixels.transpose(1, 2, 0)), orientation), orientation


def decode_after(output: bytes) -> Pixels:
    """Decodes an output file, as it is stored: [H, W, 3] uint8. Raises ValueError and OSError."""
    return as_rgb(decode_image(output))


def as_rgb(image: NDArray[np.generic]) -> Pixels:
    """[H, W] or [H, W, 1 or 3], uint8 or uint16 → [H, W, 3] uint8. Raises ValueError for anything else."""
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"not an image: {image.dtype} {image.shape}")
    return np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.uint8, copy=False)


def choose_box(before: Pixels, after: Pixels, pixels: int) -> Box:
    """The box of at most `pixels` pixels in which the images, [H, W, 3] uint8, differ most."""
    height, width = before.shape[:2]
    limit = min(pixels, MAX_CROP)
    if height * width <= limit:
        return Box(0, 0, height, width)
    rows = min(height, max(BLOCK, int(limit**0.5)))
    columns = min(width, max(BLOCK, limit // rows))
    rows = min(height, max(BLOCK, limit // columns))
    down, across = (max(1, side // BLOCK) for side in (height, width))
    blocks = np.zeros((down, across))
    for channel in range(3):  # one at a time: images may be large
        difference = before[:, :, channel].astype(np.int16) - after[:, :, channel]
        whole = np.abs(difference[: down * BLOCK, : across * BLOCK])
        blocks += whole.reshape(down, whole.shape[0] // down, across, -1).mean((1, 3))
    sums = np.zeros((down + 1, across + 1))
    sums[1:, 1:] = blocks.cumsum(0).cumsum(1)
    r, c = (max(1, min(side // BLOCK, most)) for side, most in ((rows, down), (columns, across)))
    inside = sums[r:, c:] - sums[:-r, c:] - sums[r:, :-c] + sums[:-r, :-c]
    top, left = (BLOCK * int(index) for index in np.unravel_index(inside.argmax(), inside.shape))
    return Box(min(top, height - rows), min(left, width - columns), rows, columns)


def deviation(samples: list[Pixels]) -> tuple[Pixels, int]:
    """The samples' standard deviation as colours [H, W, 3] uint8, and the gray levels at the scale's end: the root of
    the variance's mean over channels. The scale covers 98 % of the pixels."""
    values = np.stack(samples).astype(np.float32)
    gray_levels = np.sqrt(values.var(0, ddof=1).mean(2))
    wanted = float(np.quantile(gray_levels, 0.98))
    top = next((level for level in SCALE if level >= wanted), SCALE[-1])
    positions = np.linspace(0, 255, len(HEAT))
    table = np.stack([np.interp(np.arange(256), positions, channel) for channel in np.array(HEAT).T], axis=1)
    index = (gray_levels * (255 / top)).clip(0, 255).astype(np.uint8)
    return table.round().astype(np.uint8)[index], top


def overview(image: Pixels) -> Pixels:
    """The whole image, reduced to OVERVIEW pixels: [h, w, 3] uint8."""
    small = Image.fromarray(image)
    small.thumbnail((OVERVIEW, OVERVIEW), Image.Resampling.BOX)
    return np.asarray(small)


def webp(image: Pixels) -> bytes:
    """The image as a lossless WebP file; crops are below the format's limit of 16383 pixels per side."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True, quality=40, method=3)
    return out.getvalue()


def data_url(file: bytes) -> str:
    """A WebP file as a data URL."""
    return "data:image/webp;base64," + base64.b64encode(file).decode()
