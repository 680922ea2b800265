"""Sources of a step's clean crops: images held in memory (photographs.py, crops.py) or the DALI loader (loader.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from model.generator import ALIGNMENT
from pipeline.inputs.listing import SourceError
from train.checks import expect, expect_positive
from train.data.crops import areas_of, random_crops, step_generator
from train.data.loader import Loader
from train.data.photographs import load_images
from train.data.plan import LoaderConfig
from train.distributed import Ranks, to_device

if TYPE_CHECKING:
    from train.config import Config

LOADERS = ("memory", "dali")


@dataclass(frozen=True)
class DataConfig:
    """Clean images and their crops."""

    train: list[str] = field(default_factory=list)  # paths of tar shards, folders or files
    validation: str = ""  # a path of held-out images for validation during training
    crop: int = 96  # height and width, pixels, a multiple of 16
    late_crop: int = 0  # the same for the second half of `optimiser.steps`; 0: `crop`
    batch: int = 32  # crops per step, on all ranks together
    loader: str = "memory"  # memory: all decoded at the start, and kept in RAM; dali: crops decoded as needed
    orientations: int = 8  # random orientations: 8, 2 (mirrored or not, for images with a fixed upper side) or 1
    workers: int = 4  # dali: decoding threads, and as many reading threads

    def __post_init__(self) -> None:
        expect_positive(self, "batch", "workers")
        expect(self, "crop", self.crop > 0 and self.crop % ALIGNMENT == 0, f"a multiple of {ALIGNMENT} pixels")
        late = self.late_crop
        expect(self, "late_crop", late >= 0 and late % ALIGNMENT == 0, f"0, or a multiple of {ALIGNMENT}")
        expect(self, "loader", self.loader in LOADERS, " or ".join(LOADERS))
        expect(self, "orientations", self.orientations in (1, 2, 8), "1, 2 or 8")


class CropSource(Protocol):
    """Crops by step. The crops of all ranks together do not depend on the number of ranks."""

    def batch(self, step: int) -> Tensor:
        """This rank's crops of the step: [n, 3, s, s] uint8 on its device, with s = `crop_at(step)`. The ranks' crops
        in rank order are the crops of the step."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save in a checkpoint, besides the step."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def crop_at(step: int, config: Config) -> int:
    """Height and width of the step's crops, pixels."""
    late = config.data.late_crop and step >= config.optimiser.steps // 2
    return config.data.late_crop if late else config.data.crop


class MemorySource:
    """Crops of images [3, H, W] uint8 in memory, a pure function of (seed, step)."""

    def __init__(self, images: list[Tensor], config: Config, ranks: Ranks) -> None:
        self.images, self.areas, self.config, self.ranks = images, areas_of(images), config, ranks
        count = ranks.local_batch(config.data.batch, config.optimiser.accumulate)
        self.own = slice(ranks.rank * count, (ranks.rank + 1) * count)

    def batch(self, step: int) -> Tensor:
        """See CropSource."""
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
        return to_device(crops, self.ranks.device)

    def state_dict(self) -> dict[str, Any]:
        sizes = ",".join(f"{image.shape[1]}x{image.shape[2]}" for image in self.images)
        return {"sizes": blake2b(sizes.encode(), digest_size=8).hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises SourceError if the images have not the number and sizes of those when the state was saved."""
        own = self.state_dict()
        if state.get("sizes", own["sizes"]) != own["sizes"]:
            raise SourceError(
                f"{', '.join(self.config.data.train)}: not the images with which the run was begun, by number or size: "
                "give these, or another run.output to start afresh"
            )

    def close(self) -> None:
        """Without effect: there are no resources."""


class DaliSource:
    """Crops by the DALI loader, which shows each image once per epoch. With `late_crop`, crops of the larger size are
    decoded and cut to the step's size."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, data = config, config.data
        self.loader = Loader(
            LoaderConfig(
                paths=data.train,
                crop=max(data.crop, data.late_crop),
                batch=ranks.local_batch(data.batch, config.optimiser.accumulate),
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
        """See CropSource. Moves the loader to `step` if it is at another one."""
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


def open_source(config: Config, ranks: Ranks) -> CropSource:
    """The source that `data.loader` names. Raises SourceError for missing images, LoaderError if DALI cannot start, and
    ConfigError for a batch that the ranks cannot divide evenly."""
    if config.data.loader == "dali":
        return DaliSource(config, ranks)
    smallest = max(config.data.crop, config.data.late_crop)
    return MemorySource(load_images(config.data.train, smallest), config, ranks)
