"""Upsampling of chroma by repetition, and the transposes of repetition and averaging that gradients need. Averaging
itself is part of the matrices in dct.py.

Shapes: N images, H x W pixels, h x w chroma samples; of tiles [rows, columns] MCUs with P pixels each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.coefficients import Subsampling
from kernels.torch_ops.blocks import Region


def repeat_chroma(plane: Tensor, region: Region) -> Tensor:
    """A chroma block for each MCU, [N, rows, columns, 1, 64] → its samples repeated over it [N, rows, columns, P]."""
    vertical, horizontal = region.mcu.sampling.factors
    x = plane.reshape(*plane.shape[:3], vertical, 8 // vertical, 1, horizontal, 8 // horizontal, 1)
    x = x.expand(*x.shape[:5], vertical, horizontal, 8 // horizontal, horizontal)
    return x.movedim(6, 4).flatten(3)


def sum_under_samples(plane: Tensor, sampling: Subsampling) -> Tensor:
    """[N, H, W] → [N, h, w]: the sum over the pixels under each chroma sample, the transpose of repetition."""
    vertical, horizontal = sampling.factors
    plane = F.pad(plane, (0, -plane.shape[2] % horizontal, 0, -plane.shape[1] % vertical))
    if vertical == 2:
        plane = plane[:, ::2] + plane[:, 1::2]
    return plane[:, :, ::2] + plane[:, :, 1::2] if horizontal == 2 else plane


def averaging_adjoint(samples: Tensor, sampling: Subsampling, size: tuple[int, int]) -> Tensor:
    """[N, h, w] → [N, H, W]: the transpose of averaging. A last column or row that is half of a sample's is averaged
    with itself."""
    vertical, horizontal = sampling.factors
    if (vertical, horizontal) == (1, 1):
        return samples
    n, rows, columns = samples.shape
    shares = (samples / (vertical * horizontal))[:, :, None, :, None].expand(n, rows, vertical, columns, horizontal)
    pixels = shares.reshape(n, rows * vertical, columns * horizontal)[:, : size[0], : size[1]]
    pixels = pixels.clone(memory_format=torch.contiguous_format)  # of a single row or column it is a view still
    if size[0] % vertical:
        pixels[:, -1] *= 2
    if size[1] % horizontal:
        pixels[:, :, -1] *= 2
    return pixels
