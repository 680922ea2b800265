"""Reads folders, single files and tar shards as one stream of items, in the order of the listing.

    for item in read(list_sources(Path("photos"))):
        ...                       # item.data, or item.error with the reason for which there is none

Names and sizes in archives are not trusted, and only one file is in memory at a time. A shard in a store is streamed,
once."""

import gzip
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.inputs.listing import Entry, SourceError
from pipeline.inputs.names import UnsafeNameError, digest, safe_name
from pipeline.inputs.remote import Address, DeniedError, Remote, RemoteError
from pipeline.inputs.tar import member_data, members_of, open_tar

SIZE_LIMIT = 2 << 30

MAX_DENIED = 10
"""Files in a row to which a store may deny access; after more, the run stops: an expired token denies all."""

NO_MEMORY = "cannot be read: there is not enough memory"

_REPEATED = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Item:
    """One input file.

    key: its path without the extension, below the input folder or inside its tar.
    source: unique in a run: the path below the input folder, a tar counting as a folder; later members of a tar with
        the same name get `#2`, `#3`, ….
    data: the file; None if it could not be read or is finished; empty if it is not wanted.
    shard: the tar's path below the input folder.
    error: why it could not be read; transient: whether that may pass. Both are unset for a finished file, which is not
        read.
    prefix: what key or source have before the path below their own input, if there are several."""

    key: str
    source: str
    data: bytes | None
    shard: str | None = None
    error: str | None = None
    transient: bool = False
    prefix: str = ""

    @property
    def is_container(self) -> bool:
        """Whether it is a folder or a tar that could not be read, not a file."""
        return self.error is not None and self.source == self.key

    @property
    def suffix(self) -> str:
        """The extension, with the dot."""
        return PurePosixPath(_REPEATED.sub("", self.source)).suffix


@dataclass(frozen=True)
class SideMember:
    """A tar member that is not an image of the wanted kind (`.json`, `.txt`, …), to be copied to the output shard."""

    name: str
    source: str
    data: bytes
    shard: str


@dataclass
class ReadPosition:
    """Progress of `read` in tars: bytes of finished tars, and of the open one."""

    done: int = 0
    within: int = 0

    @property
    def bytes(self) -> int:
        return self.done + self.within

    def leave(self, entry: Entry) -> None:
        """Counts a tar as finished."""
        self.done, self.within = self.done + (entry.size or 0), 0


@dataclass(frozen=True)
class _Selection:
    """Which contents are read; the fields are those of `read`."""

    finished: Callable[[str], bool]
    wanted: Callable[[str], bool]
    side_members: bool
    limit: int


def read(
    entries: Iterable[Entry],
    finished: Callable[[str], bool] = lambda source: False,
    shard_finished: Callable[[str], bool] = lambda shard: False,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    side_members: bool = False,
    limit: int = SIZE_LIMIT,
    position: ReadPosition | None = None,
) -> Iterator[Item | SideMember]:
    """Yields every input, in order, one at a time in memory.

    finished: whether a source is finished; its item has no data and no error, but its key is still known.
    shard_finished: whether a shard is finished; it is not opened.
    wanted: whether the content of a file is needed, by its path below its own input.
    side_members: also yield tar members that are not images, except finished ones.
    limit: larger files and members, in bytes, are error items and are not read.
    position: updated with the progress.

    Raises SourceError if a store stops answering, or denies access to many files in a row; damaged inputs give error
    items."""
    position, denied = position or ReadPosition(), 0
    try:
        for entry in entries:
            done = finished if entry.assigned else _finished
            selection = _Selection(done, wanted, side_members, limit)
            try:
                if not entry.shard:
                    file = _read_file(entry, selection)
                    denied *= not file.data  # the store was not asked for a finished or an unwanted one
                    yield file
                elif not shard_finished(entry.name):
                    for item in _read_shard(entry, selection, position):
                        if isinstance(item, Item) and item.error is not None and done(item.source):
                            yield replace(item, error=None)
                        else:
                            yield item
                    denied = 0
            except DeniedError as error:
                denied += 1
                if denied > MAX_DENIED:
                    raise
                key, shard = (entry.name, entry.name) if entry.shard else (_key(entry.name), None)
                yield Item(key, entry.name, None, shard, f"cannot be read: {error}", True, entry.prefix)
            if entry.shard:
                position.leave(entry)
    except RemoteError as error:
        raise SourceError(f"{error}; start the run again to continue") from error


