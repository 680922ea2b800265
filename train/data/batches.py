"""Where a step's clean crops come from: JPEGs held in memory, or DALI's loader (train/data/loader.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from model.generator import ALIGNMENT
from train.checks import expect, expect_positive
from train.data.crops import areas_of, load_images, random_crops, step_generator
from train.data.loader import Loader
from train.data.plan import LoaderConfig
from train.distributed import Ranks, on_device

if TYPE_CHECKING:
    from train.config import Config

LOADERS = ("memory", "dali")


@dataclass(frozen=True)
class DataConfig:
    """Clean images and how they are cut."""

    train: list[str] = field(default_factory=list)  # tar shards, folders or files of clean images
    validation: str = ""  # the same for the figures printed on the way; never trained on
    crop: int = 96  # pixels, a multiple of 16
    late_crop: int = 0  # the same in the second half of `optimiser.steps`; 0: as before
    batch: int = 32  # crops a step, of all ranks together
    loader: str = "memory"  # memory: JPEGs alone, all decoded and kept; dali: crops decoded as they are needed
    orientations: int = 8  # of a crop, all as likely: 8, 2 (mirrored or not: for what has an upper side), or 1
    workers: int = 4  # threads of dali that decode, and as many that read

    def __post_init__(self) -> None:
        expect_positive(self, "batch", "workers")
        expect(self, "crop", self.crop > 0 and self.crop % ALIGNMENT == 0, f"a multiple of {ALIGNMENT} pixels")
        late = self.late_crop
        expect(self, "late_crop", late >= 0 and late % ALIGNMENT == 0, f"0, or a multiple of {ALIGNMENT}")
        expect(self, "loader", self.loader in LOADERS, " or ".join(LOADERS))
        expect(self, "orientations", self.orientations in (1, 2, 8), "1, 2 or 8")


class Source(Protocol):
    """Crops by step: all ranks' together are the same however many ranks there are."""

    def batch(self, step: int) -> Tensor:
        """[n, 3, crop, crop] uint8, as large as `crop_at` says, on the rank's device: its share of the step's crops,
        one after another in rank order."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it, besides the step."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def crop_at(step: int, config: Config) -> int:
    """Pixels of a side of the step's crops."""
    late = config.data.late_crop and step >= config.optimiser.steps // 2
    return config.data.late_crop if late else config.data.crop


class MemorySource:
    """Crops of images in memory, a pure function of (seed, step)."""

    def __init__(self, images: list[Tensor], config: Config, ranks: Ranks) -> None:
        self.images, self.areas, self.config, self.ranks = images, areas_of(images), config, ranks
        share = ranks.share(config.data.batch)
        self.own = slice(ranks.rank * share, (ranks.rank + 1) * share)

    def batch(self, step: int) -> Tensor:
        data = self.config.data
        random = step_generator(self.config.run.seed, step)
        crops = random_crops(
            self.images,
            crop_at(step, self.config),
            data.batch,
            random,
            areas=self.areas,
            own=self.own,
            orientations=data.orientations,
        )
        return on_device(crops, self.ranks.device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing is open."""


class DaliSource:
    """Each image once an epoch, decoded when its turn comes. Where crops grow, all are cut as the largest."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, data = config, config.data
        self.loader = Loader(
            LoaderConfig(
                paths=data.train,
                crop=max(data.crop, data.late_crop),
                batch=ranks.share(data.batch),
                orientations=data.orientations,
                seed=config.run.seed,
                rank=ranks.rank,
                world=ranks.size,
                device=str(ranks.device),
                threads=data.workers,
                readers=data.workers,
            )
        )

    def batch(self, step: int) -> Tensor:
        if step != self.loader.step:
            state = self.loader.state_dict()
            self.loader.load_state_dict(state | {"position": step * state["crops_per_step"]})
        crop = crop_at(step, self.config)
        return next(self.loader).images[..., :crop, :crop]

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)

    def close(self) -> None:
        self.loader.close()


def open_source(config: Config, ranks: Ranks) -> Source:
    """Raises SourceError for images that are missing, LoaderError where DALI cannot start, ConfigError for a batch that
    the ranks cannot share."""
    if config.data.loader == "dali":
        return DaliSource(config, ranks)
    smallest = max(config.data.crop, config.data.late_crop)
    return MemorySource(load_images(config.data.train, smallest), config, ranks)
