"""The manifest of an output folder: one JSON line per input, and the memory of what is finished.

A line is written after the files that it names, so whatever has a line is done. `manifest.run.json` beside it says what
run the lines belong to: weights, mode, seed, …. A folder belongs to one run at a time.

A run of several ranks (ranks.py) has a part for each, `manifest.<rank>-of-<ranks>.jsonl`, which only that rank writes.
Whoever starts reads all parts; a run of one rank, which no other may be beside, then moves their lines into the
manifest itself. Locks: the folder's, shared by the ranks and had alone by a run of one, and one for each part.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.record import Done, Record, RunIdentity, SinkError, Status, refuse_another_run, valid_ranges
from pipeline.source import digest
from pipeline.store import PARTIAL, LocalStore, OutputNameError

__all__ = [
    "IDENTITY",
    "LOCK",
    "MANIFEST",
    "PARTIAL",
    "Manifest",
    "Record",
    "RunIdentity",
    "SinkError",
    "Status",
    "manifest_name",
    "merge",
]

MANIFEST = "manifest.jsonl"
IDENTITY = "manifest.run.json"
LOCK = ".manifest.lock"
_PART = re.compile(r"manifest\.(\d+-of-(\d+))\.jsonl")


def manifest_name(part: str = "") -> str:
    """The file of a part, `0-of-4` for one; of the whole manifest without one."""
    return f"manifest.{part}.jsonl" if part else MANIFEST


def _lock_name(part: str) -> str:
    return f".manifest.{part}.lock" if part else LOCK


class PartStore(LocalStore):
    """A folder that several processes write into, each with a scratch folder of its own, which has to be there."""

    def __init__(self, folder: Path, part: str) -> None:
        super().__init__(folder)
        self._part = part

    @property
    def scratch(self) -> Path:
        """A folder on the same disk."""
        return self._folder / PARTIAL / self._part

    def _move(self, temporary: Path, name: str) -> None:
        if self._folder / PARTIAL in (self._folder / name).parents:
            raise OutputNameError(f"{PARTIAL!r} is where unfinished outputs are kept; rename the input's folder")
        super()._move(temporary, name)


class Manifest:
    """An output folder's manifest, locked and open for appending. All methods but `close` are thread-safe.

    Made by `Manifest.open`; a context manager. `counts` has the number of lines of each status, earlier runs' included,
    of a part the part's own; `store` is where the outputs go.
    """

    def __init__(self, folder: Path, locks: Sequence[int], done: Done, part: str = "") -> None:
        self.folder = folder
        self.store = PartStore(folder, part)
        self.path = folder / manifest_name(part)
        self.counts = done.counts
        self._done = done
        self._locks = [*locks]
        self._mutex = threading.Lock()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._end = os.fstat(self._file).st_size
        _release_in_children(self)

    @classmethod
    def open(cls, folder: Path, run: RunIdentity, overwrite: bool = False, part: str = "") -> Self:
        """Lock the folder, clear away what a killed run left half done, and read what is finished.

        A line whose output file is gone or empty is dropped, and its input done again. With `overwrite` nothing counts
        as finished; an old output stays until it is written anew, or for good if the new run gives it another name.
        With a `part`, `<rank>-of-<ranks>`, other ranks of as many may have the folder, too; not with `overwrite`.
        Raises SinkError if the folder cannot be written, if another run has it, or if its lines are another run's.
        """
        locks: list[int] = []
        scratch = folder / PARTIAL / part
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _lock(folder, part, locks)
            except OSError as error:
                raise SinkError(f"{folder}: cannot be made or written: {error.strerror}") from error
            shutil.rmtree(scratch, ignore_errors=True)
            _make(scratch)
            _settle_identity(folder, run, overwrite, part)
            return cls(folder, locks, _recover(folder, part), part)
        except BaseException as error:
            if locks:
                _remove(scratch, folder)
            _release(locks)
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
                    raise SinkError(f"{self.path}: cannot be written: {error.strerror}") from error
                raise
            self._end += len(lines)
            self.counts.update(record.status for record in records)

    def close(self) -> None:
        """Bring the lines to the disk and let the folder go."""
        if not self._locks:
            return
        try:
            _remove(self.store.scratch, self.folder)
            os.fsync(self._file)
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror}") from error
        finally:
            os.close(self._file)
            _release(self._locks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        _release(self._locks)


def merge(folder: Path) -> Counter[str]:
    """Move the lines of all parts into the manifest; returns how many lines of each status that has then. Raises
    SinkError if there is no manifest, or if a run has it."""
    found = _read_identity(folder / IDENTITY)
    if found is None:
        raise SinkError(f"{folder}: has no {IDENTITY}, so there is no run whose manifest could be merged")
    try:
        run = RunIdentity(**found)  # type: ignore[arg-type]
    except TypeError as error:
        raise SinkError(f"{folder / IDENTITY}: written by another version: {error}") from error
    with Manifest.open(folder, run) as manifest:
        return manifest.counts


def _release_in_children(manifest: Manifest) -> None:
    # The lock belongs to the open file, not to the process: a forked worker that outlives a killed run would hold it.
    weak = weakref.ref(manifest)

    def release() -> None:
        held = weak()
        if held is not None:
            held._let_go()

    os.register_at_fork(after_in_child=release)


def _lock(folder: Path, part: str, locks: list[int]) -> None:
    """Adds what is to be held. Raises SinkError, OSError."""
    locks.append(_lock_one(folder, LOCK, shared=bool(part)))
    if not part:
        return
    locks.append(_lock_one(folder, _lock_name(part)))
    for other in _parts(folder):
        if other.split("-of-")[1] != part.split("-of-")[1] and (folder / _lock_name(other)).exists():
            os.close(_lock_one(folder, _lock_name(other)))  # a run of as many ranks is over, or this one must wait


def _lock_one(folder: Path, name: str, shared: bool = False) -> int:
    lock = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(lock)
            raise SinkError(
                f"{folder}: another run is writing into this folder; wait for it or choose another folder"
            ) from error
        warnings.warn(f"{folder}: this file system has no locks; do not start two runs on this folder", stacklevel=2)
    return lock


def _release(locks: list[int]) -> None:
    while locks:
        os.close(locks.pop())


def _make(scratch: Path) -> None:
    for attempt in range(10):
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            return
        except FileNotFoundError:  # another rank has ended just now, and taken the folder above away
            if attempt == 9:
                raise


def _remove(scratch: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        scratch.rmdir()
        if scratch != folder / PARTIAL:
            (folder / PARTIAL).rmdir()  # unless other ranks still need it


def _parts(folder: Path) -> list[str]:
    """`0-of-4`, … for the ranks' parts that there are."""
    found = (_PART.fullmatch(path.name) for path in folder.iterdir())
    return sorted(match[1] for match in found if match)


