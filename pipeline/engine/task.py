"""An input's state between the stages of file_stages.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.engine.memory import Buffers
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import FileRestoration
from pipeline.inputs.filters import FilteredOut
from pipeline.inputs.source import Item, SideMember
from pipeline.jpeg.bitstream import Bitstream, Layout
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.record import Record


@dataclass(frozen=True)
class RawFile:
    """A file that has been read but not decoded.

    layout: what its header says, or why it is not restored.
    memory: its piece of shared memory, [bytes] uint8; None without shared memory.
    dali_result: returns or raises what DALI found, if DALI is the front end."""

    data: bytes
    layout: Layout | JpegError
    memory: Tensor | None = None
    dali_result: Callable[[], Bitstream] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None if the header cannot be read."""
        return self.layout.size

    def describe(self, record: Record) -> Record:
        """The record with size, sampling and quality added, as far as they are known."""
        layout = self.layout.layout if isinstance(self.layout, FilteredOut) else self.layout
        record = replace(record, size=self.size or record.size)
        if not isinstance(layout, Layout):
            return record
        return replace(record, sampling=layout.sampling.label, quality=layout.quality)

    def buffers(self, restorer: Restorer) -> Buffers | None:
        """Buffers for its coefficients and images in shared memory; None without shared memory."""
        if self.memory is None or not isinstance(self.layout, Layout):
            return None
        sampling, size = self.layout.sampling, self.layout.size
        return Buffers.from_memory(self.memory, sampling, size, restorer.images, restorer.options.pixel)


@dataclass(frozen=True)
class PassedFile:
    """A file that is passed through.

    images: the output file, if there is one.
    size: (height, width) in pixels, if known.
    reason: why it is passed through."""

    images: tuple[bytes, ...]
    size: tuple[int, int] | None
    reason: str


@dataclass(frozen=True)
class DecodedFile:
    """A file whose coefficients have been read.

    images: [K, C, H, W], the shared buffer for the restored images; None without shared memory.
    recovered: how many coefficients equal the file's own; counted only with DALI and --verify."""

    bitstream: Bitstream
    images: Tensor | None
    recovered: int | None


@dataclass(frozen=True)
class Task:
    """One input. It has a `file` until it is decoded, `work` until it is restored, then `images`.

    item: without its data.
    memory: its piece of shared memory, [bytes] uint8, once it has been decoded."""

    item: Item
    record: Record
    file: RawFile | None = None
    memory: Tensor | None = None
    work: FileRestoration | None = None
    images: tuple[bytes, ...] = ()


Step = Task | SideMember
