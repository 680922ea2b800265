"""Lists the folders, image files and tar shards of the inputs, always in the same order, without opening any file.

    sources = list_sources(Path("photos"), exclude=Path("photos/restored"))      # or address("s3://bucket/photos")
    for entry in sources:
        ...

The order within a folder: its image files, its tar shards, its sub folders, each sorted by name."""

import itertools
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.inputs.names import JPEG, SHARD_SUFFIXES, ImageKind, is_shard
from pipeline.inputs.remote import Address, Remote, RemoteError


class SourceError(Exception):
    """An input cannot be used as a whole: it is missing, unreadable, or has no files to restore."""


@dataclass(frozen=True)
class Entry:
    """An image file or a tar shard.

    name: its path below the input folder.
    error: set for a folder that cannot be listed.
    assigned: to this rank. Entries of other ranks are listed for their keys only, and not read.
    size: of a tar, in bytes, if known.
    prefix: the first part of the name, if there are several inputs.
    kind: of the image, or of the images in the shard."""

    path: Address
    name: str
    shard: bool = False
    error: str | None = None
    assigned: bool = True
    size: int | None = None
    prefix: str = ""
    kind: ImageKind = JPEG


@dataclass(frozen=True)
class Root:
    """One of the inputs.

    folder: the folder, or that of the single file.
    files, shards: their numbers.
    shard_bytes: of all tars together; None if unknown.
    single: the entry, if the input is a single file.
    prefix: prepended to the names of the entries.
    kind: of its image files."""

    folder: Address
    files: int = 0
    shards: int = 0
    shard_bytes: int | None = 0
    single: Entry | None = None
    exclude: Address | None = None
    prefix: str = ""
    kind: ImageKind = JPEG

    def __iter__(self) -> Iterator[Entry]:
        return iter((self.single,)) if self.single is not None else _walk(self)

    def find_file(self, name: str) -> Address | None:
        """The address of the entry with this name, if this input has it and it can be reached. Raises RemoteError."""
        if self.single is not None:
            return self.single.path if name == self.single.name else None
        place = self.folder / name.removeprefix(self.prefix)
        try:
            return place if name.startswith(self.prefix) and place.exists() else None
        except OSError:  # of a folder that may be listed but not entered
            return None


@dataclass(frozen=True)
class Sources:
    """The files of all inputs. Each iteration walks the folders again, so that no list of all files is kept in
    memory."""

    roots: tuple[Root, ...]

    @property
    def count(self) -> int | None:
        """The number of items, for a progress bar; None if there are tars, whose members are not counted."""
        return None if any(root.shards for root in self.roots) else sum(root.files for root in self.roots)

    @property
    def shard_bytes(self) -> int | None:
        """Bytes of all tars together, to estimate progress; None if a store does not report sizes."""
        sizes = [root.shard_bytes for root in self.roots]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def has(self, name: str) -> bool:
        """Whether there is an entry with this name. Raises RemoteError."""
        return any(root.find_file(name) is not None for root in self.roots)

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self.roots)


def list_sources(*paths: Address, exclude: Address | None = None, kind: ImageKind = JPEG) -> Sources:
    """Lists `paths`: folders, image files of this kind, and tars.

    With several inputs, names of a folder's entries begin with the folder's name, and single image files come first.

    exclude: a folder below an input to leave out, such as the output folder.

    Raises SourceError if an input has no files to restore, or if two inputs have the same name."""
    roots = [_count_entries(path, exclude, kind, len(paths) > 1) for path in paths]
    taken: dict[str, Address] = {}
    for path, root in zip(paths, roots, strict=True):
        name = root.prefix if root.single is None else root.single.name
        if name in taken:
            raise SourceError(
                f"{taken[name]} and {path}: two inputs have the same name, so their outputs would have the same names; "
                "restore them in separate runs, each into its own output folder"
            )
        taken[name] = path
    return Sources(tuple(sorted(roots, key=lambda root: root.single is None or root.single.shard)))


def _count_entries(path: Address, exclude: Address | None, kind: ImageKind, several: bool) -> Root:
    """The input with its numbers of files and tars. Raises SourceError."""
    try:
        root = _root(path, exclude, kind, several)
        files = shards = 0
        sizes: int | None = 0
        for entry in root:
            shards += entry.shard
            files += not entry.shard
            if entry.shard:
                sizes = None if sizes is None or entry.size is None else sizes + entry.size
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}; {_expected(kind)}") from error
    except RemoteError as error:
        raise SourceError(str(error)) from error
    if not files + shards:
        raise SourceError(f"{path}: no {kind.label} file or tar shard in this folder or below; {_expected(kind)}")
    return replace(root, files=files, shards=shards, shard_bytes=sizes)


def _expected(kind: ImageKind) -> str:
    files, shards = " ".join(sorted(kind.suffixes)), " ".join(SHARD_SUFFIXES)
    return f"expected a folder, a {kind.label} file ({files}) or a tar shard ({shards})"


