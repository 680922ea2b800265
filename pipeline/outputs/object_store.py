"""An output folder in an object store, which supports neither appending nor renaming.

    s3://bucket/out/
        manifest.run.json             the run's identity
        manifest/<time>-<run>-<number>.jsonl
        manifest.history/<time>-<random>.jsonl
        photos/a.png, shards/000.tar, ...

Objects are written atomically, so outputs are uploaded under their final names. The manifest is a folder of parts, each
an object that is written once: the lines of a shard after the shard; of single images up to a thousand lines, at the
latest after a minute and at the end of the run. A part is written only after the store has confirmed every output that
it names. A killed run loses the work since its last part: a shard, or a minute's images; the next run repeats it with
the same result. All state is in the store, so a run can be continued on another machine. The manifest as one file: `cat
manifest/*.jsonl`.

An unfinished shard is a file in the local temporary folder (TMPDIR), which must have room for it; `kill -9` leaves it
there.

There is no lock: two simultaneous runs repeat work and may both write a line for an input, but neither loses the
other's. Each rank of a run (ranks.py) has its own parts; rank 0 writes the identity, and the others wait for it."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from pipeline.inputs.remote import HTTP, Remote, RemoteError, as_remote_errors
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError, identity_text, read_identity
from pipeline.outputs.store import OutputNameError

PARTS = "manifest"
_UPLOADS = 8
PART_LINES, PART_SECONDS = 1000, 60.0
_IDENTITY_TIMEOUT_S = 300.0
_NAME_BYTES = 1024  # S3's and Google's limit for a whole path


class RemoteStore:
    """A folder of an object store. A few threads upload images in the background; `settle` waits for them."""

    def __init__(self, folder: Remote) -> None:
        """Must be closed with `close`."""
        self.address = folder
        self.scratch = Path(tempfile.mkdtemp(prefix="restore-"))
        self._pool = ThreadPoolExecutor(_UPLOADS, "upload")
        self._mutex = threading.Lock()
        self._uploads: list[Future[None]] = []

    def put(self, name: str, data: bytes) -> None:
        """See Store. Only starts the upload; raises SinkError if an earlier one has failed."""
        target = self._target(name)
        with self._mutex:
            waiting = [upload for upload in self._uploads if not upload.done() or upload.exception()]
            self._uploads = [*waiting, self._pool.submit(self._put, target, data)]
            oldest = waiting[0] if len(waiting) >= _UPLOADS else None
        if oldest is not None:
            oldest.result()

    def publish(self, temporary: Path, name: str) -> None:
        """See Store."""
        target = self._target(name)
        try:
            self._attempt(target, lambda: self.address.fs.put_file(str(temporary), target.address))
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See Store."""
        self.settle()
        target = self._target(name)

        def unlink() -> None:
            if target.exists():
                target.unlink()

        self._attempt(target, unlink)

    def settle(self) -> None:
        """Waits for all uploads. Raises SinkError."""
        with self._mutex:
            uploads, self._uploads = self._uploads, []
        for upload in uploads:
            upload.result()

    def write_error(self, error: OSError, name: str) -> SinkError:
        """See Store; the error is the scratch folder's."""
        return SinkError(
            f"{self.scratch}: cannot be written: {error.strerror} ({name}); start the run again to complete it"
        )

    def close(self) -> None:
        """Waits for running uploads, and removes the scratch folder."""
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _target(self, name: str) -> Remote:
        target = self.address / name
        try:
            length = len(target.address.encode())
        except UnicodeEncodeError as error:
            raise OutputNameError(f"no object can be named {name!r}: it is not valid Unicode") from error
        if length > _NAME_BYTES:
            raise OutputNameError(f"no object can be named {name!r}: {length} bytes are more than {_NAME_BYTES}")
        return target

    def _put(self, target: Remote, data: bytes) -> None:
        self._attempt(target, lambda: target.write_bytes(data))

    def _attempt(self, target: Remote, action: Callable[[], object]) -> None:
        try:
            with as_remote_errors(target):
                action()
        except (RemoteError, OSError) as error:
            raise SinkError(f"cannot be written: {error}; start the run again to complete it") from error