def _finished(source: str) -> bool:
    return True


def _key(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def _read_file(entry: Entry, selection: _Selection) -> Item:
    name, prefix, done = entry.name, entry.prefix, selection.finished(entry.name)
    if entry.error is not None:
        return Item(name, name, None, error=None if done else entry.error, transient=True, prefix=prefix)
    data, error, transient = None, None, False
    if not done and not selection.wanted(name.removeprefix(prefix)):
        data = b""
    elif not done:
        try:
            data, error = _contents(entry.path, selection.limit)
        except OSError as failure:
            error, transient = f"cannot be read: {failure.strerror or failure}", True
        except MemoryError:
            error, transient = NO_MEMORY, True
    return Item(_key(name), name, data, error=error, transient=transient, prefix=prefix)


def _contents(path: Address, limit: int) -> tuple[bytes | None, str | None]:
    if isinstance(path, Remote):
        data, size = path.read_limited(limit)
        return data, None if data is not None else _too_large(size, limit)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None, "not a regular file"  # opening a pipe would block
    if status.st_size > limit:
        return None, _too_large(status.st_size, limit)
    return path.read_bytes(), None


def _too_large(size: int, limit: int) -> str:
    return f"{size} bytes are more than the limit of {limit}"


def _read_shard(entry: Entry, selection: _Selection, position: ReadPosition) -> Iterator[Item | SideMember]:
    count = 0
    try:
        with open_tar(entry.path) as (archive, file):
            repeats: dict[bytes, int] = {}
            for count, member in enumerate(members_of(archive), 1):  # noqa: B007
                position.within = file.tell() if entry.size is not None else 0
                found = _read_member(archive, member, entry, selection, repeats)
                if found is not None:
                    yield found
    except RemoteError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many types for damaged input
        transient = isinstance(error, OSError | MemoryError) and not isinstance(error, gzip.BadGzipFile)
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        if transient:
            reason = f"the tar cannot be read beyond {count} members: {what}"
        elif count:
            reason = f"the tar is damaged or cut off after {count} members: {what}"
        else:
            reason = f"not a tar archive that can be read: {what}"
        yield Item(entry.name, entry.name, None, entry.name, reason, transient, entry.prefix)


def _read_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Entry, selection: _Selection, repeats: dict[bytes, int]
) -> Item | SideMember | None:
    image = shard.kind.includes(member.name)
    if member.isdir() or not (image or selection.side_members):
        return None
    error = None
    try:
        name = safe_name(member.name)
        key = _key(name) if image else name
    except UnsafeNameError as refusal:
        key = name = member.name
        error = f"unsafe name: {refusal}"
    if not member.isreg():
        error = error or "a link or special file in a tar, which is not followed"
    elif member.size > selection.limit:
        error = error or _too_large(member.size, selection.limit)
    times = repeats[digest(name)] = repeats.get(digest(name), 0) + 1
    source = f"{shard.name}/{name}" + (f"#{times}" if times > 1 else "")
    done, data, transient = selection.finished(source), None, False
    if not image and error is None and done:
        return None
    if error is None and not done:
        try:
            needed = not image or selection.wanted(source.removeprefix(shard.prefix))
            data = member_data(archive, member) if needed else b""
        except MemoryError:
            error, transient = NO_MEMORY, True
    if not image and data is not None:
        return SideMember(name, source, data, shard.name)
    return Item(key, source, data, shard.name, error, transient, shard.prefix)
