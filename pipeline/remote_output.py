"""An output folder in an object store, which knows neither appending nor renaming: outputs, manifest and resume.

    s3://bucket/out/
        manifest.run.json             what run this is
        manifest/<time>-<run>-<number>.jsonl
        photos/a.png, shards/000.tar, ...

An object appears whole or not at all, so outputs are put under their names at once. The manifest is a folder of parts,
each an object that is written once: after a shard, the shard's lines; with single images the lines of up to a thousand
of them, at the latest after a minute and when the run ends. A part is written only when the store has confirmed every
output that it names, so whatever has a line is done. A run that was killed loses the work since its last part: a shard,
or a minute's images, which the next run does again and which come out the same. All state is in the store; a run can be
continued on another machine. The manifest as one file: `cat manifest/*.jsonl`.

A shard in the making is a file in this machine's temporary folder (TMPDIR), which has to have room for it; `kill -9`
leaves it there.

There is no lock: two runs at once do work twice and may both write a line for it, but neither loses the other's. The
ranks of a run (ranks.py) have their own parts; the first of them says what run this is, and the others wait for it.
"""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.manifest import IDENTITY, Manifest, manifest_name
from pipeline.record import Done, Record, RunIdentity, SinkError, refuse_another_run, valid_ranges
from pipeline.remote import HTTP, Address, Remote, RemoteError, failures_of
from pipeline.sink import Ledger
from pipeline.source import digest
from pipeline.store import OutputNameError

PARTS = "manifest"
_UPLOADS = 8
_PART_LINES, _PART_SECONDS = 1000, 60.0
_PATIENCE = 300.0
_NAME_BYTES = 1024  # S3's and Google's limit for a whole path


def open_manifest(output: Address, run: RunIdentity, overwrite: bool = False, part: str = "") -> Ledger:
    """The manifest of an output folder, wherever that is; see Manifest.open. Raises SinkError."""
    if isinstance(output, Remote):
        return RemoteManifest.open(output, run, overwrite, part)
    return Manifest.open(output, run, overwrite, part)


def manifest_address(output: Address, part: str = "") -> str:
    """Where an output folder's lines can be read, for people."""
    return f"{output / PARTS}/*.jsonl" if isinstance(output, Remote) else str(output / manifest_name(part))


class RemoteStore:
    """A folder of an object store. Images are uploaded by a few threads meanwhile; `settle` waits for them."""

    def __init__(self, folder: Remote) -> None:
        """`close` it."""
        self._folder = folder
        self._scratch = Path(tempfile.mkdtemp(prefix="restore-"))
        self._pool = ThreadPoolExecutor(_UPLOADS, "upload")
        self._mutex = threading.Lock()
        self._uploads: list[Future[None]] = []

    @property
    def address(self) -> Remote:
        """The folder."""
        return self._folder

    @property
    def scratch(self) -> Path:
        """A temporary folder of this machine's."""
        return self._scratch

    def put(self, name: str, data: bytes) -> None:
        """See Store; the upload has only begun, and SinkError is raised when an earlier one has failed."""
        target = self._target(name)
        with self._mutex:
            waiting = [upload for upload in self._uploads if not upload.done() or upload.exception()]
            self._uploads = [*waiting, self._pool.submit(self._put, target, data)]
            oldest = waiting[0] if len(waiting) >= _UPLOADS else None
        if oldest is not None:
            oldest.result()

    def place(self, temporary: Path, name: str) -> None:
        """See Store."""
        target = self._target(name)
        try:
            self._attempt(target, lambda: self._folder.fs.put_file(str(temporary), target.address))
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See Store."""
        self.settle()
        target = self._target(name)
        self._attempt(target, lambda: target.exists() and target.fs.rm_file(target.address))

    def settle(self) -> None:
        """Wait until all that was put is there. Raises SinkError."""
        with self._mutex:
            uploads, self._uploads = self._uploads, []
        for upload in uploads:
            upload.result()

    def stopped(self, error: OSError, name: str) -> SinkError:
        """See Store; it is the scratch folder's disk that did not take it."""
        return SinkError(
            f"{self._scratch}: cannot be written: {error.strerror} ({name}); start the run again to complete it"
        )

    def close(self) -> None:
        """Wait for what has begun, and clear the scratch folder away."""
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _target(self, name: str) -> Remote:
        target = self._folder / name
        try:
            length = len(target.address.encode())
        except UnicodeEncodeError as error:
            raise OutputNameError(f"no object can be named {name!r}: it is no valid Unicode") from error
        if length > _NAME_BYTES:
            raise OutputNameError(f"no object can be named {name!r}: {length} bytes are more than {_NAME_BYTES}")
        return target

    def _put(self, target: Remote, data: bytes) -> None:
        self._attempt(target, lambda: target.fs.pipe_file(target.address, data))

    def _attempt(self, target: Remote, action: Callable[[], object]) -> None:
        try:
            with failures_of(target):
                action()
        except (RemoteError, OSError) as error:
            raise SinkError(f"cannot be written: {error}; start the run again to complete it") from error


