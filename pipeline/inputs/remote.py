"""Addresses of local files and of stores that fsspec supports (S3, Google and Azure storage, HTTP, …).

    source = address("s3://bucket/shards")       # a Remote; address("shards") and address("file:///shards") are Paths
    with (source / "000.tar").open() as stream:  # streamed from start to end
        ...

Credentials, options and retries are fsspec's: its configuration files, or variables such as FSSPEC_S3_ENDPOINT_URL. A
request that fails nevertheless raises RemoteError. For security, only PROTOCOLS are accepted: no `pipe:`, which starts
programs, and no chained addresses (`a::b`)."""

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
_DENIED = (401, 403)  # HTTP's status codes
_LATER = (408, 429)  # nor are these about the page
_BLOCK = 8 << 20  # bytes per request
_HTTP_PAUSE_S = 300.0
"""Seconds without a byte after which an HTTP server counts as silent. There is no limit for a whole file: a tar is read
as fast as its images are restored, for hours, while aiohttp's default limit is five minutes."""
_BUFFER = 1 << 20


class AddressError(ValueError):
    """An address that cannot be used; the message says why, and what to install or to use instead."""


class RemoteError(Exception):
    """A store does not answer or denies access. This is not an error of the file, so the run has to stop."""


class DeniedError(RemoteError):
    """A store denies access: to this file, as to an archived object, or to all, as with an expired token."""


@dataclass(frozen=True)
class Remote:
    """A folder or file of a store, by its address without a trailing slash. Has the methods of a Path where
    possible."""

    address: str

    def __str__(self) -> str:
        """The address without its query, which may contain a secret."""
        return self.address.partition("?")[0] if self.protocol in HTTP else self.address

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.address}/{quote(name) if self.protocol in HTTP else name}")

    @property
    def protocol(self) -> str:
        return self.address.partition("://")[0]

    @property
    def name(self) -> str:
        """The last component of the path."""
        return _last_part(str(self), self.protocol)

    @property
    def parent(self) -> "Remote":
        return Remote(str(self).rpartition("/")[0])

    @property
    def fs(self) -> Any:
        """fsspec's file system, without cached listings; the same object for the same protocol."""
        if self.protocol not in HTTP:
            return fsspec.filesystem(self.protocol, use_listings_cache=False)
        from aiohttp import ClientTimeout  # noqa: PLC0415  # of an extra

        configured = fsspec.config.conf.get(self.protocol, {}).get("client_kwargs", {})
        client = {"timeout": ClientTimeout(total=None, connect=_HTTP_PAUSE_S, sock_read=_HTTP_PAUSE_S), **configured}
        return fsspec.filesystem(self.protocol, use_listings_cache=False, client_kwargs=client)

    def resolve(self) -> Self:
        """Itself: addresses are absolute."""
        return self

    def exists(self) -> bool:
        """Whether the file or folder exists. Raises RemoteError."""
        if self.protocol in HTTP:  # where fsspec's says no for a server that does not answer
            return self.is_file()
        with as_remote_errors(self):
            return bool(self.fs.exists(self.address))

    def is_file(self) -> bool:
        """Whether it is a file; over HTTP everything that exists is one. Raises RemoteError."""
        try:
            with as_remote_errors(self):
                return bool(self.fs.info(self.address)["type"] == "file")
        except FileNotFoundError:
            return False

    def listing(self) -> tuple[dict[str, int | None], list[str]]:
        """The folder's files with their sizes in bytes (None if unknown), and its sub folders; empty if it does not
        exist.

        Over HTTP these are the links of its page that point below it. Raises RemoteError."""
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
        """Opens the file for sequential reading.

        Raises RemoteError, here or while reading, and OSError if it does not exist."""
        with io.BufferedReader(self._stream(), _BUFFER) as stream:
            yield stream

    def read_limited(self, limit: int) -> tuple[bytes | None, int]:
        """(the file's bytes, its size in bytes); (None, a size above `limit`) if it is larger than `limit` bytes.
        Raises as `open` does."""
        with io.BufferedReader(self._stream(), _BUFFER) as stream:
            size = stream.raw.size
            if size is not None and size > limit:
                return None, size
            data = bytearray()  # in pieces: read() allocates all that it is asked for
            while len(data) <= limit and (piece := stream.read(min(_BUFFER, limit + 1 - len(data)))):
                data += piece
        return (bytes(data), len(data)) if len(data) <= limit else (None, len(data))

    def read_bytes(self) -> bytes:
        """The whole file. Raises RemoteError, and OSError if it does not exist."""
        with as_remote_errors(self):
            data: bytes = self.fs.cat_file(self.address)
        return data

    def write_bytes(self, data: bytes) -> None:
        """Writes or replaces the file atomically. Raises RemoteError."""
        with as_remote_errors(self):
            self.fs.pipe_file(self.address, data)

    def unlink(self) -> None:
        """Removes the file. Raises RemoteError, and OSError if it does not exist."""
        with as_remote_errors(self):
            self.fs.rm_file(self.address)

    def _stream(self) -> "Stream":
        with as_remote_errors(self):
            if self.protocol in HTTP:  # one request for the size, one for the whole file
                size = self.fs.info(self.address)["size"]
                return Stream(self, self.fs.open(self.address, "rb", block_size=0, size=size), size)
            file = self.fs.open(self.address, "rb", block_size=_BLOCK, cache_type="readahead")
            return Stream(self, file, file.size)


