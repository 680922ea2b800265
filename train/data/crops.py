"""Random crops of clean images in memory: a pure function of (seed, step), so that a resumed run has the same
crops as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CROPS, DEGRADATION, DIRECTIONS = 0, 1, 3
"""Streams of `step_generator`: crops, their JPEGs and noise, and the directions of the distance between
distributions."""


def step_generator(seed: int, step: int, stream: int = CROPS) -> torch.Generator:
    """The random generator of one training step, the same on all ranks. Streams are independent of each other.

    PyTorch's CPU generator uses 32 bits of its seed, into which seed, stream and step are mixed; multiples of the
    golden ratio keep the steps of different seeds apart."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + stream * 0x85EBCA6B + step) & 0xFFFFFFFF)


def areas_of(images: Sequence[Tensor]) -> Tensor:
    """Numbers of pixels of the images, [n] float64."""
    return torch.tensor([image.shape[1] * image.shape[2] for image in images], dtype=torch.float64)


def random_crops(
    images: Sequence[Tensor],
    crop: int,
    count: int,
    random: torch.Generator,
    *,
    areas: Tensor | None = None,
    own: slice = slice(None),
    orientations: int = 8,
) -> Tensor:
    """Crops [n, 3, crop, crop] uint8 of images [3, H, W], chosen in proportion to their areas, at uniform positions and
    in random orientations: 8, 2 (mirrored or not) or 1.

    Random numbers are drawn for `count` crops, of which those of the slice `own` are cut, so that the crops of all
    ranks do not depend on the number of ranks. areas: `areas_of(images)`, to avoid computing them again."""
    areas = areas_of(images) if areas is None else areas
    chosen = torch.multinomial(areas, count, replacement=True, generator=random).tolist()
    numbers = torch.rand(count, 3, generator=random).tolist()
    crops = []
    for index, (y, x, z) in zip(chosen[own], numbers[own], strict=True):
        image = images[index]
        top, left = (int(share * (size - crop + 1)) for share, size in zip((y, x), image.shape[1:], strict=True))
        patch = image[:, top : top + crop, left : left + crop]
        orientation = int(z * orientations)
        if orientations == 8:
            patch = patch.rot90(orientation % 4, (1, 2))
        crops.append(patch.flip(2) if orientation >= orientations / 2 and orientations > 1 else patch)
    return torch.stack(crops)
