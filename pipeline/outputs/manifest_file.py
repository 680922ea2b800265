"""The manifest's lines on a disk: `manifest.jsonl`, or one file per rank, `manifest.<rank>-of-<ranks>.jsonl`.

A run of one process moves the lines of all parts into `manifest.jsonl`. The folder's lock is shared by ranks and
exclusive to a run of one process; each part has an exclusive lock, too."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from model.locks import lock_file
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError, identity_text, read_identity
from pipeline.outputs.store import PARTIAL, LocalStore

MANIFEST = "manifest.jsonl"
LOCK = ".manifest.lock"
_PART = re.compile(r"manifest\.(\d+-of-(\d+))\.jsonl")


def manifest_name(part: str = "") -> str:
    """The file name of a part such as `0-of-4`; of the whole manifest if `part` is empty."""
    return f"manifest.{part}.jsonl" if part else MANIFEST


def _lock_name(part: str) -> str:
    return f".manifest.{part}.lock" if part else LOCK


def parts_of(folder: Path) -> list[str]:
    """The parts that exist; the whole manifest's name is empty."""
    return [part for part in ("", *_rank_parts(folder)) if (folder / manifest_name(part)).exists()]


def absent_ranks(folder: Path) -> Iterator[str]:
    """`1-of-2` where there is only `0-of-2`: ranks that have stored nothing since the parts were last merged."""
    parts = _rank_parts(folder)
    for size in sorted({int(part.split("-of-")[1]) for part in parts}):
        yield from (part for rank in range(size) if (part := f"{rank}-of-{size}") not in parts)


def read_part(folder: Path, part: str) -> Iterator[bytes]:
    """The part's lines, including line ends."""
    with (folder / manifest_name(part)).open("rb") as lines:
        yield from lines


def outputs_exist(folder: Path, names: Iterable[str]) -> bool:
    """Whether all these outputs exist and are not empty: after a power failure some file systems leave an empty file in
    place of one that was just renamed."""
    try:
        return all((folder / name).stat().st_size for name in names)
    except OSError:
        return False


