"""The manifest of an output folder: one JSON line per input, and the memory of what is finished.

    with Manifest.open(output, run) as manifest:
        manifest.finished(source)            # an earlier run has written its line, and its outputs are there
        manifest.append([record])            # after the outputs that it names have been put in manifest.store

A line is written after the files that it names, so whatever has a line is done. `manifest.run.json` beside it says what
run the lines belong to: weights, mode, seed, …

Lines are kept in parts: on a disk (local_lines.py) one for each rank, of which a run of one process makes one file; in
an object store (object_store.py) one for every few lines. Each rank writes its own parts only; whoever starts reads
all, and a run of one process, which no other may be beside, takes out the lines that no longer count.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline.inputs.names import digest
from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.outputs.history import clear_history
from pipeline.outputs.local_lines import LocalLines, manifest_name, parts_of, read_part
from pipeline.outputs.object_store import PARTS, RemoteLines
from pipeline.outputs.object_store import read_part as read_remote_part
from pipeline.outputs.record import (
    IDENTITY,
    FinishedInputs,
    Record,
    RunIdentity,
    SinkError,
    check_same_run,
    valid_blocks,
)
from pipeline.outputs.store import Store

Ranges = Sequence[tuple[int, int]]
"""[start, end) in bytes, in order, no two of them touching."""


def manifest_address(output: Address, part: str = "") -> str:
    """Where an output folder's lines can be read, for people."""
    return f"{output / PARTS}/*.jsonl" if isinstance(output, Remote) else str(output / manifest_name(part))


class Lines(Protocol):
    """Where a manifest's lines are kept. Not thread-safe. Methods raise SinkError, OSError and RemoteError.

    store: where the outputs go."""

    @property
    def store(self) -> Store: ...

    def identity(self) -> dict[str, object] | None:
        """What the lines' run has written down about itself; {} if that is damaged, None if there is nothing."""

    def identify(self, run: RunIdentity) -> bool:
        """Write it down. False if another rank has done so meanwhile."""

    def parts(self) -> list[str]:
        """The names of all parts that there are, those first that this run may change."""

    def own(self, part: str) -> bool:
        """Whether this run may change the part."""

    def read(self, part: str) -> Iterable[bytes]:
        """The part's lines, their ends included."""

    def keep(self, part: str, ranges: Ranges) -> None:
        """Take out all other lines of a part that this run may change."""

    def remove(self, part: str) -> None:
        """Take the whole part away."""

    def exist(self, outputs: Iterable[str]) -> bool:
        """Whether all these outputs are there and not empty."""

    def start(self) -> None:
        """From now on lines are appended."""

    def append(self, records: Sequence[Record]) -> None:
        """A line for each, all of them or none."""

    def close(self) -> None:
        """Bring the lines to where they are kept, and let the folder go."""

    def abandon(self) -> None:
        """Let the folder go after an error."""


class Manifest:
    """An output folder's manifest, open for appending. All methods but `close` are thread-safe.

    Made by `Manifest.open`; a context manager. `counts` has the number of lines of each status, earlier runs' included,
    of a rank the rank's own; `store` is where the outputs go.
    """

    def __init__(self, lines: Lines, done: FinishedInputs) -> None:
        self.store = lines.store
        self.counts = done.counts
        self._lines, self._done = lines, done
        self._mutex = threading.Lock()

    @classmethod
    def open(
        cls,
        output: Address,
        run: RunIdentity | None,
        overwrite: bool = False,
        part: str = "",
        retry_failed: bool = False,
    ) -> Self:
        """Lock the folder, clear away what a killed run left half done, and read what is finished.

        A line whose output file is gone or empty is dropped, and its input done again; with `retry_failed` also the
        lines of failures that were not the file's own. With `overwrite` nothing counts as finished; an old output stays
        until it is written anew, or for good if the new run gives it another name. With a `part`, `<rank>-of-<ranks>`,
        other ranks of as many may have the folder, too; not with `overwrite`. run: None takes the lines of any run.
        An object store has no locks.
        Raises SinkError if the folder cannot be written, if another run has it, or if its lines are another run's.
        """
        lines: Lines = RemoteLines(output, part) if isinstance(output, Remote) else LocalLines(output, part)
        try:
            if run is not None:
                _settle_identity(lines, str(output), run, overwrite)
            done = _recover(lines, part, retry_failed)
            lines.start()
        except BaseException as error:
            lines.abandon()
            if isinstance(error, RemoteError):
                raise SinkError(f"{output}: cannot be used for output: {error}") from error
            if isinstance(error, OSError):
                raise SinkError(f"{output}: cannot be written: {error.strerror or error}") from error
            raise
        return cls(lines, done)

    def finished(self, source: str) -> bool:
        """Whether an earlier run wrote this source's line (and its outputs are there)."""
        return digest(source) in self._done.sources

    def whole(self, shard: str) -> bool:
        """Whether an earlier run finished this output shard."""
        return shard in self._done.shards

    def append(self, records: Sequence[Record]) -> None:
        """Add a line for each record, all of them or none. Raises SinkError."""
        with self._mutex:
            self._lines.append(records)
            self.counts.update(record.status for record in records)

    def close(self) -> None:
        """Bring the lines to where they are kept, and let the folder go. Raises SinkError."""
        with self._mutex:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def merge(folder: Path) -> Counter[str]:
    """Move the lines of all parts of a folder on a disk into one file; returns how many lines of each status that has
    then. Raises SinkError if there is no manifest, or if a run has it."""
    if not (folder / IDENTITY).exists():
        raise SinkError(f"{folder}: has no {IDENTITY}, so there is no run whose manifest could be merged")
    with Manifest.open(folder, None) as manifest:
        return manifest.counts


def read_records(output: Address, retry_failed: bool = False) -> Iterator[Record]:
    """The lines of all parts that count, of a source with several the first. Nothing is locked or changed, and outputs
    are not looked for: an output may be gone. retry_failed: as in `Manifest.open`. Raises OSError and RemoteError."""
    done = FinishedInputs()
    parts = sorted((output / PARTS).listing()[0]) if isinstance(output, Remote) else parts_of(output)
    for part in parts:
        lines = read_remote_part(output, part) if isinstance(output, Remote) else read_part(output, part)
        for _, _, records in valid_blocks(lines, done, lambda outputs: True, retry_failed):
            yield from records


def _settle_identity(lines: Lines, where: str, run: RunIdentity, overwrite: bool) -> None:
    """Raises SinkError if there are lines of another run, or of one unknown."""
    if overwrite:
        for part in lines.parts():
            lines.remove(part)
        clear_history(lines.store.address)
    elif (found := lines.identity()) is not None:
        check_same_run(where, found, run)
        return
    elif any(True for part in lines.parts() for _ in lines.read(part)):
        raise SinkError(
            f"{where}: has manifest lines but no {IDENTITY} that says what run they are of; "
            "choose another folder, or start afresh with --overwrite"
        )
    if not lines.identify(run):
        check_same_run(where, lines.identity() or {}, run)


def _recover(lines: Lines, part: str, retry_failed: bool) -> FinishedInputs:
    """What all lines say that count; others are taken out where this run may change them."""
    done, counts = FinishedInputs(), Counter[str]()
    for name in lines.parts():
        blocks = valid_blocks(lines.read(name), done, lines.exist, retry_failed)
        ranges = _joined((start, end) for start, end, _ in blocks)
        if lines.own(name):
            lines.keep(name, ranges)
            counts = Counter(done.counts)
    if part:
        done.counts = counts
    return done


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for start, end in ranges:
        if kept and kept[-1][1] == start:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return kept
