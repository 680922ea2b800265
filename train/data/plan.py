"""Chooses the crops of a training step: a pure function of (seed, step, index)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from train.checks import expect, expect_positive
from train.data.index import Index

_WORD = (1 << 64) - 1


class LoaderError(Exception):
    """The loader cannot start or continue; the message says why, and what to do."""


@dataclass(frozen=True)
class LoaderConfig:
    """Images, crops and ranks of the DALI loader. Raises ConfigError for invalid values."""

    paths: list[str]  # folders, tar shards, JPEG and PNG files
    crop: int = 128  # height and width, pixels
    batch: int = 32  # crops per step on this rank
    orientations: int = 8  # random orientations: 8, 2 (mirrored or not, for images with a fixed upper side) or 1
    seed: int = 0
    rank: int = 0
    world: int = 1  # number of ranks
    device: str = "cpu"  # or cuda, cuda:1, …: where crops are decoded and returned
    threads: int = 2  # decoding threads of DALI
    readers: int = 4  # threads that read files
    prefetch: int = 2  # batches that are decoded ahead, and as many that are read ahead
    cache: str = ""  # folder of the index; empty: jpeg-posterior in the user's cache folder

    def __post_init__(self) -> None:
        expect(self, "paths", bool(self.paths), "one path or more")
        expect_positive(self, "crop", "batch", "prefetch", "threads", "readers")
        expect(self, "rank", 0 <= self.rank < self.world, f"0 to {self.world - 1}")
        expect(self, "orientations", self.orientations in (1, 2, 8), "1, 2 or 8")
        kind = self.device.partition(":")[0]
        usable = kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())
        expect(self, "device", usable, "cpu, or a GPU that PyTorch sees")


@dataclass(frozen=True)
class Crop:
    """The position of a crop."""

    image: int  # number in the index
    epoch: int  # pass over all images
    top: int  # first row
    left: int  # first column
    orientation: int  # bits, applied in this order: 4 transposed, 2 flipped vertically, 1 flipped horizontally
    is_replacement: bool = False  # replaces a crop of a broken image


def plan(index: Index, config: LoaderConfig, step: int) -> list[Crop]:
    """This rank's crops of a step, at uniform positions in each image and in uniform orientations. A crop of a broken
    image is replaced by a second crop of the next sound image in the batch, cyclically, or if the batch has none, by
    one of the next sound image of the epoch.

    Raises LoaderError if all images are broken."""
    first = (step * config.world + config.rank) * config.batch
    crops = []
    for position in range(first, first + config.batch):
        epoch, number = divmod(position, len(index))
        crops.append(_crop(index, config, position, int(_order(config.seed, epoch, len(index))[number])))
    sound = [crop.image not in index.broken for crop in crops]
    for slot in range(config.batch):
        if not sound[slot]:
            donors = (crops[i].image for i in range(slot - config.batch, slot) if sound[i])
            donor = next(donors, None)
            if donor is None:
                donor = _next_sound(index, config, first + slot)
            crops[slot] = replace(_crop(index, config, first + slot, donor), is_replacement=True)
    return crops


def _next_sound(index: Index, config: LoaderConfig, position: int) -> int:
    """The first sound image from this position of its epoch on, cyclically. Raises LoaderError if there is none."""
    epoch, number = divmod(position, len(index))
    for image in np.roll(_order(config.seed, epoch, len(index)), -number):
        if int(image) not in index.broken:
            return int(image)
    raise LoaderError(f"all images are broken, such as {index.name(0)}: {index.broken[0]}")


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1, from raw Philox output, which is stable across NumPy releases."""
    bits = np.random.Philox(key=[seed & _WORD, 0], counter=[0, epoch, 0, 0]).random_raw(count)
    return np.argsort(bits, kind="stable")


def _crop(index: Index, config: LoaderConfig, position: int, image: int) -> Crop:
    """The crop of `image` at this position in the sequence of all crops, by the position's own random bits."""
    bits = np.random.Philox(key=[config.seed & _WORD, 1], counter=[position, 0, 0, 0]).random_raw(3)
    choices = (*(index.sizes[image] - config.crop + 1), config.orientations)
    top, left, orientation = (int(word) * int(n) >> 64 for word, n in zip(bits, choices, strict=True))
    return Crop(image, position // len(index), top, left, orientation)
