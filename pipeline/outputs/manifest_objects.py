"""The manifest's lines in an object store: a folder of parts, each an object that is written once.

The lines of a shard are written after the shard; those of single images a thousand at a time, when the next line comes
more than a minute after the first, and at the end of the run. A part is written only after the store has confirmed
every output that it names. A killed run loses the work since its last part; the next run repeats it with the same
result. The manifest as one file: `cat manifest/*.jsonl`.

There is no lock: two simultaneous runs repeat work and may both write a line for an input, but neither loses the
other's. Each rank of a run (ranks.py) has its own parts; rank 0 writes the identity, and the others wait for it."""

import os
import time
from collections.abc import Iterable, Sequence
from functools import cache

from pipeline.inputs.remote import HTTP, Remote
from pipeline.outputs.object_store import RemoteStore
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError, identity_text, read_identity

PARTS = "manifest"
PART_LINES, PART_SECONDS = 1000, 60.0
_SUFFIX = ".jsonl"
_IDENTITY_TIMEOUT_S = 300.0


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
        self._sizes = parts_of(self.folder)
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
        """See Lines."""
        self._listings.forget()

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
            name = f"{PARTS}/{self._run}-{self._written:06}{_SUFFIX}"
            self._written += 1
            self.store.put(name, "".join(lines).encode())
            self.store.settle()


class Listings:
    """Checks whether outputs exist and are not empty, by listing their folders: one request per thousand objects."""

    def __init__(self, folder: Remote) -> None:
        self._folder = folder
        self._names = cache(self._list)  # outputs alternate between folders if their names begin with a hash

    def have(self, names: Iterable[str]) -> bool:
        """Whether all these outputs exist and are not empty."""
        return all(name in self._names(parent) for parent, _, name in (path.rpartition("/") for path in names))

    def forget(self) -> None:
        """Frees the names."""
        self._names.cache_clear()

    def _list(self, parent: str) -> frozenset[str]:
        files, _ = (self._folder / parent if parent else self._folder).listing()
        return frozenset(name for name, size in files.items() if size)


def parts_of(folder: Remote) -> dict[str, int | None]:
    """The parts that exist, with their sizes in bytes. Outputs may be in the same folder, that of an input folder
    `manifest`."""
    objects, _ = (folder / PARTS).listing()
    return {name: size for name, size in objects.items() if name.endswith(_SUFFIX)}


def read_part(folder: Remote, part: str) -> list[bytes]:
    """The part's lines, including line ends."""
    return (folder / PARTS / part).read_bytes().splitlines(keepends=True)


def _wait_for(place: Remote) -> None:
    end = time.monotonic() + _IDENTITY_TIMEOUT_S
    while not place.exists():
        if time.monotonic() > end:
            raise SinkError(f"{place}: rank 0 has not started within {_IDENTITY_TIMEOUT_S:.0f} s; start it")
        time.sleep(0.5)
