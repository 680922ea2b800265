"""What the inputs hold: folders, single files and tar shards, listed always in the same order, nothing opened.

    sources = list_sources(Path("photos"), exclude=Path("photos/restored"))      # or address("s3://bucket/photos")
    for entry in sources:
        ...

Inside a folder come its JPEG files, then its tar shards, then its sub folders, each sorted by name.
"""

import itertools
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.inputs.names import JPEG_SUFFIXES, SHARD_SUFFIXES, is_jpeg, is_shard
from pipeline.inputs.remote import Address, Remote, RemoteError

_JPEGS, _TARS = " ".join(sorted(JPEG_SUFFIXES)), " ".join(SHARD_SUFFIXES)
EXPECTED = f"expected a folder, a JPEG file ({_JPEGS}) or a tar shard ({_TARS})"


class SourceError(Exception):
    """The input as a whole cannot be used: it is missing, unreadable, or holds nothing to restore."""


@dataclass(frozen=True)
class Entry:
    """A file or a shard; `name` is its path below the input folder. `error` is set for an unreadable folder. What is
    not `assigned` is another rank's, and counts as finished: its keys are wanted, not its data. size: of a tar, in bytes,
    if that is known. prefix: what the name begins with where there are several inputs."""

    path: Address
    name: str
    shard: bool = False
    error: str | None = None
    assigned: bool = True
    size: int | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Root:
    """One of the inputs: a folder, or the folder of a single file or tar. files, shards: how many. shard_bytes: of all
    tars; None if unknown. prefix: before the names of its entries."""

    folder: Address
    files: int = 0
    shards: int = 0
    shard_bytes: int | None = 0
    single: Entry | None = None
    exclude: Address | None = None
    prefix: str = ""

    def __iter__(self) -> Iterator[Entry]:
        return iter((self.single,)) if self.single is not None else _walk(self.folder, self.exclude, self.prefix)

    def find_file(self, name: str) -> Address | None:
        """Where the file of an entry's name is, if this input has it. Raises RemoteError."""
        if self.single is not None:
            return self.single.path if name == self.single.name else None
        place = self.folder / name.removeprefix(self.prefix)
        return place if name.startswith(self.prefix) and place.exists() else None


