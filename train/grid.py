"""Image grids: rows of labelled pictures, such as input, samples, mean, deviation and truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 4
"""Pixels between pictures."""

HEADING = 14
"""Pixels above a picture for its name."""

SIDE = 192
"""Largest height and width of a picture, pixels."""

FULL_DEVIATION = 25.5
"""Gray levels, a tenth of the range: shown as white in the picture of a deviation."""


def deviation_picture(deviation: Tensor) -> Tensor:
    """[C, H, W] float, gray levels → [1, H, W] uint8: the mean over channels, white at FULL_DEVIATION."""
    return (deviation.mean(0, keepdim=True) * (255 / FULL_DEVIATION)).clamp(0, 255).round().to(torch.uint8)


def centre(image: Tensor, side: int = SIDE) -> Tensor:
    """The centre crop of [C, H, W], at most `side` pixels high and wide, aligned to 16 pixels to keep blocks whole."""
    top, left = (max(0, (size - side) // 2) // 16 * 16 for size in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def grid(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> Image.Image:
    """Draws rows of (title, pictures), a picture being (name, [1 or 3, H, W] uint8) of any size. All cells have the
    size of the largest picture. Each picture has its name above it, the first of a row also the row's title.

    Raises ValueError without any picture."""
    pictures = [picture for _, row in rows for _, picture in row]
    if not pictures:
        raise ValueError("the grid has no pictures")
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
