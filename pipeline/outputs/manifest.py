"""The manifest of an output folder: one JSON line per input. A resumed run reads from it what is finished.

    with Manifest.open(output, run) as manifest:
        manifest.finished(source)            # an earlier run has written its line, and its outputs exist
        manifest.append([record])            # after the outputs that it names were put in manifest.store

A line is written after the files that it names, so an input with a line is finished. `manifest.run.json` beside it has
the run's identity: weights, mode, seed, …

Lines are kept in parts: on a disk (manifest_file.py) one per rank, which a run of one process merges; in an object
store (manifest_objects.py) one for every few lines. Each rank writes to its own parts only. Every run reads all
parts; a run of one process, which has exclusive access, also removes the lines that no longer count."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

from pipeline.inputs.names import JPEG, SHARD_SUFFIXES
from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.outputs import manifest_file, manifest_objects
from pipeline.outputs.formats import SUFFIXES
from pipeline.outputs.history import clear_history
from pipeline.outputs.manifest_file import ManifestFile, manifest_name, outputs_exist
from pipeline.outputs.manifest_objects import PARTS, Listings, RemoteLines
from pipeline.outputs.record import (
    IDENTITY,
    FinishedInputs,
    Record,
    Retry,
    RunIdentity,
    SinkError,
    check_same_run,
    read_identity,
    valid_blocks,
)
from pipeline.outputs.store import Store

MOST_NAMED = 5
"""Ranks that a message names."""

Ranges = Sequence[tuple[int, int]]
"""[start, end) in bytes, in order, not adjacent."""


def manifest_address(output: Address, part: str = "") -> str:
    """Where an output folder's manifest is, for messages."""
    return f"{output / PARTS}/*.jsonl" if isinstance(output, Remote) else str(output / manifest_name(part))


class Lines(Protocol):
    """The storage of a manifest's lines. Not thread-safe. Methods raise SinkError, OSError and RemoteError. store:
    where the outputs go."""

    @property
    def store(self) -> Store: ...

    def identity(self) -> dict[str, object] | None:
        """The identity of the run that the lines belong to; {} if it is damaged, None if there is none."""

    def identify(self, run: RunIdentity) -> bool:
        """Writes the identity. Returns False if another rank has written one in the meantime."""

    def parts(self) -> list[str]:
        """The names of all existing parts, those first that this run may change."""

    def may_change(self, part: str) -> bool:
        """Whether this run may change the part."""

    def read(self, part: str) -> Iterable[bytes]:
        """The part's lines, including line ends."""

    def keep(self, part: str, ranges: Ranges) -> None:
        """Removes all lines outside `ranges` from a part that this run may change."""

    def remove(self, part: str) -> None:
        """Removes the part."""

    def exist(self, outputs: Iterable[str]) -> bool:
        """Whether all these outputs exist and are not empty."""

    def start(self) -> None:
        """Prepares for appending."""

    def append(self, records: Sequence[Record]) -> None:
        """Appends a line per record, all of them or none."""

    def close(self) -> None:
        """Stores the remaining lines, and releases the folder."""

    def abandon(self) -> None:
        """Releases the folder after an error."""


class Manifest:
    """An output folder's manifest, open for appending. Made by `Manifest.open`; a context manager. All methods but
    `close` are thread-safe.

    counts: lines by status, including earlier runs'; for a rank, those of its own part.
    store: where the outputs go."""

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
        retry_failed: Retry = "",
    ) -> Self:
        """Locks the folder, removes partial outputs of a killed run, and reads what is finished.

        A line whose output file is missing or empty is dropped, so that its input is processed again.

        run: None: accept the lines of any run, and do not ask whether their outputs exist.
        overwrite: ignore all earlier lines. Earlier outputs stay until they are replaced, or for good if the new run
            does not write an output of that name.
        part: `<rank>-of-<ranks>`: other ranks of the same run may use the folder at the same time. Not with
            `overwrite`.
        retry_failed: also drop the lines of these failures.

        An object store has no locks. Raises SinkError if the folder cannot be written, is in use by another run, or has
        the lines of another run."""
        lines: Lines = RemoteLines(output, part) if isinstance(output, Remote) else ManifestFile(output, part)
        try:
            if run is not None:
                _settle_identity(lines, str(output), run, overwrite)
            done = _recover(lines, part, retry_failed, lines.exist if run is not None else _assume_existing)
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
        """Whether an earlier run has written this source's line, and its outputs exist."""
        return self._done.finished(source)

    def key_taken(self, key: str) -> bool:
        """Whether an earlier run has written outputs of this key, outside of shards."""
        return self._done.key_taken(key)

    def shard_finished(self, shard: str) -> bool:
        """Whether an earlier run has finished this output shard."""
        return shard in self._done.shards

    def append(self, records: Sequence[Record]) -> None:
        """Appends a line per record, all of them or none. Raises SinkError."""
        with self._mutex:
            self._lines.append(records)
            self.counts.update(record.status for record in records)

    def close(self) -> None:
        """Stores the remaining lines, and releases the folder. Raises SinkError."""
        with self._mutex:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def merge(folder: Path) -> Counter[str]:
    """Moves the lines of all parts of a folder on a disk into one file; returns its lines by status. Says on stderr
    which ranks have no part. Raises SinkError if there is no manifest, or if a run is using it."""
    if not (folder / IDENTITY).exists():
        raise SinkError(f"{folder}: has no {IDENTITY}, so there is no manifest to merge")
    if absent := list(islice(manifest_file.absent_ranks(folder), MOST_NAMED + 1)):
        named = ", ".join(absent[:MOST_NAMED]) + (" and more" if len(absent) > MOST_NAMED else "")
        print(
            f"{folder}: these ranks have stored nothing: {named}. If they have not run, their inputs are "
            "missing; the same command, with any number of ranks, restores what is missing",
            file=sys.stderr,
        )
    with Manifest.open(folder, None) as manifest:
        return manifest.counts


