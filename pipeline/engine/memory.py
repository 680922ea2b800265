"""Memory that the processes of a run have in common. A file's coefficients and images lie there, each reads and writes
them where they are, and what is sent from one process to another says where that is."""

from __future__ import annotations

import copyreg
import io
import itertools
import math
import mmap
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling

ALIGNMENT = 256
"""Bytes; what is allocated begins at a multiple."""

_NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python knows from 3.13 on: pages are taken when they are touched
_MIN_BYTES = 16 << 20
_RELEASE_BYTES = 16 << 20  # bytes of a piece that is given back to the system when it is free


class SharedMemory:
    """Bytes for this process and for all that are forked from now on; `size` of them, or fewer where that is more than
    a limit of the system's (ulimit -v) lets a process have. They take memory when they are touched. One process
    allocates, one thread at a time: first fit, so that no more is touched than there once was in use. Raises OSError
    when there are none."""

    def __init__(self, size: int) -> None:
        while True:
            try:
                self._map = mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE)
                break
            except OSError:
                size = size // 2 // mmap.PAGESIZE * mmap.PAGESIZE
                if size < _MIN_BYTES:
                    raise
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.size, self._start, self._views = size, self._bytes.data_ptr(), dict[torch.dtype, Tensor]()
        self._number = next(_numbers)
        self._table = {**copyreg.dispatch_table, Tensor: self._describe}
        _memories[self._number] = self
        self._free = [(0, size)]  # (start, stop) by address, no two of which touch
        self._pinned = 0

    def allocate(self, size: int) -> Tensor | None:
        """[size] uint8, of any content; None when no gap is so large. For `free`, not to be sliced before."""
        size = max(1, size)
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        for number, (start, stop) in enumerate(self._free):
            if stop - start >= taken:
                self._free[number : number + 1] = [(start + taken, stop)] if stop - start > taken else []
                return self._bytes[start : start + size]
        return None

    def free(self, piece: Tensor) -> None:
        """What `allocate` returned."""
        start = int(piece.storage_offset())
        stop = start + -(-piece.numel() // ALIGNMENT) * ALIGNMENT
        if stop - start >= _RELEASE_BYTES and start >= self._pinned:
            first, last = (-(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE)
            self._map.madvise(mmap.MADV_REMOVE, first, last - first)
        self._free.append((start, stop))
        self._free.sort()
        merged = self._free[:1]
        for gap in self._free[1:]:
            if gap[0] == merged[-1][1]:
                merged[-1] = (merged[-1][0], gap[1])
            else:
                merged.append(gap)
        self._free = merged

    def pin(self, size: int) -> None:
        """Page-locks the first `size` bytes for CUDA, in the process that uses it: copies from and to there need no
        buffer of the driver's and can go on beside kernels. Raises RuntimeError."""
        size = min(size, self._bytes.numel())
        error = torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), size, 0)
        if int(error) != 0:
            raise RuntimeError(f"cannot page-lock {size >> 20} MiB of memory (CUDA error {int(error)})")
        self._pinned = size

    def unpin(self) -> None:
        """Before the memory goes."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
            self._pinned = 0

    def dumps(self, x: Any) -> bytes:
        """Pickled, for `pickle.loads` in a process that has this memory. Of tensors only those that lie here can be in
        it: raises ValueError for another."""
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 5)
        pickler.dispatch_table = self._table
        pickler.dump(x)
        return stream.getvalue()

    def _describe(self, x: Tensor) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        offset = x.data_ptr() - self._start
        if not 0 <= offset < self.size:
            raise ValueError(f"a tensor {list(x.shape)} lies outside the memory that processes share")
        return _restore_view, (self._number, x.dtype, tuple(x.shape), x.stride(), offset // x.element_size())

    def _as(self, dtype: torch.dtype) -> Tensor:
        """All of it as numbers of a type."""
        if dtype not in self._views:
            self._views[dtype] = self._bytes[: self.size // 8 * 8].view(dtype)
        return self._views[dtype]


_memories: WeakValueDictionary[int, SharedMemory] = WeakValueDictionary()
_numbers = itertools.count()


def _restore_view(number: int, dtype: torch.dtype, *place: Any) -> Tensor:
    """The tensor that `SharedMemory._describe` has described, here or in another process."""
    return _memories[number]._as(dtype).as_strided(*place)


@dataclass(frozen=True)
class Buffers:
    """Where a file's coefficients come and where its images go, uninitialised. planes, tables: as `Coefficients` has
    them, of N = 1 image. images: [K, C, H, W] uint8 or uint16 (`pixel`), which in memory is [K, H, W, C], as encoders
    take it."""

    planes: list[Tensor]
    tables: Tensor
    images: Tensor

    @classmethod
    def carve(
        cls, memory: Tensor, sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8
    ) -> Self:
        """In [bytes] uint8, at least as many as `bytes_needed`."""
        begin, found = 0, []
        for shape, dtype in _arrays(sampling, size, images, pixel):
            end = begin + _bytes_of(shape, dtype)
            found.append(memory[begin:end].view(dtype).view(shape))
            begin = _aligned(end)
        *planes, tables, pixels = found
        return cls(planes, tables, pixels.permute(0, 3, 1, 2))

    def fill(self, c: Coefficients) -> Coefficients:
        """Copies coefficients to here, those that are somewhere else."""
        for mine, theirs in zip((*self.planes, self.tables), (*c.planes, c.tables), strict=True):
            if mine.data_ptr() != theirs.data_ptr():
                mine.copy_(theirs)
        return Coefficients(tuple(self.planes), self.tables, c.sampling, c.size)


def empty_images(sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8) -> Tensor:
    """`Buffers.images` in memory of their own."""
    return torch.empty(images, *size, sampling.components, dtype=pixel).permute(0, 3, 1, 2)


def bytes_needed(sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8) -> int:
    """Of the buffers of a file of (height, width) pixels that becomes so many images."""
    return sum(_aligned(_bytes_of(*array)) for array in _arrays(sampling, size, images, pixel))


def _arrays(
    sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    count = sampling.components
    planes = [((1, *sampling.plane_blocks(component, size), 8, 8), torch.int16) for component in range(count)]
    return [*planes, ((1, count, 8, 8), torch.int32), ((images, *size, count), pixel)]


def _bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
