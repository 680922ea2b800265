"""Colour as JFIF has it: ITU-R BT.601's luma and two differences, full range, in real numbers."""

from __future__ import annotations

from torch import Tensor

# JFIF 1.02: Y = 0.299 R + 0.587 G + 0.114 B, Cb = (B - Y) / 1.772 + 128, Cr = (R - Y) / 1.402 + 128.
RED, GREEN, BLUE = 0.299, 0.587, 0.114
BLUE_RANGE, RED_RANGE = 2 * (1 - BLUE), 2 * (1 - RED)


def rgb_to_ycc(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Luma and the two differences, all less their middle of 128: what the DCT is taken of."""
    luma = (red * RED).add(green, alpha=GREEN).add(blue, alpha=BLUE)
    return luma - 128, (blue - luma) / BLUE_RANGE, (red - luma) / RED_RANGE


def differences_to_rgb(luma: Tensor, blueness: Tensor, redness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The linear part of the way back: a change of (Y, Cb, Cr) as a change of (R, G, B)."""
    green = luma.add(blueness, alpha=-BLUE * BLUE_RANGE / GREEN).add(redness, alpha=-RED * RED_RANGE / GREEN)
    return luma.add(redness, alpha=RED_RANGE), green, luma.add(blueness, alpha=BLUE_RANGE)