class RemoteManifest:
    """The manifest of an output folder in an object store; see Manifest, and above how it is kept."""

    def __init__(self, folder: Remote, done: Done) -> None:
        self.folder = folder
        self.store = RemoteStore(folder)
        self.counts = done.counts
        self._done = done
        self._mutex = threading.Lock()
        self._lines: list[str] = []
        self._since = 0.0
        self._written = 0
        self._run = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"

    @classmethod
    def open(cls, folder: Remote, run: RunIdentity, overwrite: bool = False, part: str = "") -> Self:
        """Read what is finished; lines whose outputs are gone or empty are taken out, but not by one rank of several,
        whose counts are of its own lines. Otherwise as Manifest.open."""
        if folder.protocol in HTTP:
            raise SinkError(f"{folder}: HTTP can only be read; choose another output folder")
        try:
            if part and not part.startswith("0-"):
                _await_identity(folder)
            _settle_identity(folder, run, overwrite)
            return cls(folder, _recover(folder, mend=not part))
        except (RemoteError, OSError) as error:
            raise SinkError(f"{folder}: cannot be used for output: {error}") from error

    def finished(self, source: str) -> bool:
        """Whether an earlier run wrote this source's line (and its outputs are there)."""
        return digest(source) in self._done.sources

    def whole(self, shard: str) -> bool:
        """Whether an earlier run finished this output shard."""
        return shard in self._done.shards

    def append(self, records: Sequence[Record]) -> None:
        """Add a line for each record, of a shard all of them or none. Raises SinkError."""
        with self._mutex:
            if not self._lines:
                self._since = time.monotonic()
            self._lines += [record.to_json() + "\n" for record in records]
            self.counts.update(record.status for record in records)
            if (
                any(record.shard_lines is not None for record in records)
                or len(self._lines) >= _PART_LINES
                or time.monotonic() - self._since > _PART_SECONDS
            ):
                self._flush()

    def close(self) -> None:
        """Write the last part. Raises SinkError."""
        try:
            with self._mutex:
                self._flush()
        finally:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self.store.settle()
        if lines:
            name = f"{PARTS}/{self._run}-{self._written:06}.jsonl"
            self._written += 1
            self.store.put(name, "".join(lines).encode())
            self.store.settle()


def _settle_identity(folder: Remote, run: RunIdentity, overwrite: bool) -> None:
    parts = [folder / PARTS / name for name in (folder / PARTS).listing()[0]]
    if overwrite:
        for part in parts:
            _remove(part)
    else:
        found = _read_identity(folder / IDENTITY)
        if found is not None:
            refuse_another_run(str(folder), found, run)
            return
        if parts:
            raise SinkError(
                f"{folder}: has manifest lines but no {IDENTITY} that says what run they are of; "
                "choose another folder, or start afresh with --overwrite"
            )
    _write(folder / IDENTITY, (json.dumps(asdict(run), indent=1) + "\n").encode())


def _await_identity(folder: Remote) -> None:
    end = time.monotonic() + _PATIENCE
    while not (folder / IDENTITY).exists():
        if time.monotonic() > end:
            raise SinkError(f"{folder}: rank 0 has not begun for {_PATIENCE:.0f} s; start it, too")
        time.sleep(0.5)


def _read_identity(place: Remote) -> dict[str, object] | None:
    try:
        with failures_of(place):
            found = json.loads(place.fs.cat_file(place.address))
    except FileNotFoundError:
        return None
    except RemoteError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        found = None
    return found if isinstance(found, dict) else {}


def _recover(folder: Remote, mend: bool) -> Done:
    """Read the lines that count, and write the parts anew that have others, if wished: another rank may be reading."""
    done = Done()
    present = Listings(folder)
    for name in sorted((folder / PARTS).listing()[0]):
        part = folder / PARTS / name
        with failures_of(part):
            data: bytes = part.fs.cat_file(part.address)
        kept = b"".join(
            data[start:end] for start, end in valid_ranges(data.splitlines(keepends=True), done, present.have)
        )
        if not mend:
            continue
        if not kept:
            _remove(part)
        elif kept != data:
            _write(part, kept)
    if not mend:
        done.counts.clear()
    return done


class Listings:
    """Which outputs are there and not empty, by listings of their folders: one request for a thousand of them."""

    def __init__(self, folder: Remote) -> None:
        self._folder = folder
        self._names = lru_cache(maxsize=16)(self._list)

    def have(self, names: Iterable[str]) -> bool:
        """Whether all these are."""
        return all(name in self._names(parent) for parent, _, name in (path.rpartition("/") for path in names))

    def _list(self, parent: str) -> frozenset[str]:
        files, _ = (self._folder / parent if parent else self._folder).listing()
        return frozenset(name for name, size in files.items() if size)


def _write(place: Remote, data: bytes) -> None:
    with failures_of(place):
        place.fs.pipe_file(place.address, data)


def _remove(place: Remote) -> None:
    with failures_of(place):
        place.fs.rm_file(place.address)
