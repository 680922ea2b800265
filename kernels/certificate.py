"""What libjpeg-turbo would make of candidate MCUs, and how far that is from what the file says.

A candidate is [..., C, P] integers 0..255 (float32) in tile order. Coefficients are 8 times the DCT, as libjpeg-turbo
holds them before it quantises: integers in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.libjpeg import integer_forward
from kernels.mcu import Mcu


def find(candidate: Tensor, mcu: Mcu) -> Tensor:
    """[..., C, P] → [..., B, 64], 8 times the coefficients by libjpeg-turbo's own arithmetic, luma's blocks first."""
    return integer_forward(candidate, mcu).float()


def deviation(found: Tensor, centre: Tensor) -> Tensor:
    """How far `found` is from 8 times the interval's middle. libjpeg-turbo rounds half away from zero, so of an
    interval 4 steps each way the end nearer to zero belongs to it and the farther does not: half a unit tells them
    apart."""
    return found.sub(centre, alpha=8).add_(centre.sign(), alpha=0.5)


def limit(step: Tensor) -> Tensor:
    """The largest deviation, either way, that still quantises to the file's coefficient."""
    return 4 * step - 0.5


def is_wrong(found: Tensor, centre: Tensor, step: Tensor, mcu: Mcu) -> Tensor:
    """Whether libjpeg-turbo quantises to something else than centre / step. Padding blocks are never wrong."""
    wrong = deviation(found, centre).abs_() > limit(step)
    return wrong if mcu.whole else wrong & true_blocks(mcu, found)


def true_blocks(mcu: Mcu, like: Tensor) -> Tensor:
    """[B, 1] bool: the blocks of `like` [..., B, 64] that hold pixels of the image; the others are padding."""
    shown = mcu.true_luma_blocks
    return torch.tensor(shown + [True] * (like.shape[-2] - len(shown)), device=like.device)[:, None]
