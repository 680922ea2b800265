"""Memory that a run's processes share. A file's coefficients and images are read and written in place; messages between
processes only carry references to them."""

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
"""Bytes; allocations begin at multiples."""

_NORESERVE = 0x4000  # Linux's MAP_NORESERVE, in module mmap from Python 3.13 on: pages are allocated on first use
_MIN_BYTES = 16 << 20
_RELEASE_BYTES = 16 << 20  # pieces of at least so many bytes are returned to the system when freed


class SharedMemory:
    """`size` bytes, shared with processes that are forked later; fewer if a system limit (ulimit -v) does not permit so
    many. Pages are allocated when they are first written.

    Only one process allocates, from one thread at a time; first fit, so that no more pages are touched than were in use
    at once. Raises OSError if no memory can be mapped."""

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
        self._free = [(0, size)]  # gaps as (start, stop), sorted, not adjacent
        self._pinned = 0

    def allocate(self, size: int) -> Tensor | None:
        """[size] uint8, uninitialised; None if no gap is large enough. Either page-locked as a whole or not at all:
        CUDA copies no piece that is so in part. Pass the same tensor to `free`, not a slice of it."""
        size = max(1, size)
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        for number, (first, stop) in enumerate(self._free):
            start = self._pinned if first < self._pinned < first + taken else first
            if stop - start >= taken:
                gaps = (first, start), (start + taken, stop)
                self._free[number : number + 1] = [(a, b) for a, b in gaps if a < b]
                return self._bytes[start : start + size]
        return None

    def free(self, piece: Tensor) -> None:
        """Frees what `allocate` returned."""
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

    def pin(self, size: int, device: torch.device) -> None:
        """Page-locks the first `size` bytes for CUDA in the calling process: copies need no staging buffer and overlap
        with kernels. device: a GPU; no other one is touched. Raises RuntimeError."""
        size = min(size, self._bytes.numel())
        with torch.cuda.device(device):
            error = torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), size, 0)
        if int(error) != 0:
            raise RuntimeError(f"cannot page-lock {size >> 20} MiB of memory (CUDA error {int(error)})")
        self._pinned, self._pinned_for = size, device

    def unpin(self) -> None:
        """Must be called before the memory is unmapped."""
        if self._pinned:
            with torch.cuda.device(self._pinned_for):
                torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
            self._pinned = 0

    def dumps(self, x: Any) -> bytes:
        """Pickles x for `pickle.loads` in a process that shares this memory. Tensors are pickled as references; raises
        ValueError for a tensor outside this memory."""
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 5)
        pickler.dispatch_table = self._table
        pickler.dump(x)
        return stream.getvalue()

    def _describe(self, x: Tensor) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        offset = x.data_ptr() - self._start
        if not 0 <= offset < self.size:
            raise ValueError(f"a tensor {list(x.shape)} lies outside the memory of these processes")
        return _restore_view, (self._number, x.dtype, tuple(x.shape), x.stride(), offset // x.element_size())

    def _as(self, dtype: torch.dtype) -> Tensor:
        """All of the memory as a tensor of a dtype."""
        if dtype not in self._views:
            self._views[dtype] = self._bytes[: self.size // 8 * 8].view(dtype)
        return self._views[dtype]


_memories: WeakValueDictionary[int, SharedMemory] = WeakValueDictionary()
_numbers = itertools.count()


def _restore_view(number: int, dtype: torch.dtype, *place: Any) -> Tensor:
    """The inverse of `SharedMemory._describe`, in this or another process."""
    return _memories[number]._as(dtype).as_strided(*place)


@dataclass(frozen=True)
class Buffers:
    """Uninitialised buffers for a file's coefficients and images.

    planes, tables: as in `Coefficients`, N = 1.
    images: [K, C, H, W] uint8 or uint16, in memory [K, H, W, C], as encoders need it."""

    planes: list[Tensor]
    tables: Tensor
    images: Tensor

    @classmethod
    def from_memory(
        cls, memory: Tensor, sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8
    ) -> Self:
        """Buffers inside `memory`, [bytes] uint8, of at least `bytes_needed` bytes.

        size: (height, width) in pixels.
        images: the number K.
        pixel: the images' dtype."""
        begin, found = 0, []
        for shape, dtype in _arrays(sampling, size, images, pixel):
            end = begin + _bytes_of(shape, dtype)
            found.append(memory[begin:end].view(dtype).view(shape))
            begin = _aligned(end)
        *planes, tables, pixels = found
        return cls(planes, tables, pixels.permute(0, 3, 1, 2))

    def fill(self, c: Coefficients) -> Coefficients:
        """Copies coefficients into these buffers, except those that are here already; returns them."""
        for mine, theirs in zip((*self.planes, self.tables), (*c.planes, c.tables), strict=True):
            if mine.data_ptr() != theirs.data_ptr():
                mine.copy_(theirs)
        return Coefficients(tuple(self.planes), self.tables, c.sampling, c.size)


def empty_images(sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8) -> Tensor:
    """`Buffers.images` outside shared memory: [K, C, H, W], uninitialised."""
    return torch.empty(images, *size, sampling.components, dtype=pixel).permute(0, 3, 1, 2)


def bytes_needed(sampling: Subsampling, size: tuple[int, int], images: int, pixel: torch.dtype = torch.uint8) -> int:
    """Bytes of a file's buffers. size: (height, width) in pixels; images: the number K."""
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
