"""Where outputs are put: a folder on a disk. object_store.RemoteStore is the same for an object store.

Partial outputs of a killed run are in `scratch`, and are removed when the manifest is opened (manifest_file.py)."""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.inputs.remote import Address
from pipeline.outputs.record import SinkError

PARTIAL = ".restore-partial"

# Errors of a name, not of the disk: too long, a folder in the place of a file, …
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
    """An output cannot have the name that its key asks for; the run continues."""


class Store(Protocol):
    """An output folder. Names are safe relative paths below it. Thread-safe.

    address: of the folder.
    scratch: a local folder for unfinished files."""

    @property
    def address(self) -> Address: ...

    @property
    def scratch(self) -> Path: ...

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces an output atomically. Raises OutputNameError and SinkError."""

    def publish(self, temporary: Path, name: str) -> None:
        """Moves a finished file from `scratch` to its output name. Raises OutputNameError and SinkError."""

    def remove(self, name: str) -> None:
        """Removes an output if it exists."""

    def write_error(self, error: OSError, name: str) -> SinkError:
        """The error to raise when an output cannot be written."""


class LocalStore:
    """A folder on a disk. Outputs get their names by a rename, so that `kill -9` never leaves a partial one."""

    def __init__(self, folder: Path, part: str = "") -> None:
        """part: of a process, if several write to the folder; each has a scratch folder of its own, which must
        exist."""
        self.address, self.scratch = folder, folder / PARTIAL / part
        self._numbers = itertools.count()

    def put(self, name: str, data: bytes) -> None:
        """See Store. The file is not flushed to the disk."""
        temporary = self.scratch / str(next(self._numbers))
        with self._removed_on_error(temporary, name):
            temporary.write_bytes(data)
            self._move(temporary, name)

    def publish(self, temporary: Path, name: str) -> None:
        """See Store. The file is flushed to the disk before it gets its name."""
        with self._removed_on_error(temporary, name):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._move(temporary, name)

    def remove(self, name: str) -> None:
        """See Store."""
        (self.address / name).unlink(missing_ok=True)

    def write_error(self, error: OSError, name: str) -> SinkError:
        """See Store."""
        return SinkError(
            f"{self.address}: cannot be written: {error.strerror} ({name}); start the run again to complete it"
        )

    @contextlib.contextmanager
    def _removed_on_error(self, temporary: Path, name: str) -> Iterator[None]:
        """Removes the temporary file after an error; turns an OSError into SinkError."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self.write_error(error, name) from error
            raise

    def _move(self, temporary: Path, name: str) -> None:
        path = self.address / name
        if self.address / PARTIAL in path.parents:
            raise OutputNameError(f"the name {PARTIAL!r} is reserved for unfinished outputs; rename the input's folder")
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
