"""What travels while a file is restored: its parts out, to a process or a GPU, and their pieces back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling
from pipeline.engine.tiling import Tile


@dataclass(frozen=True)
class Part:
    """One tile of one file and all that it takes to restore it. c: the coefficients of core and halo, of N = 1 image.
    seeds: the noise of each draw. Pickled, it leaves the rest of the image behind."""

    c: Coefficients
    tile: Tile
    seeds: tuple[int, ...]

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[Any, ...]]:
        c = self.c
        return _part, ([x.numpy() for x in c.planes], c.tables.numpy(), c.sampling, c.size, self.tile, self.seeds)


def _part(planes: list[Any], tables: Any, sampling: Subsampling, size: tuple[int, int], *rest: Any) -> Part:
    c = Coefficients(tuple(map(torch.from_numpy, planes)), torch.from_numpy(tables), sampling, size)
    return Part(c, *rest)


@dataclass(frozen=True)
class Piece:
    """A tile's core, restored: [K, C, h, w] uint8 on the CPU, and each image's mismatches."""

    images: Tensor
    mismatches: tuple[int, ...]

    def __reduce__(self) -> tuple[Callable[..., Piece], tuple[Any, ...]]:
        return _piece, (self.images.numpy(), self.mismatches)


def _piece(images: Any, mismatches: tuple[int, ...]) -> Piece:
    return Piece(torch.from_numpy(images), mismatches)


def send(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; the host does not wait for the copy."""
    if device.type != "cuda":
        return x
    return x.pin_memory().to(device, non_blocking=True)


class Transfers:
    """Copies between pinned memory and a GPU, on streams of their own beside the kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def up(self, c: Coefficients) -> Coefficients:
        """The coefficients on the GPU, for kernels that are launched from now on."""
        kernels = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            tensors = [x.contiguous().pin_memory().to(self._device, non_blocking=True) for x in (*c.planes, c.tables)]
        kernels.wait_stream(self._up)
        for x in tensors:
            x.record_stream(kernels)
        return Coefficients(tuple(tensors[:-1]), tensors[-1], c.sampling, c.size)

    def down(self, *groups: list[Tensor]) -> Callable[[], tuple[list[Tensor], ...]]:
        """Begins to copy what kernels launched so far will have written; the result waits for it."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            copies = tuple([self._pinned(x) for x in group] for group in groups)
            copied = self._down.record_event()

        def wait() -> tuple[list[Tensor], ...]:
            copied.synchronize()
            return copies

        return wait

    def _pinned(self, x: Tensor) -> Tensor:
        x.record_stream(self._down)
        return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
