"""Outputs, written whole or not at all: image files in a folder, or tar shards; then their manifest lines.

    with Manifest.open(output, run) as manifest, FolderSink(manifest) as sink:
        for item in read(sources, sink.finished, sink.whole, side_members=sink.carries):
            ...                                  # finished: nothing to do; SideMember: sink.carry(item)
            record = sink.write(item, record, [encode_image(image)])

The order is fixed: files first, their line after. An output appears under its name whole (`store`), so that `kill -9`
never leaves half a file. Single images are not flushed to the disk one by one; after a power failure a line may stand
for a file that was lost, which shows as missing or empty at the next start and is done again. Shards are flushed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from pipeline.inputs.names import UnsafeNameError, safe_name
from pipeline.inputs.source import Item, SideMember
from pipeline.outputs.formats import SUFFIXES, Format
from pipeline.outputs.record import Record
from pipeline.outputs.store import OutputNameError, Store


class ManifestWriter(Protocol):
    """A manifest as sinks need it."""

    counts: Counter[str]

    @property
    def store(self) -> Store:
        """Where the outputs go."""

    def finished(self, source: str) -> bool:
        """Whether an earlier run wrote this source's line (and its outputs are there)."""

    def whole(self, shard: str) -> bool:
        """Whether an earlier run finished this output shard."""

    def append(self, records: Sequence[Record]) -> None:
        """Add a line for each record, whose outputs have been put in the store before. Raises SinkError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Sink(Protocol):
    """What the engine needs of an output. Items are written in reading order."""

    carries: bool

    def finished(self, source: str) -> bool:
        """Whether nothing is left to do for this source."""

    def whole(self, shard: str) -> bool:
        """Whether nothing is left to do for this input shard."""

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Write the item's images (none if it failed), then its line. Returns the line: `failed` if its name cannot be.

        Raises SinkError when the run cannot go on.
        """

    def carry(self, member: SideMember) -> None:
        """Take over a member that is no image. Raises SinkError."""

    def close(self) -> None:
        """Finish the last shard. Raises SinkError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class OutputNames:
    """How outputs are named, in a run of so many `samples`. copies: what is passed through keeps its extension, as it
    is the JPEG file itself."""

    format: Format = "png"
    samples: int = 1
    copies: bool = False

    def of(self, item: Item, record: Record, count: int) -> tuple[str, ...]:
        """The names of an item's `count` images: `<key>.png`, or `<key>.s0.png`, … of several samples.

        With several samples every name has its number, also of an input that gives one image only (passed through), so
        that no two keys can ever meet in a name. Raises OutputNameError for a key that leads out of the output folder.
        """
        copied = self.copies and record.status == "passed_through"
        suffix = item.suffix if copied else f".{SUFFIXES[self.format]}"
        endings = [suffix] if self.samples == 1 else [f".s{number}{suffix}" for number in range(count)]
        try:
            return tuple(safe_name(item.key + ending) for ending in endings[:count])
        except UnsafeNameError as error:
            raise OutputNameError(f"no output can have this name: {error}") from error


DEFAULT_NAMES = OutputNames()


class FolderSink:
    """Image files below the manifest's folder. Thread-safe; calls at the same time put their lines in either order."""

    carries = False

    def __init__(self, manifest: ManifestWriter, names: OutputNames = DEFAULT_NAMES) -> None:
        self._manifest = manifest
        self._names = names

    def finished(self, source: str) -> bool:
        """Whether the source has a line."""
        return self._manifest.finished(source)

    def whole(self, shard: str) -> bool:
        """Never: each member has its own line."""
        return False

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Write the images, then the line, and return it; see Sink."""
        placed: list[str] = []
        try:
            for name, data in zip(self._names.of(item, record, len(images)), images, strict=True):
                self._manifest.store.put(name, data)
                placed.append(name)
            record = replace(record, outputs=tuple(placed))
        except OutputNameError as error:
            for name in placed:
                self._manifest.store.remove(name)
            record = record.failed(str(error))
        self._manifest.append([record])
        return record

    def carry(self, member: SideMember) -> None:
        """Nothing: only shards carry other members along."""

    def close(self) -> None:
        """Nothing is left open between two calls."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
