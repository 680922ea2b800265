"""One input on its way through the stages of file_stages.py, and what it is on that way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.engine.memory import Buffers
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import Restoration
from pipeline.inputs.filters import FilteredOut
from pipeline.inputs.source import Item, SideMember
from pipeline.jpeg.bitstream import Bitstream, Layout
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.record import Record


@dataclass(frozen=True)
class RawFile:
    """A file as it came. layout: what its header says. memory: what the processes share of it, if they do. found:
    gives or raises what DALI has made of it, if that is the front end."""

    data: bytes
    layout: Layout | JpegError
    memory: Tensor | None = None
    dali_result: Callable[[], Bitstream] | None = None

    @property
    def readable_layout(self) -> Layout | None:
        """What its header says, if that can be read, also of a file that filters leave out."""
        layout = self.layout.layout if isinstance(self.layout, FilteredOut) else self.layout
        return layout if isinstance(layout, Layout) else None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), if it can be read."""
        return self.readable_layout.header.size if self.readable_layout is not None else None

    def describe(self, record: Record) -> Record:
        """The record with what the header says, if that can be read."""
        if self.readable_layout is None:
            return record
        return replace(
            record,
            size=self.readable_layout.header.size,
            sampling=self.readable_layout.sampling.label,
            quality=self.readable_layout.quality,
        )

    def buffers(self, restorer: Restorer) -> Buffers | None:
        """Where its coefficients and images go, unless each process has its own."""
        if self.memory is None or not isinstance(self.layout, Layout):
            return None
        sampling, size = self.layout.sampling, self.layout.header.size
        return Buffers.carve(self.memory, sampling, size, restorer.images, restorer.options.pixel)


@dataclass(frozen=True)
class PassedFile:
    """A file that is passed through, for a reason. images: the output file, if there is to be one. size: (height,
    width), if it is known."""

    images: tuple[bytes, ...]
    size: tuple[int, int] | None
    reason: str


@dataclass(frozen=True)
class DecodedFile:
    """images: where the restored ones go, if processes share that. recovered: how many coefficients are the file's own,
    where DALI has recovered them and --verify asks."""

    bitstream: Bitstream
    images: Tensor | None
    recovered: int | None


@dataclass(frozen=True)
class Task:
    """One input on its way: `file` until it is read, `work` until it is restored, then `images`. The item has no data.
    memory: what the processes share of it, once it is read."""

    item: Item
    record: Record
    file: RawFile | None = None
    memory: Tensor | None = None
    work: Restoration | None = None
    images: tuple[bytes, ...] = ()


Step = Task | SideMember
