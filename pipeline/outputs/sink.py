"""Outputs: image files in a folder, or tar shards, followed by their manifest lines.

    with Manifest.open(output, run) as manifest, FolderSink(manifest) as sink:
        for item in read(sources, sink.finished, sink.shard_finished, side_members=sink.copies_members):
            ...                                  # finished: nothing to do; SideMember: sink.copy_member(item)
            record = sink.write(item, record, [encode_image(image)])

Files are written before their line, and atomically (`store`), so that `kill -9` never leaves a partial output. Single
images are not flushed to the disk; after a power failure a line may name a missing or empty file, which the next run
detects and writes again. Shards are flushed."""

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
    """A manifest, as sinks use it."""

    counts: Counter[str]

    @property
    def store(self) -> Store:
        """Where the outputs go."""

    def finished(self, source: str) -> bool:
        """Whether an earlier run has written this source's line, and its outputs exist."""

    def shard_finished(self, shard: str) -> bool:
        """Whether an earlier run has finished this output shard."""

    def append(self, records: Sequence[Record]) -> None:
        """Appends a line per record, whose outputs have been put in the store before. Raises SinkError."""


class Sink(Protocol):
    """An output, as the engine uses it. Items are written in reading order. copies_members: side members are copied."""

    copies_members: bool

    def finished(self, source: str) -> bool:
        """Whether this source is finished."""

    def shard_finished(self, shard: str) -> bool:
        """Whether this input shard is finished."""

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Writes the item's images (none if it failed), then its line. Returns the line, which is `failed` if the
        item's name cannot be used.

        Raises SinkError if the run cannot continue."""

    def copy_member(self, member: SideMember) -> Record | None:
        """Copies a side member. Returns its `failed` line if that is not possible. Raises SinkError."""

    def close(self) -> None:
        """Completes the last shard. Raises SinkError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class OutputNames:
    """How outputs are named. samples: images per file. copies: files that are passed through keep their extension,
    because they are copied."""

    format: Format = "png"
    samples: int = 1
    copies: bool = False

    def of(self, item: Item, record: Record, count: int) -> tuple[str, ...]:
        """The names of an item's `count` images: `<key>.png`, or `<key>.s0.png`, … with several samples.

        With several samples every name has a number, also those of passed-through files with one image, so that
        different keys never give the same name. Raises OutputNameError for a key that leads out of the output
        folder."""
        copied = self.copies and record.status == "passed_through"
        suffix = item.suffix if copied else f".{SUFFIXES[self.format]}"
        endings = [suffix] if self.samples == 1 else [f".s{number}{suffix}" for number in range(count)]
        try:
            return tuple(safe_name(item.key + ending) for ending in endings[:count])
        except UnsafeNameError as error:
            raise OutputNameError(f"no output can have this name: {error}") from error


DEFAULT_NAMES = OutputNames()


class FolderSink:
    """Image files below the manifest's folder. Thread-safe; simultaneous calls append their lines in any order."""

    copies_members = False

    def __init__(self, manifest: ManifestWriter, names: OutputNames = DEFAULT_NAMES) -> None:
        self._manifest = manifest
        self._names = names

    def finished(self, source: str) -> bool:
        """Whether the source has a line."""
        return self._manifest.finished(source)

    def shard_finished(self, shard: str) -> bool:
        """False: each member has its own line."""
        return False

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Writes the images, then the line, and returns it; see Sink."""
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

    def copy_member(self, member: SideMember) -> None:
        """Does nothing: only shards have side members."""

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
