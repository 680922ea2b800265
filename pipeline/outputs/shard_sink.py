"""Tar shards as outputs. A shard and its manifest lines appear together.

An unfinished shard is a file in the store's scratch folder. A complete one is moved to its place, or uploaded, in the
background while the next one is filled."""

import contextlib
import io
import itertools
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from isal import igzip

from pipeline.inputs.listing import Sources
from pipeline.inputs.remote import RemoteError
from pipeline.inputs.source import Item, SideMember
from pipeline.outputs.record import Record, SinkError
from pipeline.outputs.sink import DEFAULT_NAMES, ManifestWriter, OutputNames
from pipeline.outputs.store import OutputNameError

LOOSE_SHARD = "files.tar"

COPY = 1 << 20
"""Bytes copied into a tar at a time; tarfile's default of 16 KB is slow for images."""


@dataclass
class _OpenShard:
    """An unfinished shard: its records, and a temporary tar once it has a member.

    refusal: why it takes no members. late: because it is finished; without it, they would have a place."""

    name: str
    records: list[Record] = field(default_factory=list)
    members: set[str] = field(default_factory=set)
    refusal: str | None = None
    late: bool = False
    temporary: Path | None = None
    file: BinaryIO | None = None
    packed: igzip.IGzipFile | None = None
    tar: tarfile.TarFile | None = None

    def keep(self, record: Record) -> Record:
        self.records.append(replace(record, shard=None if self.refusal else self.name))
        return self.records[-1]


class ShardSink:
    """Writes one tar shard per input shard, of the same name, with members in the order of the calls. Not thread-safe.

    A shard and its lines appear some time after the next one has begun, or when the sink is closed; one that is
    incomplete when the run ends is written again by the next run. Loose files of a folder go into a shard `files.tar`
    in that folder."""

    copies_members = True

    def __init__(self, manifest: ManifestWriter, sources: Sources, names: OutputNames = DEFAULT_NAMES) -> None:
        self._manifest = manifest
        self._sources = sources
        self._names = names
        self._numbers = itertools.count()
        self._shard: _OpenShard | None = None
        self._mover = ThreadPoolExecutor(1, "shard")
        self._moving: tuple[_OpenShard, Future[None]] | None = None

    def finished(self, source: str) -> bool:
        """Whether the source has a line, which implies that its shard is complete."""
        return self._manifest.finished(source)

    def shard_finished(self, shard: str) -> bool:
        """Whether the shard exists with all its lines."""
        return self._manifest.shard_finished(shard)

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Adds the images to the item's shard and keeps the line until the shard is complete; see Sink."""
        loose = posixpath.join(posixpath.dirname(item.source), LOOSE_SHARD)
        shard = self._turn_to(item.shard or loose, item.shard is None)
        try:
            names = self._names.of(item, record, len(images))
            if names and shard.refusal is not None:
                raise OutputNameError(shard.refusal)
            taken = shard.members.intersection(names)
            if taken:
                raise OutputNameError(f"the shard already has a member {min(taken)!r}")
            for name, data in zip(names, images, strict=True):
                self._add(shard, name, data)
            record = replace(record, outputs=tuple(f"{shard.name}/{name}" for name in names))
        except OutputNameError as error:
            record = record.failed(str(error), transient=shard.late)
        return shard.keep(record)

    def copy_member(self, member: SideMember) -> Record | None:
        """Copies the member; if the shard already has one of its name, returns a failed line, which is written."""
        shard = self._turn_to(member.shard, loose=False)
        if shard.refusal is None and member.name not in shard.members:
            self._add(shard, member.name, member.data)
            return None
        reason = shard.refusal or (
            f"not carried along: the shard already has a member {member.name!r}; choose another --format for the "
            "restored images, or leave out --output-shards"
        )
        return shard.keep(Record(member.name, member.source, "failed", reason, transient=shard.late or None))

    def close(self) -> None:
        """Completes the last shard, and waits until it is in its place."""
        self._complete()
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
                return
            if self._shard is not None:
                _discard(self._shard)
                self._shard = None
            with contextlib.suppress(SinkError):  # complete shards stay; after an interruption, too
                self._settle()
        finally:
            self._mover.shutdown(wait=False)

    def _complete(self) -> None:
        """Ends the open shard, and moves it to its place once the one before is there."""
        shard, self._shard = self._shard, None
        if shard is None:
            return
        with self._discarded_on_error(shard):
            if shard.tar is not None:
                shard.tar.close()
            for stream in (shard.packed, shard.file):
                if stream is not None:
                    stream.close()
            self._settle()
        self._moving = shard, self._mover.submit(self._move, shard)

    def _move(self, shard: _OpenShard) -> None:
        if shard.temporary is not None:
            self._manifest.store.publish(shard.temporary, shard.name)

    def _settle(self) -> None:
        """Waits until the last complete shard is in its place; appends its lines. Raises SinkError."""
        if self._moving is None:
            return
        shard, moved = self._moving
        error = moved.exception()
        self._moving = None
        records = shard.records
        if isinstance(error, OutputNameError):
            records = [record.failed(str(error)) if record.outputs else record for record in records]
        elif error is not None:
            raise error
        if records:
            whole = None if shard.refusal else len(records)
            self._manifest.append([*records[:-1], replace(records[-1], shard_lines=whole)])

    def _turn_to(self, name: str, loose: bool) -> _OpenShard:
        if self._moving is not None and self._moving[1].done():
            self._settle()
        if self._shard is None or self._shard.name != name:
            self._complete()
            self._shard = _OpenShard(name)
            if loose and self._is_input(name):
                self._shard.refusal = f"the input has a shard {name!r}, the name for this folder's loose files"
            elif self._manifest.shard_finished(name):
                self._shard.late = True
                self._shard.refusal = (
                    f"the shard {name!r} was finished before this file was there; "
                    "delete the shard, and run again with --retry-failed"
                )
        return self._shard

    def _is_input(self, name: str) -> bool:
        try:
            return self._sources.has(name)
        except RemoteError as error:
            raise SinkError(f"{error}; start the run again to continue") from error

    def _add(self, shard: _OpenShard, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        with self._discarded_on_error(shard):
            tar = shard.tar or self._begin(shard)
            tar.addfile(header, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
        shard.members.add(name)

    def _begin(self, shard: _OpenShard) -> tarfile.TarFile:
        shard.temporary = self._manifest.store.scratch / f"shard-{next(self._numbers)}"
        shard.file = shard.temporary.open("wb")
        stream: BinaryIO = shard.file
        if shard.name.lower().endswith("gz"):
            shard.packed = igzip.IGzipFile("", "wb", 1, shard.file, mtime=0)  # type: ignore[no-untyped-call]
            stream = shard.packed  # type: ignore[assignment]
        shard.tar = tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, copybufsize=COPY)
        return shard.tar

    @contextlib.contextmanager
    def _discarded_on_error(self, shard: _OpenShard) -> Iterator[None]:
        """Discards the shard after an error; turns an OSError into SinkError."""
        try:
            yield
        except BaseException as error:
            _discard(shard)
            self._shard = None
            if isinstance(error, OSError):
                raise self._manifest.store.write_error(error, shard.name) from error
            raise


def _discard(shard: _OpenShard) -> None:
    for stream in (shard.packed, shard.file):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
    if shard.temporary is not None:
        with contextlib.suppress(OSError):
            shard.temporary.unlink(missing_ok=True)