def find_input(paths: Sequence[Address], name: str) -> Address | None:
    """The address of the entry with this name, if one of the inputs still has it. Raises RemoteError."""
    for path in paths:
        try:
            found = _root(path, None, JPEG, len(paths) > 1).find_file(name)
        except (OSError, SourceError):
            continue
        if found is not None:
            return found
    return None


def _root(path: Address, exclude: Address | None, kind: ImageKind, several: bool) -> Root:
    """The input, without listing it. Raises OSError, RemoteError and SourceError."""
    if is_folder(path, kind):
        name = lasting_address(path, named=True).name
        return Root(path, exclude=exclude, prefix=f"{name}/" if several else "", kind=kind)
    shard = is_shard(path.name)
    if not (shard or kind.includes(path.name)) or not path.is_file():
        raise SourceError(f"{path}: not a file of a kind that can be read; {_expected(kind)}")
    size = path.stat().st_size if shard and isinstance(path, Path) else None
    return Root(path.parent, single=Entry(path, path.name, shard, size=size, kind=kind))


def lasting_addresses(paths: Sequence[Address]) -> list[Address]:
    """The inputs' addresses under which a later process finds their entries by the same names."""
    return [
        lasting_address(path, named=len(paths) > 1 or (isinstance(path, Path) and not path.is_dir())) for path in paths
    ]


def lasting_address(path: Address, named: bool) -> Address:
    """An absolute address. Symbolic links are followed, but not that of the last component if names contain it
    (`named`): a single file's, and those of folders among several inputs."""
    if isinstance(path, Remote):
        return path
    own = path.absolute()
    return own.parent.resolve() / own.name if named and own.name not in ("", "..") else own.resolve()


def is_folder(path: Address, kind: ImageKind = JPEG) -> bool:
    """Whether an address is a folder. Raises OSError if a local path does not exist or a local folder cannot be
    listed."""
    if isinstance(path, Remote):  # stores have names, not folders, and an HTTP page of links is a file
        return not ((is_shard(path.name) or kind.includes(path.name)) and path.is_file())
    path.stat()
    if path.is_dir():
        os.scandir(path).close()
        return True
    return False


def _walk(root: Root) -> Iterator[Entry]:
    """Yields entries depth first. Symbolic links to folders are followed, unless they lead back to a folder on the
    way."""
    excluded = _identity(root.exclude) if root.exclude is not None else None
    inside_root, prefix = _identity(root.folder), root.prefix
    if excluded == inside_root:
        excluded = None
    stack: list[tuple[Address, str, frozenset[Hashable]]] = [(root.folder, prefix, frozenset())]
    while stack:
        folder, path, above = stack.pop()
        here = _identity(folder)
        if here is not None and (here in above or here == excluded):
            continue
        try:
            files, shards, folders = _listing(folder, root.kind)
        except OSError as error:
            reason = f"folder cannot be listed: {error.strerror or error}"
            yield Entry(folder, path.rstrip("/"), error=reason, prefix=prefix)
            continue
        for name in files:
            yield Entry(*_entry_fields(folder, path, name), prefix=prefix, kind=root.kind)
        for name, size in shards:
            yield Entry(*_entry_fields(folder, path, name, shard=True), size=size, prefix=prefix, kind=root.kind)
        inside = above if here is None else above | {here}
        stack.extend((folder / name, f"{path}{name}/", inside) for name in reversed(folders))


def _entry_fields(folder: Address, path: str, name: str, shard: bool = False) -> tuple[Address, str, bool, str | None]:
    """The first fields of an Entry. path: of the folder, with a slash at its end."""
    if name == ".." or "/" in name or "\0" in name:  # only a store can return such a name
        return folder, path + name, False, f"unsafe name: {name!r} cannot be the name of a file"
    return folder / name, path + name, shard, None


def _listing(folder: Address, kind: ImageKind) -> tuple[list[str], list[tuple[str, int | None]], list[str]]:
    """Sorted names of a folder's image files, tar shards (with their sizes, if known) and sub folders."""
    if isinstance(folder, Remote):
        names, below = folder.listing()
        below = [name for name in below if name not in (".", "..") and "/" not in name]
        return (
            sorted(filter(kind.includes, names)),
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
            except OSError:  # such as a link to itself; reading it gives the error
                is_folder = False
            if is_folder:
                folders.append(entry.name)
            elif kind.includes(entry.name):
                files.append(entry.name)
            elif is_shard(entry.name):
                shards.append((entry.name, _size(entry)))
    return sorted(files), sorted(shards), sorted(folders)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # reading it gives the error
        return 0


def _identity(path: Address) -> Hashable:
    """Equal for two paths to the same folder; None if it cannot be determined."""
    if isinstance(path, Remote):
        return path
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
