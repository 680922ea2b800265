"""Random crops of clean images, decoded by NVIDIA DALI, on the GPU by nvJPEG; only the crop itself is decoded.

    loader = Loader(LoaderConfig(paths=["photos", "shards/000.tar"], crop=128, batch=32, device="cuda:0"))
    for batch in loader:                       # endless
        batch.images                           # [32, 3, 128, 128] uint8 on the device
        checkpoint["loader"] = loader.state_dict()

Files are read here, at the offsets of the index, not by DALI's readers. Those shuffle only within a window, and a
broken file stops their pipeline; their checkpoints count positions, so that removing the file loses some other images
from the epoch and repeats others. Here the crops of a step are a pure function of (seed, step, index): a checkpoint is
a number, and DALI has no state to save.
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
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.jpeg.dali_frontend import dali_cause
from train.data.dali_crops import (
    SOUND_IMAGE,
    build_pipeline,
    find_undecodable,
    graph_inputs,
    run_pipeline,
    sound_image,
)
from train.data.index import open_index, record_broken
from train.data.plan import Crop, LoaderConfig, LoaderError, plan


@dataclass(frozen=True)
class CropBatch:
    """This rank's crops of a step."""

    images: Tensor  # [batch, 3, crop, crop] uint8, RGB, on the device
    crops: list[Crop]  # the position of each
    step: int  # counted from 0


@dataclass
class _Request:
    """A batch whose files are being read or decoded."""

    step: int
    crops: list[Crop]
    files: list[Future[bytes]]

    def encoded(self) -> list[NDArray[np.uint8]]:
        return [np.frombuffer(file.result(), np.uint8) for file in self.files]


class Loader:
    """An endless iterator of batches. Each epoch has every image once, on all ranks together, in an order and with
    crops determined by the seed. The ranks' batches together are the step, whose crops do not depend on the number of
    ranks.

    An image that cannot be decoded is dropped, listed in `dropped`, and not tried again until its file changes. A
    second crop of another image replaces it (plan.py), so that ranks stay in step and no other image is lost. Damage
    that libjpeg only warns about is not detected, as in Pillow.
    """

    def __init__(self, config: LoaderConfig) -> None:
        """Indexes the images, or reads the index of an earlier run. Raises LoaderError without DALI, and
        SourceError if there are no images."""
        _require_dali()
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
    def dropped(self) -> dict[str, str]:
        """Name → reason of the images that could not be read or decoded."""
        return {self.index.name(image): reason for image, reason in self.index.broken.items()}

    def __iter__(self) -> Iterator[CropBatch]:
        return self

    def __next__(self) -> CropBatch:
        """Raises LoaderError if all images are broken, or DALI fails for another reason."""
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
            return CropBatch(images, request.crops, request.step)

    def state_dict(self) -> dict[str, Any]:
        """The state that the next batch depends on, in plain types. The same on all ranks, except for images that only
        this rank has found to be broken."""
        broken = sorted(self.index.broken.items())
        return {"position": self._position(), **self._identity(), "broken": [[image, why] for image, why in broken]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was saved, on any number of ranks. Raises LoaderError if images, crop size, seed or
        the size of a step differ."""
        differing = [key for key, value in self._identity().items() if state.get(key) != value]
        if differing:
            raise LoaderError(
                f"{', '.join(self.config.paths)}: the checkpoint's loader had another {', '.join(differing)}: give the "
                "same data and crops, or another run.output to start afresh"
            )
        self.step = state["position"] // (self.config.batch * self.config.world)
        self.index.broken = dict(state["broken"])
        self._restart()

    def close(self) -> None:
        """Stops the threads and releases DALI's pipeline."""
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
        """The pipeline's next input. The files of `prefetch` more batches are being read meanwhile."""
        step = self._decoding[-1].step + 1 if self._decoding else self.step
        while len(self._reading) <= self.config.prefetch:
            self._reading.append(self._request(step + len(self._reading)))
        request = self._reading.popleft()
        while unreadable := _unreadable(request):
            self.index.broken.update(unreadable)  # for this run only: the cause may be the disk, not the file
            self._report(unreadable)
            request = self._request(step)
        self._decoding.append(request)
        return graph_inputs(request.encoded(), request.crops)

    def _request(self, step: int) -> _Request:
        crops = plan(self.index, self.config, step)
        return _Request(step, crops, [self._readers.submit(self.index.read, crop.image) for crop in crops])

    def _drop_broken(self, error: RuntimeError) -> None:
        """Drops the broken images. DALI does not report which image of its queue failed, so each is tried alone. Raises
        LoaderError if it is not an image that is broken."""
        samples = [sample for one in self._decoding for sample in zip(one.crops, one.encoded(), strict=True)]
        broken = dict(find_undecodable(self.config, [*samples, sound_image(self.config.crop)]))
        if not broken or SOUND_IMAGE in broken:
            how = "even with a sound image" if broken else "though it decodes each image alone"
            raise LoaderError(f"DALI fails at step {self.step}, {how}: {dali_cause(error)}") from error
        for image, reason in broken.items():
            record_broken(self.index, image, reason, _cache(self.config))
        self._report(broken)
        self._restart()

    def _report(self, broken: dict[int, str]) -> None:
        for image, reason in broken.items():
            tqdm.write(f"dropped {self.index.name(image)}: {reason}")


def _unreadable(request: _Request) -> dict[int, str]:
    errors = zip(request.crops, (file.exception() for file in request.files), strict=True)
    return {crop.image: f"cannot be read: {error}" for crop, error in errors if error is not None}


def _require_dali() -> None:
    try:
        import nvidia.dali  # noqa: F401, PLC0415
    except ImportError as error:
        raise LoaderError(
            "the loader needs NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130 "
            "(Linux only; nvidia-dali-cuda120 for GPU drivers without CUDA 13)"
        ) from error


def _cache(config: LoaderConfig) -> Path:
    if config.cache:
        return Path(config.cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jpeg-posterior"
