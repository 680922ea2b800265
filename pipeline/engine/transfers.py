"""Files and tiles as they are handed to the network: where their coefficients lie and where their images go, on the CPU
and on a GPU, and the copies between the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling
from pipeline.engine import tiling
from pipeline.engine.tiling import Tile

Deviations = tuple[float, ...]
"""Of one tile, for each image: how many coefficients are not the file's; of 16 bits, the largest excess."""


@dataclass
class DeviceCopy:
    """A picture's copy on the GPU, while there is one. done: the tiles that have been restored into its images."""

    image: ImageState | None = None
    done: set[Tile] = field(default_factory=set)


@dataclass(frozen=True)
class ImageState:
    """A file that is being restored. c: its coefficients, N = 1. images: [K, C, H, W] uint8 or uint16, which in memory
    is [K, H, W, C]; whoever restores a tile writes it there. seeds: the noise of each draw. tiles: how many there are.
    gpu_copy: made with the first tile; its images are copied back after the last."""

    c: Coefficients
    images: Tensor
    seeds: tuple[int, ...]
    tiles: int
    gpu_copy: DeviceCopy = field(default_factory=DeviceCopy)


@dataclass(frozen=True)
class TileTask:
    """One tile of a picture, and all that it takes to restore it. To another process it travels as a description of
    where that lies (memory.SharedMemory)."""

    image: ImageState
    tile: Tile

    @property
    def c(self) -> Coefficients:
        """Of core and halo."""
        return tiling.tile_coefficients(self.image.c, self.tile)

    @property
    def core(self) -> Coefficients:
        return tiling.slice_coefficients(self.image.c, *self.tile.core)

    @property
    def sampling(self) -> Subsampling:
        return self.image.c.sampling

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of core and halo."""
        rows, columns = self.tile.rows, self.tile.columns
        return rows.last - rows.first, columns.last - columns.first

    @property
    def core_size(self) -> tuple[int, int]:
        top, bottom, left, right = self.tile.core
        return bottom - top, right - left


def send(x: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU's tensor on the device; the host does not wait for it."""
    if device.type == "cpu":
        return x.clone()
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


class Transfers:
    """Copies to a device and back, beside its kernels where it has streams. The CPU is a device, too, for which all of
    this happens at once."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams = device, torch.get_device_module(device)
        self._upload, self._download = _stream(device), _stream(device)

    def to_device(self, tasks: Sequence[TileTask]) -> list[TileTask]:
        """The parts, their pictures on the device, for kernels that are launched from now on. A picture travels once,
        and stays until its images come back."""
        kernels = self._streams.current_stream(self._device)
        with self._streams.stream(self._upload):
            loaded = [replace(task, image=self._loaded(task.image, kernels)) for task in tasks]
        kernels.wait_stream(self._upload)
        return loaded

    def _loaded(self, image: ImageState, kernels: Any) -> ImageState:
        if image.gpu_copy.image is None:
            c = image.c
            *planes, tables = (send(x.contiguous(), self._device) for x in (*c.planes, c.tables))
            images = torch.empty_like(image.images, device=self._device)
            for x in (*planes, tables, images):
                _record_stream(x, kernels)
            there = Coefficients(tuple(planes), tables, c.sampling, c.size)
            image.gpu_copy.image = replace(image, c=there, images=images, gpu_copy=DeviceCopy())
        return image.gpu_copy.image

    def to_host(self, tasks: Sequence[TileTask], deviations: Tensor) -> Callable[[], Tensor]:
        """Begins to copy what kernels launched so far will have written: deviations, and images that are complete with
        these parts. The result waits for it and returns the deviations."""
        self._download.wait_stream(self._streams.current_stream(self._device))
        complete = []
        with self._streams.stream(self._download):
            _record_stream(deviations, self._download)
            pinned = self._device.type != "cpu"
            found = torch.empty_like(deviations, device="cpu", pin_memory=pinned).copy_(deviations, non_blocking=True)
            for task in tasks:
                copy = task.image.gpu_copy
                copy.done.add(task.tile)
                if copy.image is not None and len(copy.done) == task.image.tiles:
                    _record_stream(copy.image.images, self._download)
                    task.image.images.copy_(copy.image.images, non_blocking=True)
                    complete.append(copy)
            copied = self._streams.Event()
            copied.record(self._download)

        def wait() -> Tensor:
            copied.synchronize()
            for copy in complete:
                copy.image = None
            return found

        return wait


def _stream(device: torch.device) -> Any:
    return torch.cpu.Stream() if device.type == "cpu" else torch.cuda.Stream(device)


def _record_stream(x: Tensor, stream: Any) -> None:
    """Its memory is not used again before the stream has done what it has been given."""
    if x.is_cuda:
        x.record_stream(stream)
