"""Random crops of clean images for training, decoded by NVIDIA DALI: only the crop itself, on the GPU by nvJPEG.

    loader = Loader(LoaderConfig(paths=["photos", "shards/000.tar"], crop=128, batch=32, device="cuda:0"))
    for batch in loader:                       # without end
        batch.images                           # [32, 3, 128, 128] uint8 on the device
        checkpoint["loader"] = loader.state_dict()

The bytes are read here, at the places that the index knows, and not by DALI's readers. Those shuffle within a window
and give up the pipeline over a file that breaks; and as their checkpoint counts places in an index, other images are
silently lost from the epoch, and repeated, once the file is taken out of it. Here what a step shows is a pure function
of (seed, step, index), so a checkpoint is a number, and DALI holds no state to save.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.jpeg.dali_frontend import dali_cause
from train.data.dali_crops import (
    TOUCHSTONE,
    build_pipeline,
    find_undecodable,
    graph_inputs,
    run_pipeline,
    touchstone,
)
from train.data.index import note_broken, open_index
from train.data.plan import Crop, LoaderConfig, LoaderError, plan


@dataclass(frozen=True)
class Batch:
    """images: [batch, 3, crop, crop] uint8, RGB. crops: one for each. step: counted from 0."""

    images: Tensor
    crops: list[Crop]
    step: int


@dataclass
class _Request:
    """A batch under way: first its files are read, then DALI has them."""

    step: int
    crops: list[Crop]
    files: list[Future[bytes]]

    def encoded(self) -> list[NDArray[np.uint8]]:
        return [np.frombuffer(file.result(), np.uint8) for file in self.files]


class Loader:
    """Batches without end. Every image comes once in an epoch, over all ranks, in an order and with crops that the seed
    decides. The ranks' batches together are a step; how it is divided among them changes nothing in it.

    An image that cannot be decoded is dropped, named in `dropped`, and not tried again until its file changes; a second
    crop of an image of the same batch stands in for it, so that all ranks stay in step and no other image is lost.
    Damage that libjpeg decodes with a mere warning, as Pillow does, goes unnoticed.
    """

    def __init__(self, config: LoaderConfig) -> None:
        """Reads the headers, or the index that an earlier run has kept. Raises LoaderError without DALI or for a
        configuration that makes no sense, SourceError when there is nothing to train on."""
        _check(config)
        self.config = config
        self.index = open_index(config.paths, config.crop, _cache(config))
        self.step = 0
        if self.index.skipped and not config.rank:
            name, reason = next(iter(self.index.skipped.items()))
            tqdm.write(f"{len(self.index.skipped)} of the images are left out, such as {name}: {reason}")
        self._readers = ThreadPoolExecutor(config.readers, "loader")
        self._reading: deque[_Request] = deque()
        self._decoding: deque[_Request] = deque()
        self._pipeline: Any = None

    @property
    def epoch(self) -> int:
        """In which pass over all images the next batch begins."""
        return self._position() // len(self.index)

    @property
    def skipped(self) -> dict[str, str]:
        """Name → reason of the images that were left out by their headers or size."""
        return self.index.skipped

    @property
    def dropped(self) -> dict[str, str]:
        """Name → reason of the images that turned out to be broken when they were read or decoded."""
        return {self.index.name(image): reason for image, reason in self.index.broken.items()}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Raises LoaderError when a whole batch is broken, or DALI fails for another reason than a broken image."""
        while True:
            if self._pipeline is None:
                self._pipeline = build_pipeline(self.config, self._feed, self.config.batch, self.config.prefetch)
            try:
                images = run_pipeline(self._pipeline, self.config)
            except RuntimeError as error:
                self._drop_broken(error)
                continue
            request = self._decoding.popleft()
            self.step += 1
            return Batch(images, request.crops, request.step)

    def state_dict(self) -> dict[str, Any]:
        """All that the next batch depends on, in plain types: the same on each rank, but for the images that this rank
        alone has found to be broken."""
        broken = sorted(self.index.broken.items())
        return {"position": self._position(), **self._identity(), "broken": [[image, why] for image, why in broken]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, with any division of the same step among ranks. Raises LoaderError when
        images, crop, seed or the size of a step are others."""
        differing = [key for key, value in self._identity().items() if state.get(key) != value]
        if differing:
            raise LoaderError(
                f"the checkpoint's loader had another {', '.join(differing)}: give the same data and crops"
            )
        self.step = state["position"] // (self.config.batch * self.config.world)
        self.index.broken = dict(state["broken"])
        self._restart()

    def close(self) -> None:
        """Ends the threads, and frees what DALI holds."""
        self._restart()
        self._readers.shutdown()

    def _identity(self) -> dict[str, Any]:
        config = self.config
        crops = config.batch * config.world
        return {
            "images": self.index.fingerprint(),
            "crop": config.crop,
            "orientations": config.orientations,
            "seed": config.seed,
            "crops_per_step": crops,
        }

    def _position(self) -> int:
        return self.step * self.config.batch * self.config.world

    def _restart(self) -> None:
        self._pipeline = None
        for request in self._reading:
            for file in request.files:
                file.cancel()
        self._reading.clear()
        self._decoding.clear()

    def _feed(self) -> list[Any]:
        """DALI's next input; while it decodes, files of `prefetch` more batches are read."""
        step = self._decoding[-1].step + 1 if self._decoding else self.step
        while len(self._reading) <= self.config.prefetch:
            self._reading.append(self._request(step + len(self._reading)))
        request = self._reading.popleft()
        while unreadable := _unreadable(request):
            self.index.broken.update(unreadable)  # for this run: the disk may be at fault, not the file
            self._report(unreadable)
            request = self._request(step)
        self._decoding.append(request)
        return graph_inputs(request.encoded(), request.crops)

    def _request(self, step: int) -> _Request:
        crops = plan(self.index, self.config, step)
        return _Request(step, crops, [self._readers.submit(self.index.read, crop.image) for crop in crops])

    def _drop_broken(self, error: RuntimeError) -> None:
        """DALI does not say which of the batches in its queue failed, so each image in it is tried alone."""
        samples = [sample for one in self._decoding for sample in zip(one.crops, one.encoded(), strict=True)]
        broken = dict(find_undecodable(self.config, [*samples, touchstone(self.config.crop)]))
        if not broken or TOUCHSTONE in broken:
            how = "with a sound image, too" if broken else "though it decodes each image alone"
            raise LoaderError(f"DALI fails at step {self.step}, {how}: {dali_cause(error)}") from error
        for image, reason in broken.items():
            note_broken(self.index, image, reason, _cache(self.config))
        self._report(broken)
        self._restart()

    def _report(self, broken: dict[int, str]) -> None:
        for image, reason in broken.items():
            tqdm.write(f"dropped {self.index.name(image)}: {reason}")


def _unreadable(request: _Request) -> dict[int, str]:
    errors = zip(request.crops, (file.exception() for file in request.files), strict=True)
    return {crop.image: f"cannot be read: {error}" for crop, error in errors if error is not None}


def _check(config: LoaderConfig) -> None:
    try:
        import nvidia.dali  # noqa: F401, PLC0415
    except ImportError as error:
        raise LoaderError(
            "training images are decoded by NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130 "
            "(Linux only; nvidia-dali-cuda120 where the GPU's driver knows no CUDA 13)"
        ) from error
    sizes = {"crop": config.crop, "batch": config.batch, "prefetch": config.prefetch}
    sizes |= {"threads": config.threads, "readers": config.readers}
    wrong = [f"{name} is {value}, expected 1 or more" for name, value in sizes.items() if value < 1]
    if not 0 <= config.rank < config.world:
        wrong.append(f"rank is {config.rank} of {config.world}")
    if config.orientations not in (1, 2, 8):
        wrong.append(f"orientations is {config.orientations}, expected 8, 2 or 1")
    if not config.paths:
        wrong.append("no paths are given")
    if config.device.partition(":")[0] not in ("cpu", "cuda"):
        wrong.append(f"device is {config.device}, expected cpu or cuda")
    elif config.device.startswith("cuda") and not torch.cuda.is_available():
        wrong.append(f"device is {config.device}, but PyTorch finds no GPU")
    if wrong:
        raise LoaderError("the loader's configuration: " + "; ".join(wrong))


def _cache(config: LoaderConfig) -> Path:
    if config.cache:
        return Path(config.cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jpeg-posterior"
