"""Files and tiles as the network receives them, and their copies between host and GPU."""

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
"""Of one tile, for each image: the number of mismatches; with 16 bits, the largest excess in quantisation steps."""


@dataclass
class DeviceCopy:
    """An ImageState's copy on the GPU; None while there is none. done: tiles that have been restored into it."""

    image: ImageState | None = None
    done: set[Tile] = field(default_factory=set)


@dataclass(frozen=True)
class ImageState:
    """A file that is being restored.

    c: its coefficients, N = 1.
    images: [K, C, H, W] uint8 or uint16, in memory [K, H, W, C]; restored tiles are written here.
    seeds: the noise seed of each draw.
    tiles: number of tiles.
    gpu_copy: made with the first tile; its images are copied back after the last."""

    c: Coefficients
    images: Tensor
    seeds: tuple[int, ...]
    tiles: int
    gpu_copy: DeviceCopy = field(default_factory=DeviceCopy)


@dataclass(frozen=True)
class TileTask:
    """One tile to restore. Pickled, its tensors are references to shared memory (memory.SharedMemory)."""

    image: ImageState
    tile: Tile

    @property
    def c(self) -> Coefficients:
        """The coefficients of core and halo."""
        return tiling.tile_coefficients(self.image.c, self.tile)

    @property
    def core(self) -> Coefficients:
        """The coefficients of the core."""
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
        """(height, width) in pixels of the core."""
        top, bottom, left, right = self.tile.core
        return bottom - top, right - left


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device, without waiting for the copy."""
    if device.type == "cpu":
        return x.clone()
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


class Transfers:
    """Copies to a device and back, on streams of their own so that they overlap with its kernels. A CPU works as a
    device, too; there copies are synchronous."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams = device, torch.get_device_module(device)
        self._upload, self._download = _stream(device), _stream(device)

    def to_device(self, tasks: Sequence[TileTask]) -> list[TileTask]:
        """The tasks with their images and coefficients on the device, usable by kernels launched from now on. An image
        is copied once, and stays on the device until all of its tiles are restored."""
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
        """Starts copying deviations, and those images of which these tasks are the last, once the kernels launched so
        far have finished. The returned function waits for the copies and returns the deviations, on the CPU."""
        self._download.wait_stream(self._streams.current_stream(self._device))
        complete = []
        with self._streams.stream(self._download):
            _record_stream(deviations, self._download)
            pinned = self._device.type != "cpu"
            found = torch.empty_like(deviations, device="cpu", pin_memory=pinned).copy_(deviations, non_blocking=True)
            for state in {id(task.image.gpu_copy): task.image for task in tasks}.values():
                copy = state.gpu_copy
                done = copy.done.union(task.tile for task in tasks if task.image.gpu_copy is copy)
                if copy.image is not None and len(done) == state.tiles:
                    _record_stream(copy.image.images, self._download)
                    images = state.images
                    staged = torch.empty_like(images, pin_memory=True) if pinned and not images.is_pinned() else images
                    staged.copy_(copy.image.images, non_blocking=True)  # into memory that is not pinned it would wait
                    complete.append((copy, images, staged))
            copied = self._streams.Event()
            copied.record(self._download)
        for task in tasks:  # only now: after an error above, each of the tasks is run again
            task.image.gpu_copy.done.add(task.tile)

        def wait() -> Tensor:
            copied.synchronize()
            for copy, images, staged in complete:
                copy.image = None
                if staged is not images:
                    images.copy_(staged)
            return found

        return wait


def _stream(device: torch.device) -> Any:
    return torch.cpu.Stream() if device.type == "cpu" else torch.cuda.Stream(device)


def _record_stream(x: Tensor, stream: Any) -> None:
    """Keeps a tensor's memory from being reused before the stream's current work has finished."""
    if x.is_cuda:
        x.record_stream(stream)
