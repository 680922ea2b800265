"""Images of 16 bits a channel, for those who grade further. libjpeg takes 8 bits, so there is no certificate: instead
it is said how far, at most, a coefficient lies outside its interval."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import Coefficients, excess, project

LEVELS = 257
"""16-bit levels in a gray level."""

PASSES, RELAXATION = 8, 1.8
"""Projections onto the intervals and the gamut in turn, each but the last drawn out by this factor. Of real files, at
quality 50 and at their own 96, the largest excess was then 0.05 and 0.3 steps; without the factor 0.08 and 0.8."""


def project_16(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """The 16-bit image near x [N, C, H, W], gray levels, with (nearly) all coefficients in c's intervals: [N, C, H, W]
    uint16, and [N] float64 its `excess`."""
    for number in range(PASSES):
        nearest = project(x, c)
        x = (nearest if number == PASSES - 1 else torch.lerp(x, nearest, RELAXATION)).clamp_(0, 255)
    levels = (x * LEVELS).round_()
    return levels.to(torch.uint16), excess(levels / LEVELS, c)