def _settle_identity(folder: Path, run: RunIdentity, overwrite: bool, part: str) -> None:
    manifests, identity = [folder / manifest_name(name) for name in ("", *_parts(folder))], folder / IDENTITY
    if overwrite:
        for manifest in manifests:
            manifest.unlink(missing_ok=True)
    else:
        found = _read_identity(identity)
        if found is None and any(manifest.exists() and manifest.stat().st_size for manifest in manifests):
            raise SinkError(
                f"{folder}: has a {MANIFEST} but no {IDENTITY} that says what run it is of; "
                "choose another folder, or start afresh with --overwrite"
            )
        if found is not None:
            refuse_another_run(str(folder), found, run)
            return
    text = (json.dumps(asdict(run), indent=1) + "\n").encode()
    if not _replace_file(identity, [text], folder / PARTIAL / part, new=bool(part)):
        refuse_another_run(str(folder), _read_identity(identity) or {}, run)  # another rank was first


def _read_identity(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _recover(folder: Path, part: str) -> Done:
    """What all lines say that count. Others, torn ones and those whose outputs are gone, are taken out of the file that
    is to be written. The lines of parts go into the whole manifest if it is that."""
    done = Done()
    _mend(folder, part, done)
    counts = Counter(done.counts)
    for other in [name for name in ("", *_parts(folder)) if name != part]:
        path = folder / manifest_name(other)
        kept = _good(folder, path, done)
        if not part:
            _move_lines(path, kept, folder / MANIFEST)
            path.unlink()
    if part:
        done.counts = counts
    else:
        for lock in folder.glob(_lock_name("*-of-*")):  # no rank has one, or the folder would not be free
            lock.unlink()
    return done


def _mend(folder: Path, part: str, done: Done) -> None:
    path = folder / manifest_name(part)
    if not path.exists():
        return
    kept = _good(folder, path, done)
    size = path.stat().st_size
    if not kept or (len(kept) == 1 and kept[0][0] == 0):
        if kept != [(0, size)]:
            os.truncate(path, kept[0][1] if kept else 0)
    else:
        with path.open("rb") as old:
            _replace_file(path, _pieces(old.fileno(), kept), folder / PARTIAL / part)


def _good(folder: Path, path: Path, done: Done) -> list[tuple[int, int]]:
    """Byte ranges of the lines that count, neighbours together, which are noted in `done`; none of a missing file."""
    kept: list[tuple[int, int]] = []
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for start, end in valid_ranges(lines, done, partial(_exist, folder)):
            if kept and kept[-1][1] == start:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((start, end))
    return kept


def _move_lines(source: Path, ranges: Sequence[tuple[int, int]], target: Path) -> None:
    """Adds them to the target and brings them to the disk. Lines of a move that was cut short count once."""
    with source.open("rb") as old, target.open("ab") as new:
        for piece in _pieces(old.fileno(), ranges):
            new.write(piece)
        new.flush()
        os.fsync(new.fileno())


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


def _replace_file(path: Path, pieces: Sequence[bytes] | Iterator[bytes], scratch: Path, new: bool = False) -> bool:
    """Put a file in place whole or not at all, and on the disk before it is; raises OSError. With `new` returns False
    if there is one already, which stays."""
    temporary = scratch / path.name
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if new and not _link(temporary, path):
            return False
        temporary.replace(path)  # if it is the same file by now, nothing happens
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(file: Path, path: Path) -> bool:
    """Gives the file a second name, and returns False if that is taken. Not every file system has second names."""
    try:
        path.hardlink_to(file)
    except FileExistsError:
        return False
    except OSError:
        return not path.exists()
    return True