class RemoteLines:
    """See manifest.Lines. part: of this rank, or empty."""

    def __init__(self, folder: Remote, part: str) -> None:
        """Raises SinkError."""
        if folder.protocol in HTTP:
            raise SinkError(f"{folder}: HTTP is read-only; choose another output folder")
        self.folder, self.part = folder, part
        self.store = RemoteStore(folder)
        self._listings = Listings(folder)
        self._sizes: dict[str, int | None] = {}
        self._lines: list[str] = []
        self._since = 0.0
        self._written = 0
        self._run = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"

    def identity(self) -> dict[str, object] | None:
        """See Lines. Ranks other than 0 wait for rank 0."""
        if self.part and not self.part.startswith("0-"):
            _wait_for(self.folder / IDENTITY)
        return read_identity(self.folder)

    def identify(self, run: RunIdentity) -> bool:
        """See Lines."""
        (self.folder / IDENTITY).write_bytes(identity_text(run))
        return True

    def parts(self) -> list[str]:
        """See Lines."""
        self._sizes, _ = (self.folder / PARTS).listing()
        return sorted(self._sizes)

    def may_change(self, part: str) -> bool:
        """See Lines: a rank may change no part, because others may be reading it."""
        return not self.part

    def read(self, part: str) -> list[bytes]:
        """See Lines."""
        return read_part(self.folder, part)

    def keep(self, part: str, ranges: Sequence[tuple[int, int]]) -> None:
        """See Lines."""
        if not ranges:
            self.remove(part)
        elif list(ranges) != [(0, self._sizes[part])]:
            place = self.folder / PARTS / part
            data = place.read_bytes()
            place.write_bytes(b"".join(data[start:end] for start, end in ranges))

    def remove(self, part: str) -> None:
        """See Lines."""
        (self.folder / PARTS / part).unlink()

    def exist(self, outputs: Iterable[str]) -> bool:
        """See Lines."""
        return self._listings.have(outputs)

    def start(self) -> None:
        """See Lines; nothing to do."""

    def append(self, records: Sequence[Record]) -> None:
        """See Lines. Lines are collected and written later; those of a shard at once."""
        if not self._lines:
            self._since = time.monotonic()
        self._lines += [record.to_json() + "\n" for record in records]
        if (
            any(record.shard_lines is not None for record in records)
            or len(self._lines) >= PART_LINES
            or time.monotonic() - self._since > PART_SECONDS
        ):
            self._flush()

    def close(self) -> None:
        """See Lines."""
        try:
            self._flush()
        finally:
            self.store.close()

    def abandon(self) -> None:
        """See Lines."""
        self.store.close()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self.store.settle()
        if lines:
            name = f"{PARTS}/{self._run}-{self._written:06}.jsonl"
            self._written += 1
            self.store.put(name, "".join(lines).encode())
            self.store.settle()


class Listings:
    """Checks whether outputs exist and are not empty, by listing their folders: one request per thousand objects."""

    def __init__(self, folder: Remote) -> None:
        self._folder = folder
        self._names = lru_cache(maxsize=16)(self._list)

    def have(self, names: Iterable[str]) -> bool:
        """Whether all these outputs exist and are not empty."""
        return all(name in self._names(parent) for parent, _, name in (path.rpartition("/") for path in names))

    def _list(self, parent: str) -> frozenset[str]:
        files, _ = (self._folder / parent if parent else self._folder).listing()
        return frozenset(name for name, size in files.items() if size)


def read_part(folder: Remote, part: str) -> list[bytes]:
    """The part's lines, including line ends."""
    return (folder / PARTS / part).read_bytes().splitlines(keepends=True)


def _wait_for(place: Remote) -> None:
    end = time.monotonic() + _IDENTITY_TIMEOUT_S
    while not place.exists():
        if time.monotonic() > end:
            raise SinkError(f"{place}: rank 0 has not started within {_IDENTITY_TIMEOUT_S:.0f} s; start it")
        time.sleep(0.5)
