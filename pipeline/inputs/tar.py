"""Tar archives read from start to end, in which nothing is trusted and damage is an error."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Self

from pipeline.inputs.remote import Address

_HEADER_LIMIT = 1 << 20


class TarHeader(tarfile.TarInfo):
    """A tar header that makes damage an error, where tarfile would take it for the end of the archive or believe it."""

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
                raise  # the end mark
            raise tarfile.ReadError(f"no end mark, but: {error}" if buf else "no end mark, it was cut") from error
        if header.size < 0 or (header.type in cls._EXTENSIONS and header.size > _HEADER_LIMIT):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


@contextmanager
def open_tar(path: Address) -> Iterator[tuple[tarfile.TarFile, IO[bytes]]]:
    """The archive, and the file that it is read from."""
    if isinstance(path, Path) and not path.is_file():
        raise tarfile.ReadError("not a regular file or gone")
    with path.open("rb") if isinstance(path, Path) else path.open() as file:
        mode: Literal["r:*", "r|*"] = "r:*" if isinstance(path, Path) else "r|*"
        with tarfile.open(fileobj=file, mode=mode, tarinfo=TarHeader) as archive:
            yield archive, file


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    end = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError("a header leads backwards")
        end = archive.offset
        archive.members = []  # type: ignore[attr-defined]  # else it keeps every member, for the sake of links
        yield member


def member_data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # only of members that are no regular files
    with file:
        return file.read()
