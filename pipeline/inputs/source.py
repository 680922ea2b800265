"""Folders, single files and tar shards as one stream of items, in the order of the listing.

    for item in read(list_sources(Path("photos"))):
        ...                       # item.data, or item.error that says why there is none

Nothing here trusts a name or a size that it finds in an archive, and no more than one file's bytes are held at a time.
A shard of a remote store is read as a stream, from start to end and once.
"""

import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.inputs.listing import Entry, SourceError
from pipeline.inputs.names import UnsafeNameError, digest, is_jpeg, safe_name
from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.inputs.tar import member_data, members_of, open_tar

SIZE_LIMIT = 2 << 30
_REPEATED = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Item:
    """One input file.

    `key` is its path without the last extension: below the input folder, or inside its tar. `source` is unique in a
    run: the path below the input folder, a tar counting as a folder; later members of the same name get `#2`, `#3`, ….
    `shard` is the tar's path below the input folder. `error` says why `data` could not be had, and `transient` whether
    that may pass; when both are None the file was not read because the caller said that it is finished. `prefix`: what
    key or source have before the path below their own input, where there are several.
    """

    key: str
    source: str
    data: bytes | None
    shard: str | None = None
    error: str | None = None
    transient: bool = False
    prefix: str = ""

    @property
    def suffix(self) -> str:
        """The extension that its key lacks, with the dot."""
        return PurePosixPath(_REPEATED.sub("", self.source)).suffix


@dataclass(frozen=True)
class SideMember:
    """A member of a tar that is no JPEG (`.json`, `.txt`, …), to be carried along to the output shard."""

    name: str
    source: str
    data: bytes
    shard: str


@dataclass
class ReadPosition:
    """How far `read` has come in tars: bytes of those that are done or left out, and of the one that is open."""

    done: int = 0
    within: int = 0

    @property
    def bytes(self) -> int:
        return self.done + self.within

    def leave(self, entry: Entry) -> None:
        """The tar is done."""
        self.done, self.within = self.done + (entry.size or 0), 0


def read(
    entries: Iterable[Entry],
    finished: Callable[[str], bool] = lambda source: False,
    whole: Callable[[str], bool] = lambda shard: False,
    *,
    side_members: bool = False,
    limit: int = SIZE_LIMIT,
    position: ReadPosition | None = None,
) -> Iterator[Item | SideMember]:
    """Every input once, in order, one at a time in memory. position: kept up to date.

    An item whose source is `finished` comes without data or error, so that its key is still known; a shard that is
    `whole` is not opened and yields nothing. Members that are no JPEG come only with `side_members`. A file or member
    of more than `limit` bytes is an error item and never read. Nothing is raised for bad input; SourceError if a remote
    store stops answering, which says nothing about the input.
    """
    position = position or ReadPosition()
    try:
        for entry in entries:
            done = finished if entry.assigned else _finished
            if not entry.shard:
                yield _read_file(entry, done, limit)
                continue
            if not whole(entry.name):
                for item in _read_shard(entry, done, side_members, limit, position):
                    if isinstance(item, Item) and item.error is not None and done(item.source):
                        yield replace(item, error=None)
                    else:
                        yield item
            position.leave(entry)
    except RemoteError as error:
        raise SourceError(f"{error}; start the run again to go on") from error


def _finished(source: str) -> bool:
    return True


def _key(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def _read_file(entry: Entry, finished: Callable[[str], bool], limit: int) -> Item:
    name, prefix, done = entry.name, entry.prefix, finished(entry.name)
    if entry.error is not None:
        return Item(name, name, None, error=None if done else entry.error, transient=True, prefix=prefix)
    data, error, transient = None, None, False
    if not done:
        try:
            data, error = _contents(entry.path, limit)
        except OSError as failure:
            error, transient = f"cannot be read: {failure.strerror or failure}", True
    return Item(_key(name), name, data, error=error, transient=transient, prefix=prefix)


def _contents(path: Address, limit: int) -> tuple[bytes | None, str | None]:
    if isinstance(path, Remote):
        data, size = path.read_limited(limit)
        return data, None if data is not None else _too_large(size, limit)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None, "not a regular file"  # opening a pipe would wait for ever
    if status.st_size > limit:
        return None, _too_large(status.st_size, limit)
    return path.read_bytes(), None


def _too_large(size: int, limit: int) -> str:
    return f"{size} bytes are more than the limit of {limit}"


def _read_shard(
    entry: Entry, finished: Callable[[str], bool], side_members: bool, limit: int, position: ReadPosition
) -> Iterator[Item | SideMember]:
    count = 0
    try:
        with open_tar(entry.path) as (archive, file):
            repeats: dict[bytes, int] = {}
            for count, member in enumerate(members_of(archive), 1):  # noqa: B007
                position.within = file.tell() if entry.size is not None else 0
                found = _read_member(
                    archive, member, entry, repeats, finished=finished, side_members=side_members, limit=limit
                )
                if found is not None:
                    yield found
    except RemoteError:
        raise
    except Exception as error:  # tarfile and the decompressors raise a dozen types over damaged input
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        if count:
            reason = f"the tar is damaged or cut off after {count} members: {what}"
        else:
            reason = f"not a tar archive that can be read: {what}"
        yield Item(entry.name, entry.name, None, entry.name, reason, prefix=entry.prefix)


def _read_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    shard: Entry,
    repeats: dict[bytes, int],
    *,
    finished: Callable[[str], bool],
    side_members: bool,
    limit: int,
) -> Item | SideMember | None:
    image = is_jpeg(member.name)
    if member.isdir() or not (image or side_members):
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
    elif member.size > limit:
        error = error or _too_large(member.size, limit)
    times = repeats[digest(name)] = repeats.get(digest(name), 0) + 1
    source = f"{shard.name}/{name}" + (f"#{times}" if times > 1 else "")
    if not image and error is None and finished(source):
        return None
    if not image and error is None:
        return SideMember(name, source, member_data(archive, member), shard.name)
    data = None if error is not None or finished(source) else member_data(archive, member)
    return Item(key, source, data, shard.name, error, prefix=shard.prefix)
