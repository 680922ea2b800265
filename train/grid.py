"""Rows of pictures side by side: input, samples, mean, deviation, truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 4
HEADING = 14
SIDE = 192
"""Pixels between pictures, above them for their names, and of their larger side at most."""

FULL_DEVIATION = 25.5
"""Gray levels, a tenth of the range: white in the picture of a deviation."""


def deviation_picture(deviation: Tensor) -> Tensor:
    """[C, H, W] float, gray levels → [1, H, W] uint8: the channels' mean, white at FULL_DEVIATION."""
    return (deviation.mean(0, keepdim=True) * (255 / FULL_DEVIATION)).clamp(0, 255).round().to(torch.uint8)


def centre(image: Tensor, side: int = SIDE) -> Tensor:
    """The middle of [C, H, W], at most `side` pixels each way, from a multiple of 16 on, so that blocks are whole."""
    top, left = (max(0, (size - side) // 2) // 16 * 16 for size in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def grid(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> Image.Image:
    """Rows of (name, pictures), a picture being (name, [1 or 3, H, W] uint8), of any sizes → one picture, its cells as
    large as the largest. Names stand above each picture: the row's above its first. Raises ValueError without any."""
    pictures = [picture for _, row in rows for _, picture in row]
    if not pictures:
        raise ValueError("a grid of no pictures")
    height, width = (GAP + max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    height += HEADING
    sheet = Image.new("RGB", (max(len(row) for _, row in rows) * width + GAP, len(rows) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for down, (title, row) in enumerate(rows):
        for across, (name, picture) in enumerate(row):
            x, y = across * width + GAP, down * height + GAP
            pen.text((x, y), name if across else f"{title} {name}", fill="black")
            pixels = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (x, y + HEADING))
    return sheet
