"""Outputs, written whole or not at all: image files in a folder, or tar shards; then their manifest lines.

    with Manifest.open(output, run) as manifest, FolderSink(manifest) as sink:
        for item in read(sources, sink.finished, sink.whole, side_members=sink.carries):
            ...                                  # finished: nothing to do; SideMember: sink.carry(item)
            record = sink.write(item, record, [encode_image(image)])

The order is fixed: files first, their line after. An output appears under its name by a rename, so that `kill -9` never
leaves half a file. Single images are not flushed to the disk one by one; after a power failure a line may stand for a
file that was lost, which shows as missing or empty at the next start and is done again. Shards are flushed.
"""

import contextlib
import errno
import gzip
import io
import itertools
import os
import posixpath
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK

from pipeline.manifest import PARTIAL, Manifest, Record, SinkError
from pipeline.source import Item, SideMember, UnsafeNameError, safe_name

Format = Literal["png", "webp"]
LOOSE_SHARD = "files.tar"

# What the operating system says about one name, not about the disk: too long, a folder where a file should be, ….
_NAME_ERRORS = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ELOOP,
    }
)


class OutputNameError(Exception):
    """An output cannot have the name that its key asks for; the run goes on."""


class EncodeError(Exception):
    """The image does not fit the output format; the run goes on."""


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


def encode_image(
    image: NDArray[np.uint8], format: Format = "png", icc: bytes | None = None, exif: bytes | None = None
) -> bytes:
    """`image` [3 or 1, H, W] as a lossless file, with its ICC profile and EXIF; pixels are never turned. Thread-safe.

    A gray image is a gray PNG; WebP knows no gray and repeats the plane. PNG is written at level 1, WebP with its least
    effort, which is as fast as that and a third smaller. A profile of more than a megabyte is left off a PNG, which
    Pillow could not read again with it. Raises EncodeError, for WebP above 16383 pixels a side.
    """
    if format == "png" and len(icc or b"") > MAX_TEXT_CHUNK:
        icc = None
    planes = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    options = {name: data for name, data in (("icc_profile", icc), ("exif", exif)) if data}
    out = io.BytesIO()
    try:
        if format == "png":
            Image.fromarray(planes).save(out, "PNG", compress_level=1, **options)
        else:
            Image.fromarray(planes).save(out, "WEBP", lossless=True, quality=0, method=0, **options)
    except (OSError, ValueError) as error:
        height, width = image.shape[1:]
        raise EncodeError(f"{width}x{height} pixels cannot be written as {format}: {error}") from error
    return out.getvalue()


def output_names(key: str, count: int, samples: int, format: Format) -> tuple[str, ...]:
    """The names of a key's `count` images: `<key>.png`, or `<key>.s0.png`, … in a run of several `samples`.

    With several samples every name has its number, also of an input that gives one image only (passed through), so that
    no two keys can ever meet in a name. Raises OutputNameError for a key that leads out of the output folder.
    """
    endings = [f".{format}"] if samples == 1 else [f".s{number}.{format}" for number in range(count)]
    try:
        return tuple(safe_name(key + ending) for ending in endings[:count])
    except UnsafeNameError as error:
        raise OutputNameError(f"no output can have this name: {error}") from error


class FolderSink:
    """Image files below the manifest's folder. Thread-safe; calls at the same time put their lines in either order."""

    carries = False

    def __init__(self, manifest: Manifest, format: Format = "png", samples: int = 1) -> None:
        self._manifest = manifest
        self._format: Format = format
        self._samples = samples
        self._numbers = itertools.count()

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
            for name, data in zip(
                output_names(item.key, len(images), self._samples, self._format), images, strict=True
            ):
                self._place(name, data)
                placed.append(name)
            record = replace(record, outputs=tuple(placed))
        except OutputNameError as error:
            for name in placed:
                (self._manifest.folder / name).unlink(missing_ok=True)
            record = _failed(record, str(error))
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

    def _place(self, name: str, data: bytes) -> None:
        folder = self._manifest.folder
        temporary = folder / PARTIAL / str(next(self._numbers))
        try:
            temporary.write_bytes(data)
            _move(temporary, folder, name)
        except BaseException as error:
            _remove(temporary)
            if isinstance(error, OSError):
                raise _stop(error, folder, name) from error
            raise


@dataclass
class _OpenShard:
    """A shard in the making: its records, and a temporary tar once there is something to put in."""

    name: str
    records: list[Record] = field(default_factory=list)
    members: set[str] = field(default_factory=set)
    refusal: str | None = None
    temporary: Path | None = None
    file: BinaryIO | None = None
    packed: gzip.GzipFile | None = None
    tar: tarfile.TarFile | None = None

    def keep(self, record: Record) -> Record:
        self.records.append(replace(record, shard=None if self.refusal else self.name))
        return self.records[-1]


