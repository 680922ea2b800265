"""Photograph-like random images and what real encoders make of them, as tensors."""

from __future__ import annotations

import numpy as np
import torch
from jpegs import Pixels, photograph
from torch import Tensor

from kernels import Coefficients, Subsampling, quality_to_tables
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.outputs.verify import recompress


def scene(height: int, width: int, seed: int) -> Pixels:
    """[height, width, 3]: a slow gradient, waves, hard edges, flat and grainy areas, and whole parts at 0 or 255."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slopes = generator.uniform(-0.3, 0.3, (2, 2, 3)).astype(np.float32)
    phases = generator.uniform(0, 6, 3).astype(np.float32)
    image = 128 + 40 * np.sin(x[..., None] * slopes[0, 0] + y[..., None] * slopes[0, 1] + phases)
    image += (x[..., None] - width / 2) * slopes[1, 0] + (y[..., None] - height / 2) * slopes[1, 1]
    for _ in range(12):
        a, b, c = generator.normal(size=3)
        inside = a * (x - width * generator.random()) + b * (y - height * generator.random()) > abs(c) * 40
        kind = generator.integers(4)
        if kind == 0:
            image[inside] = generator.uniform(-60, 320, 3)
        elif kind == 1:
            image[inside] += generator.normal(0, 60, 3)
        elif kind == 2:
            image[inside] += 25 * generator.standard_normal((int(inside.sum()), 3), np.float32)
        else:
            image[inside] = image[inside].mean(-1, keepdims=True)
    noise = 8 * generator.standard_normal((height, width, 3), np.float32)
    return (image + (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 2).round().clip(0, 255).astype(np.uint8)


def in_colours_of(pixels: Pixels, sampling: Subsampling) -> Pixels:
    """[H, W] of the green channel for gray, the same otherwise."""
    return np.ascontiguousarray(pixels[..., 1]) if sampling is Subsampling.GRAY else pixels


def tensor_of(pixels: Pixels) -> Tensor:
    """[H, W, 3] or [H, W] → [1, C, H, W] uint8."""
    return torch.tensor(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None].contiguous()


def pixels_of(image: Tensor) -> Pixels:
    """[C, H, W] uint8 → [H, W, 3] or [H, W]."""
    return np.ascontiguousarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def tables_of(quality: int, sampling: Subsampling) -> Tensor:
    """[1, C, 8, 8] int32."""
    return quality_to_tables(quality, sampling.components)[None]


def by_libjpeg(pixels: Pixels, tables: Tensor, sampling: Subsampling) -> Coefficients:
    """What a real libjpeg-turbo makes of an image with `tables` [1, C, 8, 8]."""
    c = read_bitstream(recompress(pixels, tables[0].numpy(), sampling)).coefficients
    assert c.sampling is sampling
    assert torch.equal(c.tables, tables)
    return c


def stack(several: list[Coefficients]) -> Coefficients:
    """Images of one sampling and size as one batch."""
    planes = tuple(torch.cat(plane) for plane in zip(*(c.planes for c in several), strict=True))
    return Coefficients(planes, torch.cat([c.tables for c in several]), several[0].sampling, several[0].size)


def pick(c: Coefficients, images: list[int]) -> Coefficients:
    """Some images of a batch, in the order given."""
    return Coefficients(tuple(plane[images] for plane in c.planes), c.tables[images], c.sampling, c.size)


def pictures(images: int, sampling: Subsampling, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, C, H, W], 0..255: scenes by torch's seed, the last with a block of each end of the gamut, and a little beyond
    it where the dtype can."""
    seeds = torch.randint(1 << 30, (images,)).tolist()
    x = torch.cat([tensor_of(in_colours_of(scene(*size, seed), sampling)) for seed in seeds]).to(torch.float32)
    if dtype.is_floating_point:
        x = x + torch.rand(x.shape) - 0.5
        x[-1, :, :8, :8], x[-1, 0, :8, 8:16], x[-1, :, 8:16, :8] = -3.0, 258.0, 255.0
    return x.to(dtype)


def random_tables(images: int, sampling: Subsampling) -> Tensor:
    """[N, C, 8, 8] int32: of a random quality each, the first all ones and the last all 255 when there are three."""
    qualities = torch.randint(5, 96, (images,)).tolist()
    tables = torch.cat([tables_of(quality, sampling) for quality in qualities])
    if images > 2:
        tables[0], tables[-1] = 1, 255
    return tables


def image(height=70, width=90, seed=0):
    """A photograph, [3, height, width] uint8."""
    return tensor_of(photograph(height, width, seed))[0]
