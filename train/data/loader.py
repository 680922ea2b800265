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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.jpeg.fallback import for_pillow
from train.data.index import Index, note_broken, open_index

_WORD = (1 << 64) - 1
_TOUCHSTONE = -1


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
                self._pipeline = _build(self.config, self._feed, self.config.batch, self.config.prefetch)
            try:
                images = _run(self._pipeline, self.config)
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
        return _inputs(request.encoded(), request.crops)

    def _request(self, step: int) -> _Request:
        crops = plan(self.index, self.config, step)
        return _Request(step, crops, [self._readers.submit(self.index.read, crop.image) for crop in crops])

    def _drop_broken(self, error: RuntimeError) -> None:
        """DALI does not say which of the batches in its queue failed, so each image in it is tried alone."""
        samples = [sample for one in self._decoding for sample in zip(one.crops, one.encoded(), strict=True)]
        broken = dict(_trials(self.config, [*samples, _touchstone(self.config.crop)]))
        if not broken or _TOUCHSTONE in broken:
            how = "with a sound image, too" if broken else "though it decodes each image alone"
            raise LoaderError(f"DALI fails at step {self.step}, {how}: {_reason(error)}") from error
        for image, reason in broken.items():
            note_broken(self.index, image, reason, _cache(self.config))
        self._report(broken)
        self._restart()

    def _report(self, broken: dict[int, str]) -> None:
        for image, reason in broken.items():
            tqdm.write(f"dropped {self.index.name(image)}: {reason}")


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


def _unreadable(request: _Request) -> dict[int, str]:
    errors = zip(request.crops, (file.exception() for file in request.files), strict=True)
    return {crop.image: f"cannot be read: {error}" for crop, error in errors if error is not None}


def _inputs(encoded: list[NDArray[np.uint8]], crops: list[Crop]) -> list[Any]:
    """In the order of the graph's external source."""
    orientation = np.array([crop.orientation for crop in crops], np.int32)
    start = np.array([(crop.top, crop.left) for crop in crops], np.int32)
    return [encoded, start, (orientation & 4) > 0, orientation >> 1 & 1, orientation & 1]


def _build(config: LoaderConfig, source: Callable[[], list[Any]], batch: int, prefetch: int) -> Any:
    """DALI's pipeline: encoded files → [batch, 3, crop, crop] uint8 on the device."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - only where it is needed: it exists for Linux alone

    device = torch.device(config.device)
    gpu = device.type == "cuda"
    number = (torch.cuda.current_device() if device.index is None else device.index) if gpu else None

    def graph() -> Any:
        encoded, start, transposed, upside_down, mirrored = fn.external_source(
            source=source,
            num_outputs=5,
            dtype=[types.UINT8, types.INT32, types.BOOL, types.INT32, types.INT32],
            ndim=[1, 1, 0, 0, 0],
        )
        pixels = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=[config.crop, config.crop],
            axes=[0, 1],
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # Pillow decodes what is stored
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo does, on the GPU too
        )
        if transposed:
            planes = fn.transpose(pixels, perm=[2, 1, 0], transpose_layout=False, output_layout="CHW")
        else:
            planes = fn.transpose(pixels, perm=[2, 0, 1], transpose_layout=False, output_layout="CHW")
        return fn.flip(planes, vertical=upside_down, horizontal=mirrored)

    pipeline = pipeline_def(
        graph,
        batch_size=batch,
        num_threads=config.threads,
        device_id=number,
        prefetch_queue_depth=prefetch,
        enable_conditionals=True,
    )()
    pipeline.build()
    return pipeline


def _run(pipeline: Any, config: LoaderConfig) -> Tensor:
    """[batch, 3, crop, crop] uint8: copied, on the device, out of the buffers that DALI uses again."""
    from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415

    device = torch.device(config.device)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    found = pipeline.run(stream)[0].as_tensor()
    images = torch.empty(found.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(found, images, cuda_stream=stream)
    return images


def _trials(config: LoaderConfig, samples: Iterable[tuple[Crop, NDArray[np.uint8]]]) -> Iterator[tuple[int, str]]:
    """(image, reason) of those that DALI cannot decode."""
    waiting: list[Any] = []

    def next_sample() -> Any:  # DALI cannot call a built-in function
        return waiting.pop()

    pipeline = None
    for crop, encoded in samples:
        waiting.append(_inputs([encoded], [crop]))
        if pipeline is None:
            pipeline = _build(config, next_sample, 1, 1)
        try:
            _run(pipeline, config)
        except RuntimeError:  # which does not say why
            pipeline = None
            yield crop.image, f"DALI cannot decode it, {_pillow_says(encoded)}"


def _touchstone(side: int) -> tuple[Crop, NDArray[np.uint8]]:
    """An image that is known to be sound, to tell a fault of the images from one of the device or of DALI."""
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    return Crop(_TOUCHSTONE, 0, 0, 0, 0), np.frombuffer(file.getvalue(), np.uint8)


def _pillow_says(encoded: NDArray[np.uint8]) -> str:
    try:
        Image.open(for_pillow(encoded.tobytes())).load()
    except Exception as error:  # Pillow raises half a dozen types over damaged files
        return f"nor can Pillow: {error}"
    return "though Pillow can"


def _reason(error: RuntimeError) -> str:
    """The cause in DALI's error of many lines."""
    cause = str(error).rpartition("encountered:")[2].strip()
    return cause.partition("\n")[0] or type(error).__name__


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
