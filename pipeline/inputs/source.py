"""Folders, single files and tar shards as one stream of items, always in the same order.

    sources = list_sources(Path("photos"), exclude=Path("photos/restored"))      # or address("s3://bucket/photos")
    for item in read(sources):
        ...                       # item.data, or item.error that says why there is none

Inside a folder come its JPEG files, then its tar shards, then its sub folders, each sorted by name. Nothing here trusts
a name or a size that it finds in an archive, and no more than one file's bytes are held at a time. A shard of a remote
store is read as a stream, from start to end and once.
"""

import itertools
import os
import re
import stat
import tarfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.inputs.tar import member_data, members_of, open_tar

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SIZE_LIMIT = 2 << 30
_REPEATED = re.compile(r"#\d+$")


class SourceError(Exception):
    """The input as a whole cannot be used: it is missing, unreadable, or holds nothing to restore."""


class UnsafeNameError(ValueError):
    """A name that is absolute, climbs out of its folder, or cannot be a file's name."""


@dataclass(frozen=True)
class Item:
    """One input file.

    `key` is its path without the last extension: below the input folder, or inside its tar. `source` is unique in a
    run: the path below the input folder, a tar counting as a folder; later members of the same name get `#2`, `#3`, ….
    `shard` is the tar's path below the input folder. `error` says why `data` could not be had, and `transient` whether
    that may pass; when both are None the file was not read because the caller said that it is finished.
    """

    key: str
    source: str
    data: bytes | None
    shard: str | None = None
    error: str | None = None
    transient: bool = False

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


@dataclass(frozen=True)
class Entry:
    """A file or a shard; `name` is its path below the input folder. `error` is set for an unreadable folder. What is
    not `mine` is another rank's, and counts as finished: its keys are wanted, not its data."""

    path: Address
    name: str
    shard: bool = False
    error: str | None = None
    mine: bool = True


@dataclass(frozen=True)
class Root:
    """One of the inputs: a folder, or the folder of a single file or tar. prefix: before the names of its entries."""

    folder: Address
    files: int
    shards: int
    single: Entry | None = None
    exclude: Address | None = None
    prefix: str = ""

    def __iter__(self) -> Iterator[Entry]:
        return iter((self.single,)) if self.single is not None else _walk(self.folder, self.exclude, self.prefix)


@dataclass(frozen=True)
class Sources:
    """What the inputs hold. Iterating walks the folders anew, so that no list of all files is ever kept."""

    roots: tuple[Root, ...]

    @property
    def count(self) -> int | None:
        """Number of items, for a progress bar; None when there are tars, whose members are not counted beforehand."""
        return None if any(root.shards for root in self.roots) else sum(root.files for root in self.roots)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, as entries have them. Raises RemoteError."""
        roots = (root for root in self.roots if name.startswith(root.prefix))
        return any((root.folder / name.removeprefix(root.prefix)).exists() for root in roots)

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self.roots)


def list_sources(*paths: Address, exclude: Address | None = None) -> Sources:
    """Find what each of `paths`, a folder, a JPEG file or a tar, holds; no file is opened.

    Of several inputs the names of a folder's entries begin with its own name. `exclude` is a folder below an input to
    leave out: the output folder of a run that writes into its own input folder. Raises SourceError if there is nothing
    to restore in an input, or if two inputs have the same name.
    """
    roots = [_root(path, exclude) for path in paths]
    if len(roots) == 1:
        return Sources((roots[0],))
    taken: dict[str, Address] = {}
    for number, (path, root) in enumerate(zip(paths, roots, strict=True)):
        name = path.resolve().name or "root"
        if name in taken:
            raise SourceError(
                f"{taken[name]} and {path}: two inputs of one name, whose outputs could not be told apart; "
                "restore them one after the other, into an output folder each"
            )
        taken[name] = path
        if root.single is None:
            roots[number] = replace(root, prefix=f"{name}/")
    return Sources(tuple(roots))


def _root(path: Address, exclude: Address | None) -> Root:
    wanted = "expected a folder, a JPEG file (" + " ".join(sorted(JPEG_SUFFIXES)) + ") or a tar shard"
    wanted += " (" + " ".join(SHARD_SUFFIXES) + ")"
    try:
        if not _is_folder(path):
            shard = is_shard(path.name)
            if not (shard or is_jpeg(path.name)) or not path.is_file():
                raise SourceError(f"{path}: not a kind of file that can be restored; {wanted}")
            return Root(_parent(path), int(not shard), int(shard), single=Entry(path, path.name, shard))
        files = shards = 0
        for entry in _walk(path, exclude):
            shards += entry.shard
            files += not entry.shard
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}; {wanted}") from error
    except RemoteError as error:
        raise SourceError(str(error)) from error
    if not files + shards:
        raise SourceError(f"{path}: no JPEG file and no tar shard in this folder or below; {wanted}")
    return Root(path, files, shards, exclude=exclude)


def _is_folder(path: Address) -> bool:
    """Raises OSError if a local path is not there or a local folder cannot be listed."""
    if isinstance(path, Remote):  # a store may have no folders, only names; a page of links is a file, too
        return not ((is_shard(path.name) or is_jpeg(path.name)) and path.is_file())
    path.stat()
    if path.is_dir():
        os.scandir(path).close()
        return True
    return False


def _parent(path: Address) -> Address:
    return path.parent if isinstance(path, Path) else Remote(str(path).rpartition("/")[0])


def read(
    entries: Iterable[Entry],
    finished: Callable[[str], bool] = lambda source: False,
    whole: Callable[[str], bool] = lambda shard: False,
    side_members: bool = False,
    limit: int = SIZE_LIMIT,
) -> Iterator[Item | SideMember]:
    """Every input once, in order, one at a time in memory.

    An item whose source is `finished` comes without data or error, so that its key is still known; a shard that is
    `whole` is not opened and yields nothing. Members that are no JPEG come only with `side_members`. A file or member
    of more than `limit` bytes is an error item and never read. Nothing is raised for bad input; SourceError if a remote
    store stops answering, which says nothing about the input.
    """
    try:
        for entry in entries:
            done = finished if entry.mine else _finished
            if not entry.shard:
                yield _read_file(entry, done, limit)
            elif not whole(entry.name):
                for item in _read_shard(entry, done, side_members, limit):
                    if isinstance(item, Item) and item.error is not None and done(item.source):
                        yield replace(item, error=None)
                    else:
                        yield item
    except RemoteError as error:
        raise SourceError(f"{error}; start the run again to go on") from error


def _finished(source: str) -> bool:
    return True


def is_jpeg(name: str) -> bool:
    """Whether the extension says JPEG, in either case."""
    return PurePosixPath(name).suffix.lower() in JPEG_SUFFIXES


def is_shard(name: str) -> bool:
    """Whether the extension says tar, in either case."""
    return name.lower().endswith(SHARD_SUFFIXES)


def safe_name(name: str) -> str:
    """The relative path `name` without `./` and doubled slashes.

    Raises UnsafeNameError for a path that is absolute, has a `..` or a NUL character, or is empty: such a name is
    refused, not mended, because what it would be mended to may be another file's name.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise UnsafeNameError(f"{name!r} is an absolute path")
    if ".." in parts:
        raise UnsafeNameError(f"{name!r} leads out of its folder")
    if "\0" in name or not parts:
        raise UnsafeNameError(f"{name!r} cannot be the name of a file")
    return "/".join(parts)


