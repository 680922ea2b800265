"""The manifest of an output folder: one JSON line per input, and the memory of what is finished.

A line is written after the files that it names, so whatever has a line is done. `manifest.run.json` beside it says what
run the lines belong to: weights, mode, seed, …. A folder belongs to one run at a time.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.record import Done, Record, RunIdentity, SinkError, Status, refuse_another_run, valid_ranges
from pipeline.source import digest
from pipeline.store import PARTIAL, LocalStore

__all__ = ["IDENTITY", "LOCK", "MANIFEST", "PARTIAL", "Manifest", "Record", "RunIdentity", "SinkError", "Status"]

MANIFEST = "manifest.jsonl"
IDENTITY = "manifest.run.json"
LOCK = ".manifest.lock"


class Manifest:
    """An output folder's manifest, locked and open for appending. All methods but `close` are thread-safe.

    Made by `Manifest.open`; a context manager. `counts` has the number of lines of each status, earlier runs' included;
    `store` is where the outputs go.
    """

    def __init__(self, folder: Path, lock: int, done: Done) -> None:
        self.folder = folder
        self.store = LocalStore(folder)
        self.counts = done.counts
        self._done = done
        self._lock_file = lock
        self._mutex = threading.Lock()
        self._file = os.open(folder / MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._end = os.fstat(self._file).st_size
        _release_in_children(self)

    @classmethod
    def open(cls, folder: Path, run: RunIdentity, overwrite: bool = False) -> Self:
        """Lock the folder, clear away what a killed run left half done, and read what is finished.

        A line whose output file is gone or empty is dropped, and its input done again. With `overwrite` nothing counts
        as finished; an old output stays until it is written anew, or for good if the new run gives it another name.
        Raises SinkError if the folder cannot be written, if another run has it, or if its lines are another run's.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
        except OSError as error:
            raise SinkError(f"{folder}: cannot be made or written: {error.strerror}") from error
        try:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            (folder / PARTIAL).mkdir()
            _settle_identity(folder, run, overwrite)
            return cls(folder, lock, _recover(folder))
        except BaseException as error:
            with contextlib.suppress(OSError):
                (folder / PARTIAL).rmdir()
            os.close(lock)
            if isinstance(error, OSError):
                raise SinkError(f"{folder}: cannot be written: {error.strerror}") from error
            raise

    def finished(self, source: str) -> bool:
        """Whether an earlier run wrote this source's line (and its outputs are there)."""
        return digest(source) in self._done.sources

    def whole(self, shard: str) -> bool:
        """Whether an earlier run finished this output shard."""
        return shard in self._done.shards

    def append(self, records: Sequence[Record]) -> None:
        """Add a line for each record, all of them or none; raises SinkError if the disk does not take them."""
        lines = "".join(record.to_json() + "\n" for record in records).encode()
        with self._mutex:
            try:
                _write_all(self._file, lines)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                if isinstance(error, OSError):
                    raise SinkError(f"{self.folder / MANIFEST}: cannot be written: {error.strerror}") from error
                raise
            self._end += len(lines)
            self.counts.update(record.status for record in records)

    def close(self) -> None:
        """Bring the lines to the disk and let the folder go."""
        if self._lock_file < 0:
            return
        try:
            with contextlib.suppress(OSError):
                (self.folder / PARTIAL).rmdir()
            os.fsync(self._file)
        except OSError as error:
            raise SinkError(f"{self.folder / MANIFEST}: cannot be written: {error.strerror}") from error
        finally:
            os.close(self._file)
            os.close(self._lock_file)
            self._lock_file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1


def _release_in_children(manifest: Manifest) -> None:
    # The lock belongs to the open file, not to the process: a forked worker that outlives a killed run would hold it.
    weak = weakref.ref(manifest)

    def release() -> None:
        held = weak()
        if held is not None:
            held._let_go()

    os.register_at_fork(after_in_child=release)


def _lock(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(lock)
            raise SinkError(
                f"{folder}: another run is writing into this folder; wait for it or choose another folder"
            ) from error
        warnings.warn(f"{folder}: this file system has no locks; do not start two runs on this folder", stacklevel=2)
    return lock


def _settle_identity(folder: Path, run: RunIdentity, overwrite: bool) -> None:
    manifest, identity = folder / MANIFEST, folder / IDENTITY
    if overwrite:
        manifest.unlink(missing_ok=True)
    else:
        found = _read_identity(identity)
        if found is None and manifest.exists() and manifest.stat().st_size:
            raise SinkError(
                f"{folder}: has a {MANIFEST} but no {IDENTITY} that says what run it is of; "
                "choose another folder, or start afresh with --overwrite"
            )
        if found is not None:
            refuse_another_run(str(folder), found, run)
            return
    _replace_file(identity, [(json.dumps(asdict(run), indent=1) + "\n").encode()])


def _read_identity(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _recover(folder: Path) -> Done:
    """Read the lines that count, and take the others out of the file: torn ones, and those whose outputs are gone."""
    done = Done()
    path = folder / MANIFEST
    if not path.exists():
        return done
    kept: list[tuple[int, int]] = []
    with path.open("rb") as lines:
        for start, end in valid_ranges(lines, done, partial(_exist, folder)):
            if kept and kept[-1][1] == start:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((start, end))
    size = path.stat().st_size
    if not kept or (len(kept) == 1 and kept[0][0] == 0):
        if kept != [(0, size)]:
            os.truncate(path, kept[0][1] if kept else 0)
    else:
        with path.open("rb") as old:
            _replace_file(path, _pieces(old.fileno(), kept))
    return done


def _pieces(file: int, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    for start, end in ranges:
        for position in range(start, end, 1 << 20):
            yield os.pread(file, min(1 << 20, end - position), position)


def _exist(folder: Path, names: Iterable[str]) -> bool:
    try:
        # A file without bytes is what some file systems leave of one that was renamed just before the power went.
        return all((folder / name).stat().st_size for name in names)
    except OSError:
        return False


def _write_all(file: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(file, data[written:] if written else data)


def _replace_file(path: Path, pieces: Sequence[bytes] | Iterator[bytes]) -> None:
    """Put a file in place whole or not at all, and on the disk before it is; raises OSError."""
    temporary = path.parent / PARTIAL / path.name
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