class ShardSink:
    """Tar shards, one per input shard and of the same name, members in the order of the calls. Not thread-safe.

    A shard and its lines appear together when the next one begins or the sink is closed; one that is not whole when the
    run ends is begun again. Loose files of a folder go into a shard `files.tar` in the same place.
    """

    carries = True

    def __init__(self, manifest: Manifest, source_root: Path, format: Format = "png", samples: int = 1) -> None:
        """Raises SinkError if the output folder is `source_root`, the input's: each shard would replace its input."""
        if source_root.exists() and manifest.folder.samefile(source_root):
            raise SinkError(f"{source_root}: output shards would replace the input's; choose another output folder")
        self._manifest = manifest
        self._source_root = source_root
        self._format: Format = format
        self._samples = samples
        self._shard: _OpenShard | None = None

    def finished(self, source: str) -> bool:
        """Whether the source has a line, which it has only together with its shard."""
        return self._manifest.finished(source)

    def whole(self, shard: str) -> bool:
        """Whether the shard is in place with all its lines."""
        return self._manifest.whole(shard)

    def write(self, item: Item, record: Record, images: Sequence[bytes]) -> Record:
        """Add the images to the item's shard and keep the line until that is whole; see Sink."""
        loose = posixpath.join(posixpath.dirname(item.source), LOOSE_SHARD)
        shard = self._turn_to(item.shard or loose, item.shard is None)
        try:
            names = output_names(item.key, len(images), self._samples, self._format)
            if names and shard.refusal is not None:
                raise OutputNameError(shard.refusal)
            taken = shard.members.intersection(names)
            if taken:
                raise OutputNameError(f"the shard already has a member {min(taken)!r}")
            for name, data in zip(names, images, strict=True):
                self._add(shard, name, data)
            record = replace(record, outputs=tuple(f"{shard.name}/{name}" for name in names))
        except OutputNameError as error:
            record = _failed(record, str(error))
        return shard.keep(record)

    def carry(self, member: SideMember) -> None:
        """Add the member as it is; if the shard has one of its name, a failed line says so."""
        shard = self._turn_to(member.shard, loose=False)
        if shard.refusal is None and member.name not in shard.members:
            self._add(shard, member.name, member.data)
            return
        reason = shard.refusal or f"not carried along: the shard already has a member {member.name!r}"
        shard.keep(Record(member.name, member.source, "failed", reason))

    def close(self) -> None:
        """Finish the last shard."""
        shard, self._shard = self._shard, None
        if shard is None:
            return
        records = shard.records
        try:
            self._put_in_place(shard)
        except OutputNameError as error:
            records = [_failed(record, str(error)) if record.outputs else record for record in records]
        if records:
            whole = None if shard.refusal else len(records)
            self._manifest.append([*records[:-1], replace(records[-1], shard_lines=whole)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._shard is not None:
            _discard(self._shard)
            self._shard = None

    def _turn_to(self, name: str, loose: bool) -> _OpenShard:
        if self._shard is None or self._shard.name != name:
            self.close()
            self._shard = _OpenShard(name)
            if loose and (self._source_root / name).exists():
                self._shard.refusal = f"the input has a shard {name!r}, the name for this folder's loose files"
            elif self._manifest.whole(name):
                self._shard.refusal = f"the shard {name!r} was finished before this file was there"
        return self._shard

    def _add(self, shard: _OpenShard, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        try:
            tar = shard.tar or self._begin(shard)
            tar.addfile(header, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
        except BaseException as error:
            _discard(shard)
            self._shard = None
            if isinstance(error, OSError):
                raise _stop(error, self._manifest.folder, shard.name) from error
            raise
        shard.members.add(name)

    def _begin(self, shard: _OpenShard) -> tarfile.TarFile:
        shard.temporary = self._manifest.folder / PARTIAL / "shard"
        shard.file = shard.temporary.open("wb")
        stream: BinaryIO = shard.file
        if shard.name.lower().endswith("gz"):
            shard.packed = gzip.GzipFile("", "wb", 1, shard.file, mtime=0)
            stream = shard.packed  # type: ignore[assignment]
        shard.tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        return shard.tar

    def _put_in_place(self, shard: _OpenShard) -> None:
        if shard.tar is None or shard.file is None or shard.temporary is None:
            return
        try:
            shard.tar.close()
            if shard.packed is not None:
                shard.packed.close()
            shard.file.flush()
            os.fsync(shard.file.fileno())
            shard.file.close()
            _move(shard.temporary, self._manifest.folder, shard.name)
        except BaseException as error:
            _discard(shard)
            if isinstance(error, OSError):
                raise _stop(error, self._manifest.folder, shard.name) from error
            raise


def _failed(record: Record, reason: str) -> Record:
    return replace(record, status="failed", reason=reason, mismatches=None, sample_mismatches=None, outputs=())


def _move(temporary: Path, folder: Path, name: str) -> None:
    path = folder / name
    if temporary.parent in path.parents:
        raise OutputNameError(f"{PARTIAL!r} is where unfinished outputs are kept; rename the input's folder")
    try:
        try:
            temporary.replace(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise OutputNameError(f"no output file can be named {name!r} here: {error.strerror}") from error
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _discard(shard: _OpenShard) -> None:
    for stream in (shard.packed, shard.file):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
    if shard.temporary is not None:
        _remove(shard.temporary)


def _stop(error: OSError, folder: Path, name: str) -> SinkError:
    return SinkError(f"{folder}: cannot be written: {error.strerror} ({name}); start the run again to complete it")