def read_records(output: Address) -> Iterator[Record]:
    """Yields the lines of all parts that count; of several lines of a source the first. Nothing is locked or changed,
    and outputs are not checked. Raises OSError and RemoteError."""
    done = FinishedInputs()
    for lines in _parts_in(output):
        for _, _, records in valid_blocks(lines, done, _assume_existing, ""):
            yield from records


def finished_inputs(output: Address, run: RunIdentity, retry_failed: Retry = "") -> FinishedInputs:
    """What `Manifest.open` would find; nothing is locked or changed. Raises SinkError for the outputs of another run,
    OSError and RemoteError."""
    done = FinishedInputs()
    if (found := read_identity(output)) is None:
        _check_unused(output, run)
    else:
        check_same_run(str(output), found, run)
    exist = Listings(output).have if isinstance(output, Remote) else partial(outputs_exist, output)
    for lines in _parts_in(output):
        for _ in valid_blocks(lines, done, exist, retry_failed):
            pass
    return done


def _parts_in(output: Address) -> Iterator[Iterable[bytes]]:
    """The lines of each part."""
    if isinstance(output, Remote):
        yield from (manifest_objects.read_part(output, part) for part in sorted(manifest_objects.parts_of(output)))
    else:
        yield from (manifest_file.read_part(output, part) for part in manifest_file.parts_of(output))


def _settle_identity(lines: Lines, where: str, run: RunIdentity, overwrite: bool) -> None:
    """Writes the run's identity, or compares it with an earlier one. Raises SinkError if the folder has lines of
    another or an unknown run."""
    if overwrite:
        for part in lines.parts():
            lines.remove(part)
        clear_history(lines.store.address)
    elif (found := lines.identity()) is not None:
        check_same_run(where, found, run)
        return
    elif any(True for part in lines.parts() for _ in lines.read(part)):
        raise SinkError(
            f"{where}: has manifest lines but no {IDENTITY}, so their run is unknown; "
            "choose another folder, or use --overwrite"
        )
    else:
        _check_unused(lines.store.address, run)
    if not lines.identify(run):
        check_same_run(where, lines.identity() or {}, run)


def _check_unused(output: Address, run: RunIdentity) -> None:
    """Raises SinkError if a folder on a disk that no run has used has files of the kinds that this run writes."""
    if isinstance(output, Remote):
        return
    own = (f".{suffix}" for form, suffix in SUFFIXES.items() if form == run.format)
    copies = JPEG.suffixes if "passed-through copy" in run.filters else ()
    suffixes = SHARD_SUFFIXES if run.shards else (*own, *copies)
    for folder, _, names in os.walk(output):
        for name in names:
            if name.lower().endswith(suffixes):
                if read_identity(output) is not None:  # another rank has started
                    return
                raise SinkError(
                    f"{output}: {Path(folder, name).relative_to(output)} is no run's output, and files of such names "
                    "might be replaced; choose another folder, or use --overwrite"
                )


def _recover(lines: Lines, part: str, retry_failed: Retry, exist: Callable[[Iterable[str]], bool]) -> FinishedInputs:
    """Reads all lines that count; removes the others from parts that this run may change."""
    done, counts = FinishedInputs(), Counter[str]()
    for name in lines.parts():
        blocks = valid_blocks(lines.read(name), done, exist, retry_failed)
        ranges = _joined((start, end) for start, end, _ in blocks)
        if lines.may_change(name):
            lines.keep(name, ranges)
            counts = Counter(done.counts)
    if part:
        done.counts = counts
    return done


def _assume_existing(outputs: Iterable[str]) -> bool:
    return True


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for start, end in ranges:
        if kept and kept[-1][1] == start:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return kept
