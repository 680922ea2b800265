"""JFIF colour: full-range ITU-R BT.601 in real numbers.

Y = 0.299 R + 0.587 G + 0.114 B,  Cb = (B - Y) / 1.772 + 128,  Cr = (R - Y) / 1.402 + 128

Planes are tensors of any one shape, in gray levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

RED, GREEN, BLUE = 0.299, 0.587, 0.114
BLUE_RANGE, RED_RANGE = 2 * (1 - BLUE), 2 * (1 - RED)


def rgb_to_ycc(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R, G, B), 0..255 → (Y - 128, Cb - 128, Cr - 128): what the DCT is taken of."""
    luma = (red * RED).add(green, alpha=GREEN).add(blue, alpha=BLUE)
    return luma - 128, (blue - luma) / BLUE_RANGE, (red - luma) / RED_RANGE


def ycc_to_rgb(luma: Tensor, cb: Tensor, cr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The linear part of the inverse: a change of (Y, Cb, Cr) → of (R, G, B)."""
    green = luma.add(cb, alpha=-BLUE * BLUE_RANGE / GREEN).add(cr, alpha=-RED * RED_RANGE / GREEN)
    return luma.add(cr, alpha=RED_RANGE), green, luma.add(cb, alpha=BLUE_RANGE)


def ycc_to_rgb_adjoint(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of ycc_to_rgb: a gradient of (R, G, B) → of (Y, Cb, Cr)."""
    cb = (blue * BLUE_RANGE).add_(green, alpha=-BLUE * BLUE_RANGE / GREEN)
    cr = (red * RED_RANGE).add_(green, alpha=-RED * RED_RANGE / GREEN)
    return (red + green).add_(blue), cb, cr


def rgb_to_ycc_adjoint(luma: Tensor, cb: Tensor, cr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of rgb_to_ycc's linear part: a gradient of (Y, Cb, Cr) → of (R, G, B)."""
    blue, red = cb / BLUE_RANGE, cr / RED_RANGE
    luma = (luma - blue).sub_(red)
    return red.add_(luma, alpha=RED), luma * GREEN, blue.add_(luma, alpha=BLUE)


def tile_planes(tiles: Tensor) -> tuple[Tensor, ...]:
    """[N, rows, columns, C, P] RGB or gray, 0..255 → component planes [N, rows, columns, P], less 128."""
    if tiles.shape[3] == 1:
        return (tiles[:, :, :, 0] - 128,)
    return rgb_to_ycc(*tiles.unbind(3))


def to_colours(planes: list[Tensor], dim: int) -> Tensor:
    """Component planes less 128 → an image with its channels at `dim`, not limited."""
    luma = planes[0] + 128
    channels = (luma,) if len(planes) == 1 else ycc_to_rgb(luma, planes[1], planes[2])
    return torch.stack(channels, dim=dim)


def to_rgb(planes: list[Tensor], dim: int) -> Tensor:
    """The same, limited to 0..255."""
    return to_colours(planes, dim).clamp_(0, 255)
