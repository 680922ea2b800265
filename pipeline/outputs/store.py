"""Where outputs are put, whole or not at all: a folder on a disk. (object_store.RemoteStore: an object store.)

What a killed run has left half done lies in `scratch`, and is removed when the manifest is opened (local_lines.py)."""

import contextlib
import errno
import itertools
import os
from pathlib import Path
from typing import Protocol

from pipeline.inputs.remote import Address
from pipeline.outputs.record import SinkError

PARTIAL = ".restore-partial"

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


class Store(Protocol):
    """An output folder, whatever it is kept on. Names are safe relative paths below it. Thread-safe.

    address: where it is.
    scratch: a folder on this machine's disk, for files in the making.
    """

    @property
    def address(self) -> Address: ...

    @property
    def scratch(self) -> Path: ...

    def put(self, name: str, data: bytes) -> None:
        """Give the output these bytes; what was there is replaced. Raises OutputNameError and SinkError."""

    def place(self, temporary: Path, name: str) -> None:
        """Make an output of a finished file in `scratch`, which is gone then. Raises OutputNameError and SinkError."""

    def remove(self, name: str) -> None:
        """Take an output away again, if it is there."""

    def stopped(self, error: OSError, name: str) -> SinkError:
        """The error to raise when the disk does not take an output."""


class LocalStore:
    """A folder on a disk. Outputs appear under their names by a rename, so that `kill -9` never leaves half a file."""

    def __init__(self, folder: Path, part: str = "") -> None:
        """part: of a process, where several write into the folder. Each has a scratch folder of its own, which has to
        be there."""
        self._folder, self._part = folder, part
        self._numbers = itertools.count()

    @property
    def address(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def scratch(self) -> Path:
        """A folder on the same disk."""
        return self._folder / PARTIAL / self._part

    def put(self, name: str, data: bytes) -> None:
        """See Store. The file is not flushed to the disk."""
        temporary = self.scratch / str(next(self._numbers))
        try:
            temporary.write_bytes(data)
            self._move(temporary, name)
        except BaseException as error:
            self._give_up(temporary, error, name)
            raise

    def place(self, temporary: Path, name: str) -> None:
        """See Store. The file is flushed to the disk before it gets its name."""
        try:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._move(temporary, name)
        except BaseException as error:
            self._give_up(temporary, error, name)
            raise

    def remove(self, name: str) -> None:
        """See Store."""
        (self._folder / name).unlink(missing_ok=True)

    def stopped(self, error: OSError, name: str) -> SinkError:
        """See Store."""
        return SinkError(
            f"{self._folder}: cannot be written: {error.strerror} ({name}); start the run again to complete it"
        )

    def _give_up(self, temporary: Path, error: BaseException, name: str) -> None:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self.stopped(error, name) from error

    def _move(self, temporary: Path, name: str) -> None:
        path = self._folder / name
        if self._folder / PARTIAL in path.parents:
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