def digest(text: str) -> bytes:
    """A 12-byte stand-in for a name: millions fit in a set, and two of ten million agree with a chance of 1e-15."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _walk(root: Address, exclude: Address | None, prefix: str = "") -> Iterator[Entry]:
    """Depth first. prefix: before all names. Linked folders are entered, except into a folder that the walk is already
    inside of."""
    excluded = _identity(exclude) if exclude is not None else None
    inside_root = _identity(root)
    if excluded == inside_root:
        excluded = None
    stack: list[tuple[Address, str, frozenset[Hashable]]] = [(root, prefix, frozenset())]
    while stack:
        folder, prefix, above = stack.pop()
        here = _identity(folder)
        if here is not None and (here in above or here == excluded):
            continue
        try:
            files, shards, folders = _listing(folder)
        except OSError as error:
            yield Entry(folder, prefix.rstrip("/"), error=f"folder cannot be listed: {error.strerror or error}")
            continue
        yield from (_entry(folder, prefix, name) for name in files)
        yield from (_entry(folder, prefix, name, shard=True) for name in shards)
        inside = above if here is None else above | {here}
        stack.extend((folder / name, f"{prefix}{name}/", inside) for name in reversed(folders))


def _entry(folder: Address, prefix: str, name: str, shard: bool = False) -> Entry:
    if name == ".." or "/" in name or "\0" in name:  # only a remote store can say so
        return Entry(folder, prefix + name, error=f"unsafe name: {name!r} cannot be the name of a file")
    return Entry(folder / name, prefix + name, shard)


def _listing(folder: Address) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of a folder's JPEG files, tar shards and folders."""
    if isinstance(folder, Remote):
        names, below = folder.listing()
        below = [name for name in below if name not in (".", "..") and "/" not in name]
        return sorted(filter(is_jpeg, names)), sorted(filter(is_shard, names)), sorted(below)
    files: list[str] = []
    shards: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself, for one; reading it will tell
                is_folder = False
            if is_folder:
                folders.append(entry.name)
            elif is_jpeg(entry.name):
                files.append(entry.name)
            elif is_shard(entry.name):
                shards.append(entry.name)
    return sorted(files), sorted(shards), sorted(folders)


def _identity(path: Address) -> Hashable:
    """What two paths to the same folder have in common; None if it cannot be told."""
    if isinstance(path, Remote):
        return path
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _key(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def _read_file(entry: Entry, finished: Callable[[str], bool], limit: int) -> Item:
    if entry.error is not None:
        return Item(entry.name, entry.name, None, error=None if finished(entry.name) else entry.error, transient=True)
    data, error, transient = None, None, False
    if not finished(entry.name):
        try:
            data, error = _contents(entry.path, limit)
        except OSError as failure:
            error, transient = f"cannot be read: {failure.strerror or failure}", True
    return Item(_key(entry.name), entry.name, data, error=error, transient=transient)


def _contents(path: Address, limit: int) -> tuple[bytes | None, str | None]:
    if isinstance(path, Remote):
        data, size = path.contents(limit)
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
    entry: Entry, finished: Callable[[str], bool], side_members: bool, limit: int
) -> Iterator[Item | SideMember]:
    count = 0
    try:
        with open_tar(entry.path) as archive:
            repeats: dict[bytes, int] = {}
            for count, member in enumerate(members_of(archive), 1):  # noqa: B007
                found = _read_member(
                    archive, member, entry.name, repeats, finished=finished, side_members=side_members, limit=limit
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
        yield Item(entry.name, entry.name, None, entry.name, reason)


def _read_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    shard: str,
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
    source = f"{shard}/{name}" + (f"#{times}" if times > 1 else "")
    if not image and error is None:
        return SideMember(name, source, member_data(archive, member), shard)
    data = None if error is not None or finished(source) else member_data(archive, member)
    return Item(key, source, data, shard, error)