class Stream(io.RawIOBase):
    """An fsspec file for sequential reading, whose errors are raised as RemoteError, so that they are not taken for
    damage of the file. size: in bytes, if known."""

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
        """The number of bytes read so far."""
        return self._read

    def close(self) -> None:
        if not self.closed:
            super().close()
            with as_remote_errors(self._place):
                self._file.close()


Address = Path | Remote


def address(text: str) -> Address:
    """A Path for `file://` and for text without `protocol://`, else a Remote. Does not contact the store.

    Raises AddressError for a protocol that is refused or whose package is missing."""
    protocol, separator, path = text.partition("://")
    if text.startswith("pipe:"):
        raise AddressError(f"{text}: addresses that start a program are refused; give a folder with the files")
    if not separator:
        return Path(text)
    if "::" in text:
        raise AddressError(f"{text}: chained addresses are refused; give the address of the files themselves")
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
    """Whether both are the same file or folder; for local paths, symbolic links are followed."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.exists() and other.exists() and one.samefile(other)
    return one == other


def contains(folder: Address, other: Address) -> bool:
    """Whether `other` is `folder` or lies below it."""
    if isinstance(folder, Path) and isinstance(other, Path):
        return other.resolve().is_relative_to(folder.resolve())
    return folder == other or str(other).startswith(f"{folder}/")


@contextmanager
def as_remote_errors(place: Remote) -> Iterator[None]:
    """Converts exceptions of a store's library to RemoteError, denied access to DeniedError; not those for a missing
    file or folder."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, RemoteError):
        raise
    except Exception as raised:  # every library has its own
        status, error = None, raised
        if place.protocol in HTTP:
            error = _cause(raised)
            status = 404 if isinstance(error, FileNotFoundError) else getattr(error, "status", None)
        elif isinstance(error, FileNotFoundError):
            raise
        if status is None:
            kind = DeniedError if isinstance(error, PermissionError) else RemoteError
            raise kind(f"{place}: {type(error).__name__}: {error}") from raised
        message = f"{place}: HTTP status {status} {getattr(error, 'message', '')}".rstrip()  # the text has the query
        if 400 <= status < 500 and status not in (*_DENIED, *_LATER):
            raise FileNotFoundError(message) from raised
        raise (DeniedError if status in _DENIED else RemoteError)(message) from raised


def _cause(error: Exception) -> Exception:
    """Why fsspec takes a page for missing: it says so of every page that does not answer as it should."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _last_part(path: str, protocol: str) -> str:
    if protocol in HTTP:
        return unquote(PurePosixPath(urlsplit(path).path).name)
    return path.rpartition("/")[2]
