"""Addresses: folders and files of a disk, and of the stores that fsspec knows (S3, Google and Azure storage, HTTP, …).

    source = address("s3://bucket/shards")       # a Remote; address("shards") and address("file:///shards") are Paths
    with (source / "000.tar").open() as stream:  # read from start to end, nothing is downloaded first
        ...

Credentials and options are fsspec's: its configuration files, or variables such as FSSPEC_S3_ENDPOINT_URL. So are the
repetitions of requests that failed; what fails all the same is a RemoteError. No address starts a program: `pipe:` and
whatever is not on the list of PROTOCOLS is refused, and so are chains of addresses (`a::b`), which lead past that list.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self
from urllib.parse import quote, unquote, urlsplit

import fsspec

HTTP = frozenset({"http", "https"})
PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "memory"}) | HTTP
_BLOCK = 8 << 20  # bytes asked for at a time, where a file is read in pieces
_BUFFER = 1 << 20


class AddressError(ValueError):
    """An address that cannot be used here; the message says why, and what to install or to give instead."""


class RemoteError(Exception):
    """A store does not answer, or refuses: nothing is known about the file itself, and the run has to stop."""


@dataclass(frozen=True)
class Remote:
    """A folder or file of a store, by its address without a slash at the end. Where it can, it behaves as a Path."""

    address: str

    def __str__(self) -> str:
        """The address without a query, which may be a secret."""
        return self.address.partition("?")[0] if self.protocol in HTTP else self.address

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.address}/{quote(name) if self.protocol in HTTP else name}")

    @property
    def protocol(self) -> str:
        return self.address.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return _last_part(str(self), self.protocol)

    @property
    def parent(self) -> "Remote":
        return Remote(str(self).rpartition("/")[0])

    @property
    def fs(self) -> Any:
        """fsspec's file system, which keeps no listings. The same object for the same protocol."""
        return fsspec.filesystem(self.protocol, use_listings_cache=False)

    def resolve(self) -> Self:
        """Itself: an address means the same from everywhere."""
        return self

    def exists(self) -> bool:
        """Whether there is such a file or folder. Raises RemoteError."""
        with as_remote_errors(self):
            return bool(self.fs.exists(self.address))

    def is_file(self) -> bool:
        """Whether it is a file; over HTTP whatever exists is one. Raises RemoteError."""
        with as_remote_errors(self):
            try:
                return bool(self.fs.info(self.address)["type"] == "file")
            except FileNotFoundError:
                return False

    def listing(self) -> tuple[dict[str, int | None], list[str]]:
        """The folder's files with their sizes in bytes, None if unknown, and its sub folders; a missing one is empty.

        Over HTTP these are the links of its page that lead into it. Raises RemoteError.
        """
        files: dict[str, int | None] = {}
        folders: list[str] = []
        with as_remote_errors(self):
            try:
                found = self.fs.ls(self.address + "/" * (self.protocol in HTTP), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}, []
        own = self.fs._strip_protocol(self.address)
        for entry in found:
            path = entry["name"].rstrip("/")
            name = _last_part(path, self.protocol)
            if path == own or not name:
                continue
            if entry["type"] == "directory":
                folders.append(name)
            else:
                files[name] = entry["size"]
        return files, folders

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file, to be read from start to end.

        Raises RemoteError, here or when it is read, and OSError if it is not there.
        """
        with io.BufferedReader(self._stream(), _BUFFER) as stream:
            yield stream

    def read_limited(self, limit: int) -> tuple[bytes | None, int]:
        """(The file, its size in bytes); (None, its size or more than `limit`) if it is larger. Raises as `open`."""
        with io.BufferedReader(self._stream(), _BUFFER) as stream:
            size = stream.raw.size
            if size is not None and size > limit:
                return None, size
            data = stream.read(limit + 1)
        return (data, len(data)) if len(data) <= limit else (None, len(data))

    def read_bytes(self) -> bytes:
        """The whole file. Raises RemoteError, and OSError if it is not there."""
        with as_remote_errors(self):
            data: bytes = self.fs.cat_file(self.address)
        return data

    def write_bytes(self, data: bytes) -> None:
        """Make or replace the file, whole or not at all. Raises RemoteError."""
        with as_remote_errors(self):
            self.fs.pipe_file(self.address, data)

    def unlink(self) -> None:
        """Remove the file. Raises RemoteError, and OSError if it is not there."""
        with as_remote_errors(self):
            self.fs.rm_file(self.address)

    def _stream(self) -> "Stream":
        with as_remote_errors(self):
            if self.protocol in HTTP:  # one request for all of it, after one for its size
                size = self.fs.info(self.address)["size"]
                return Stream(self, self.fs.open(self.address, "rb", block_size=0, size=size), size)
            file = self.fs.open(self.address, "rb", block_size=_BLOCK, cache_type="readahead")
            return Stream(self, file, file.size)


class Stream(io.RawIOBase):
    """A file of fsspec's, its `size` in bytes if known, whose failures are told from damage of what is in it."""

    def __init__(self, place: Remote, file: Any, size: int | None) -> None:
        self._place = place
        self._file = file
        self._read = 0
        self.size = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        with as_remote_errors(self._place):
            data = self._file.read(len(view))
        view[: len(data)] = data
        self._read += len(data)
        return len(data)

    def tell(self) -> int:
        """How much has been read: it is never read but from start to end."""
        return self._read

    def close(self) -> None:
        if not self.closed:
            super().close()
            with as_remote_errors(self._place):
                self._file.close()


Address = Path | Remote


def address(text: str) -> Address:
    """A Path, for what has no `protocol://` and for `file://`, else a Remote; nothing is asked of the store yet.

    Raises AddressError for what is refused, and for a protocol whose package is missing, which it names.
    """
    protocol, separator, path = text.partition("://")
    if text.startswith("pipe:"):
        raise AddressError(f"{text}: no address starts a program here; give a folder, or write the files down first")
    if not separator:
        return Path(text)
    if "::" in text:
        raise AddressError(f"{text}: chains of addresses are not followed; give the last one's files themselves")
    if protocol in ("file", "local"):
        return Path(path)
    if protocol not in PROTOCOLS:
        raise AddressError(
            f"{text}: expected a folder or one of {', '.join(f'{name}://' for name in sorted(PROTOCOLS))}"
        )
    if not path.strip("/"):
        raise AddressError(f"{text}: the bucket or folder is missing")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise AddressError(f"{text}: {protocol}:// needs a package that is not installed: {error}") from error
    return Remote(text.rstrip("/"))


def same_place(one: Address, other: Address) -> bool:
    """Whether both are the same folder or file; for what is on a disk, whatever links lead there."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.exists() and other.exists() and one.samefile(other)
    return one == other


def contains(folder: Address, other: Address) -> bool:
    """Whether `other` is the folder, or lies in it at any depth."""
    if isinstance(folder, Path) and isinstance(other, Path):
        return other.resolve().is_relative_to(folder.resolve())
    return folder == other or str(other).startswith(f"{folder}/")


@contextmanager
def as_remote_errors(place: Remote) -> Iterator[None]:
    """Turns what a store's library raises into RemoteError; only that there is no such file or folder stays an OSError.

    Missing rights are no property of the file, either: that is how it looks when a token has run out.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, RemoteError):
        raise
    except Exception as error:  # every library has its own
        raise RemoteError(f"{place}: {type(error).__name__}: {error}") from error


def _last_part(path: str, protocol: str) -> str:
    if protocol in HTTP:
        return unquote(PurePosixPath(urlsplit(path).path).name)
    return path.rpartition("/")[2]
