"""Clean images held in memory, and random crops of them: those of a step are a pure function of (seed, step), so that a
resumed run sees the very crops that an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.source import Item, read
from pipeline.jpeg.fallback import for_pillow


def load_images(paths: Sequence[str], smallest: int) -> list[Tensor]:
    """Every JPEG under `paths` (tar shards, folders, files) that is at least `smallest` pixels each way, as
    [3, H, W] uint8. Raises SourceError when there is none, and for one that cannot be decoded, naming it."""
    images = []
    for path in paths:
        for item in tqdm(read(list_sources(Path(path))), desc=f"loading {Path(path).name}", unit="img", leave=False):
            if isinstance(item, Item):
                image = _decode(item, path)
                if min(image.shape[1:]) >= smallest:
                    images.append(image)
    if not images:
        raise SourceError(f"no image of at least {smallest}x{smallest} pixels in {', '.join(paths)}")
    return images


def _decode(item: Item, path: str) -> Tensor:
    if item.data is None:
        raise SourceError(f"{item.source} (of {path}): {item.error}")
    try:
        pixels = np.array(Image.open(for_pillow(item.data)).convert("RGB"))
    except Exception as error:  # Pillow raises half a dozen types over damaged files
        raise SourceError(f"{item.source} (of {path}) cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The random generator of one training step, the same on every rank; what is drawn from one stream does not change
    another. It heeds 32 bits of what it is given, so the seed is mixed into these. The golden ratio's multiples keep
    the steps of one seed away from another's."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + stream * 0x85EBCA6B + step) & 0xFFFFFFFF)


def areas_of(images: Sequence[Tensor]) -> Tensor:
    """[n] float64: the pixels of each image."""
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
    """[count, 3, crop, crop] uint8: places uniform over all pixels of all images, in random orientations: 8, 2
    (mirrored or not) or 1. All are drawn, and those of `own` are cut: ranks share out what one would have seen. areas:
    `areas_of` these images, if the caller keeps them."""
    areas = areas_of(images) if areas is None else areas
    chosen = torch.multinomial(areas, count, replacement=True, generator=random).tolist()
    places = torch.rand(count, 3, generator=random).tolist()
    crops = []
    for index, place in zip(chosen[own], places[own], strict=True):
        image = images[index]
        top, left = (int(p * (size - crop + 1)) for p, size in zip(place, image.shape[1:], strict=False))
        patch = image[:, top : top + crop, left : left + crop]
        turn = int(place[2] * orientations)
        if orientations == 8:
            patch = patch.rot90(turn % 4, (1, 2))
        crops.append(patch.flip(2) if turn >= orientations / 2 and orientations > 1 else patch)
    return torch.stack(crops)
