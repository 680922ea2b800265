"""Sequential reading of tar archives. Headers are not trusted, and damage raises an error."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Self

from pipeline.inputs.remote import Address

_HEADER_LIMIT = 1 << 20


class TarHeader(tarfile.TarInfo):
    """A tar header that raises for damage, which tarfile would ignore or take for the end of the archive."""

    _EXTENSIONS = (
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    )

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end-of-archive mark
            raise tarfile.ReadError(
                f"no end-of-archive mark, but: {error}" if buf else "truncated: there is no end-of-archive mark"
            ) from error
        if header.size < 0 or (header.type in cls._EXTENSIONS and header.size > _HEADER_LIMIT):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


@contextmanager
def open_tar(path: Address) -> Iterator[tuple[tarfile.TarFile, IO[bytes]]]:
    """Opens an archive; yields it and its underlying file. Raises tarfile.ReadError, OSError and RemoteError."""
    if isinstance(path, Path) and not path.is_file():
        if not path.exists():
            raise FileNotFoundError("it is not there any more")
        raise tarfile.ReadError("not a regular file")
    with path.open("rb") if isinstance(path, Path) else path.open() as file:
        mode: Literal["r:*", "r|*"] = "r:*" if isinstance(path, Path) else "r|*"
        with tarfile.open(fileobj=file, mode=mode, tarinfo=TarHeader) as archive:
            yield archive, file


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members in order, without keeping them. Raises tarfile.ReadError for a damaged archive."""
    end = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError("a header points backwards")
        end = archive.offset
        archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps all of them, to resolve links
        yield member


def member_data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular file."""
    file = archive.extractfile(member)
    assert file is not None  # None only for members that are not regular files
    with file:
        return file.read()