class ManifestFile:
    """See manifest.Lines. part: of this rank; empty for a run of one process."""

    def __init__(self, folder: Path, part: str) -> None:
        """Creates and locks the folder, and removes partial outputs of a killed run. Raises SinkError."""
        self.folder, self.part = folder, part
        self.path = folder / manifest_name(part)
        self.store = LocalStore(folder, part)
        self._locks: list[int] = []
        self._owns_scratch = False
        self._file: int | None = None
        self._end = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._owns_scratch = True
            shutil.rmtree(self.store.scratch, ignore_errors=True)
            _make(self.store.scratch)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise SinkError(f"{folder}: cannot be made or written: {error.strerror}") from error
            raise
        _release_in_children(self)

    def identity(self) -> dict[str, object] | None:
        """See Lines."""
        return read_identity(self.folder)

    def identify(self, run: RunIdentity) -> bool:
        """See Lines."""
        return self._replace(self.folder / IDENTITY, [identity_text(run)], new=bool(self.part))

    def parts(self) -> list[str]:
        """See Lines: the whole manifest's name is empty."""
        return sorted(parts_of(self.folder), key=lambda part: (part != self.part, part))

    def may_change(self, part: str) -> bool:
        """See Lines."""
        return self.part in ("", part)

    def read(self, part: str) -> Iterator[bytes]:
        """See Lines."""
        return read_part(self.folder, part)

    def keep(self, part: str, ranges: Sequence[tuple[int, int]]) -> None:
        """See Lines. A run of one process moves the lines of a rank's part to its own. After an interrupted move lines
        exist twice, and count once."""
        path = self.folder / manifest_name(part)
        if part != self.part:
            with path.open("rb") as old, self.path.open("ab") as new:
                new.writelines(_pieces(old.fileno(), ranges))
                new.flush()
                os.fsync(new.fileno())
            path.unlink()
        elif not ranges or (len(ranges) == 1 and ranges[0][0] == 0):
            os.truncate(path, ranges[0][1] if ranges else 0)
        else:
            with path.open("rb") as old:
                self._replace(path, _pieces(old.fileno(), ranges))

    def remove(self, part: str) -> None:
        """See Lines."""
        (self.folder / manifest_name(part)).unlink()

    def exist(self, outputs: Iterable[str]) -> bool:
        """See Lines."""
        return outputs_exist(self.folder, outputs)

    def start(self) -> None:
        """See Lines."""
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._end = os.fstat(self._file).st_size

    def append(self, records: Sequence[Record]) -> None:
        """See Lines."""
        assert self._file is not None
        lines = "".join(record.to_json() + "\n" for record in records).encode()
        try:
            _write_all(self._file, lines)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            if isinstance(error, OSError):
                raise SinkError(f"{self.path}: cannot be written: {error.strerror}") from error
            raise
        self._end += len(lines)

    def close(self) -> None:
        """See Lines."""
        if not self._locks:
            return
        try:
            if self._file is not None:
                os.fsync(self._file)
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror}") from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """See Lines."""
        if self._owns_scratch:
            self._owns_scratch = False
            with contextlib.suppress(OSError):
                self.store.scratch.rmdir()
                if self.part:
                    (self.folder / PARTIAL).rmdir()  # fails while other ranks use it
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.release()

    def release(self) -> None:
        """Releases the locks."""
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self) -> None:
        """Raises SinkError, OSError."""
        self._locks.append(_lock_one(self.folder, LOCK, shared=bool(self.part)))
        if not self.part:
            for lock in self.folder.glob(_lock_name("*-of-*")):  # no rank holds one, as this run has the folder's lock
                lock.unlink()
            return
        self._locks.append(_lock_one(self.folder, _lock_name(self.part)))
        for other in _rank_parts(self.folder):
            if other.split("-of-")[1] != self.part.split("-of-")[1] and (self.folder / _lock_name(other)).exists():
                # Raises SinkError while a run with another number of ranks is active. Shared, as others look, too:
                os.close(_lock_one(self.folder, _lock_name(other), shared=True))

    def _replace(self, path: Path, pieces: Iterable[bytes], new: bool = False) -> bool:
        """Writes a file atomically and flushes it to the disk first; raises OSError. new: do not replace an existing
        file, and return False if there is one."""
        temporary = self.store.scratch / path.name
        try:
            with temporary.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            if new and not _link(temporary, path):
                return False
            temporary.replace(path)  # does nothing if it is a hard link to the same file
        finally:
            temporary.unlink(missing_ok=True)
        return True


def _release_in_children(lines: ManifestFile) -> None:
    # A lock belongs to the open file, not to the process: a forked worker that outlives a killed run would keep it.
    weak = weakref.ref(lines)

    def release() -> None:
        held = weak()
        if held is not None:
            held.release()

    os.register_at_fork(after_in_child=release)


def _lock_one(folder: Path, name: str, shared: bool = False) -> int:
    try:
        return lock_file(folder / name, shared)
    except BlockingIOError as error:
        raise SinkError(
            f"{folder}: another run is writing to this folder; wait for it or choose another folder"
        ) from error


def _make(scratch: Path) -> None:
    for attempt in range(10):
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            return
        except FileNotFoundError:  # another rank has ended and removed the parent folder
            if attempt == 9:
                raise


def _rank_parts(folder: Path) -> list[str]:
    """`0-of-4`, … for the ranks' parts that exist."""
    found = (_PART.fullmatch(path.name) for path in folder.iterdir())
    return sorted(match[1] for match in found if match)


def _pieces(file: int, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    for start, end in ranges:
        for position in range(start, end, 1 << 20):
            yield os.pread(file, min(1 << 20, end - position), position)


def _write_all(file: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(file, data[written:] if written else data)


def _link(file: Path, path: Path) -> bool:
    """Creates a hard link; returns False if `path` exists. Where hard links are not supported, returns whether it does
    not."""
    try:
        path.hardlink_to(file)
    except FileExistsError:
        return False
    except OSError:
        return not path.exists()
    return True