@dataclass(frozen=True)
class Sources:
    """What the inputs hold. Iterating walks the folders anew, so that no list of all files is ever kept."""

    roots: tuple[Root, ...]

    @property
    def count(self) -> int | None:
        """Number of items, for a progress bar; None when there are tars, whose members are not counted beforehand."""
        return None if any(root.shards for root in self.roots) else sum(root.files for root in self.roots)

    @property
    def shard_bytes(self) -> int | None:
        """Size of all tars together, by which a run can tell how far it is; None where a store does not say."""
        sizes = [root.shard_bytes for root in self.roots]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, as entries have them. Raises RemoteError."""
        return any(root.find_file(name) is not None for root in self.roots)

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self.roots)


def list_sources(*paths: Address, exclude: Address | None = None) -> Sources:
    """Find what each of `paths`, a folder, a JPEG file or a tar, holds; no file is opened.

    With several inputs the names of a folder's entries begin with its own name, and single JPEG files come first, so
    that they stay together. `exclude` is a folder below an input to leave out: the output folder of a run that writes
    into its own input folder. Raises SourceError if there is nothing to restore in an input, or if two inputs have the
    same name.
    """
    roots = [_count_entries(path, exclude, len(paths) > 1) for path in paths]
    taken: dict[str, Address] = {}
    for path, root in zip(paths, roots, strict=True):
        name = root.prefix if root.single is None else root.single.name
        if name in taken:
            raise SourceError(
                f"{taken[name]} and {path}: two inputs have the same name, so their outputs could not be told apart; "
                "restore them separately, each into its own output folder"
            )
        taken[name] = path
    return Sources(tuple(sorted(roots, key=lambda root: root.single is None or root.single.shard)))


def _count_entries(path: Address, exclude: Address | None, several: bool) -> Root:
    """With the number of its files and tars. Raises SourceError."""
    try:
        root = _root(path, exclude, several)
        files = shards = 0
        sizes: int | None = 0
        for entry in root:
            shards += entry.shard
            files += not entry.shard
            if entry.shard:
                sizes = None if sizes is None or entry.size is None else sizes + entry.size
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}; {EXPECTED}") from error
    except RemoteError as error:
        raise SourceError(str(error)) from error
    if not files + shards:
        raise SourceError(f"{path}: no JPEG file and no tar shard in this folder or below; {EXPECTED}")
    return replace(root, files=files, shards=shards, shard_bytes=sizes)


def find_input(paths: Sequence[Address], name: str) -> Address | None:
    """Where the file is that an entry of these inputs had the name of, if it is still there. Raises RemoteError."""
    for path in paths:
        try:
            found = _root(path, None, len(paths) > 1).find_file(name)
        except (OSError, SourceError):
            continue
        if found is not None:
            return found
    return None


def _root(path: Address, exclude: Address | None, several: bool) -> Root:
    """Nothing is listed yet. Raises OSError, RemoteError and SourceError."""
    if is_folder(path):
        own = path.absolute() if isinstance(path, Path) else path
        name = own.name if own.name not in ("", "..") else own.resolve().name
        return Root(path, exclude=exclude, prefix=f"{name}/" if several else "")
    shard = is_shard(path.name)
    if not (shard or is_jpeg(path.name)) or not path.is_file():
        raise SourceError(f"{path}: not a kind of file that can be restored; {EXPECTED}")
    size = path.stat().st_size if shard and isinstance(path, Path) else None
    return Root(path.parent, single=Entry(path, path.name, shard, size=size))


def is_folder(path: Address) -> bool:
    """Raises OSError if a local path is not there or a local folder cannot be listed."""
    if isinstance(path, Remote):  # a store may have no folders, only names; a page of links is a file, too
        return not ((is_shard(path.name) or is_jpeg(path.name)) and path.is_file())
    path.stat()
    if path.is_dir():
        os.scandir(path).close()
        return True
    return False


def _walk(root: Address, exclude: Address | None, prefix: str = "") -> Iterator[Entry]:
    """Depth first. prefix: before all names. Linked folders are entered, except into a folder that the walk is already
    inside of."""
    excluded = _identity(exclude) if exclude is not None else None
    inside_root = _identity(root)
    if excluded == inside_root:
        excluded = None
    stack: list[tuple[Address, str, frozenset[Hashable]]] = [(root, prefix, frozenset())]
    while stack:
        folder, path, above = stack.pop()
        here = _identity(folder)
        if here is not None and (here in above or here == excluded):
            continue
        try:
            files, shards, folders = _listing(folder)
        except OSError as error:
            reason = f"folder cannot be listed: {error.strerror or error}"
            yield Entry(folder, path.rstrip("/"), error=reason, prefix=prefix)
            continue
        for name in files:
            yield Entry(*_entry_fields(folder, path, name), prefix=prefix)
        for name, size in shards:
            yield Entry(*_entry_fields(folder, path, name, shard=True), size=size, prefix=prefix)
        inside = above if here is None else above | {here}
        stack.extend((folder / name, f"{path}{name}/", inside) for name in reversed(folders))


def _entry_fields(folder: Address, path: str, name: str, shard: bool = False) -> tuple[Address, str, bool, str | None]:
    """The first fields of an Entry. path: the folder's own, with a slash at its end."""
    if name == ".." or "/" in name or "\0" in name:  # only a remote store can say so
        return folder, path + name, False, f"unsafe name: {name!r} cannot be the name of a file"
    return folder / name, path + name, shard, None


def _listing(folder: Address) -> tuple[list[str], list[tuple[str, int | None]], list[str]]:
    """Sorted names of a folder's JPEG files, tar shards (and their sizes, if that is known) and folders."""
    if isinstance(folder, Remote):
        names, below = folder.listing()
        below = [name for name in below if name not in (".", "..") and "/" not in name]
        return (
            sorted(filter(is_jpeg, names)),
            sorted((name, names[name]) for name in filter(is_shard, names)),
            sorted(below),
        )
    files: list[str] = []
    shards: list[tuple[str, int | None]] = []
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
                shards.append((entry.name, _size(entry)))
    return sorted(files), sorted(shards), sorted(folders)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # reading it will tell
        return 0


def _identity(path: Address) -> Hashable:
    """What two paths to the same folder have in common; None if it cannot be told."""
    if isinstance(path, Remote):
        return path
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
