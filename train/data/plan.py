"""Which crops a step of training shows: a pure function of (seed, step, index)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.data.index import Index

_WORD = (1 << 64) - 1


class LoaderError(Exception):
    """The loader cannot start or go on; the message says why, and what to do."""


@dataclass(frozen=True)
class LoaderConfig:
    """Which images, and how they are cut and shared out."""

    paths: list[str] = field(default_factory=list)  # folders, tar shards, JPEG and PNG files
    crop: int = 128  # pixels
    batch: int = 32  # crops a step, of this rank
    orientations: int = 8  # of a crop, all as likely: 8, 2 (mirrored or not: for what has an upper side), or 1
    seed: int = 0
    rank: int = 0
    world: int = 1  # ranks
    device: str = "cpu"  # or cuda, cuda:1, …: where images are decoded and stay
    threads: int = 2  # of DALI
    readers: int = 4  # threads that read files
    prefetch: int = 2  # batches ahead of the one in use
    cache: str = ""  # folder for the index; empty: jpeg-posterior in the user's cache folder


@dataclass(frozen=True)
class Crop:
    """Where a crop comes from: a square of image number `image` from row `top` and column `left` on; then, by the bits
    of `orientation`, transposed (4), flipped upside down (2), flipped left to right (1).

    epoch: in which pass over all images. stands_in: it replaces one of an image that is broken.
    """

    image: int
    epoch: int
    top: int
    left: int
    orientation: int
    stands_in: bool = False


def plan(index: Index, config: LoaderConfig, step: int) -> list[Crop]:
    """The crops of this rank in a step: places uniform in each image, all orientations alike.

    Raises LoaderError when all their images are broken."""
    first = (step * config.world + config.rank) * config.batch
    crops = []
    for position in range(first, first + config.batch):
        epoch, place = divmod(position, len(index))
        crops.append(_crop(index, config, position, int(_order(config.seed, epoch, len(index))[place])))
    sound = [crop.image not in index.broken for crop in crops]
    if not any(sound):
        raise LoaderError(f"all images of step {step} are broken, such as {index.name(crops[0].image)}")
    for slot in range(config.batch):
        if not sound[slot]:
            donor = next(i for i in range(slot - config.batch, slot) if sound[i])
            stand_in = _crop(index, config, first + slot, crops[donor].image)
            crops[slot] = replace(stand_in, stands_in=True)
    return crops


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1, from bits that no release of numpy may change."""
    bits = np.random.Philox(key=[seed & _WORD, 0], counter=[0, epoch, 0, 0]).random_raw(count)
    return np.argsort(bits, kind="stable")


def _crop(index: Index, config: LoaderConfig, position: int, image: int) -> Crop:
    """One block of random bits for each position in the sequence of all crops."""
    bits = np.random.Philox(key=[config.seed & _WORD, 1], counter=[position, 0, 0, 0]).random_raw(3)
    choices = (*(index.sizes[image] - config.crop + 1), config.orientations)
    top, left, orientation = (int(word) * int(n) >> 64 for word, n in zip(bits, choices, strict=True))
    return Crop(image, position // len(index), top, left, orientation)
