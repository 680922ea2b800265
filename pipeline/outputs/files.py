"""Reads inputs and outputs of a run by their names in the manifest; each tar is read once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

from pipeline.inputs.listing import Entry, SourceError, find_input
from pipeline.inputs.names import UnsafeNameError, is_shard, safe_name
from pipeline.inputs.remote import Address, AddressError, RemoteError, address
from pipeline.inputs.source import read
from pipeline.outputs.record import Record


def inputs_of(run: Mapping[str, object] | None) -> list[Address]:
    """Where the inputs of a run were, from the fields of its identity; none if it does not say."""
    try:
        return [address(line) for line in str((run or {}).get("input", "")).split("\n") if line]
    except AddressError:
        return []


def read_inputs(inputs: Sequence[Address], sources: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (source, JPEG file) for the sources that can still be read. inputs: of the run."""
    entries: dict[Entry, set[str]] = defaultdict(set)
    for source in sources:
        with suppress(OSError, ValueError, RemoteError):
            entries[_entry(inputs, source)].add(source)
    for entry, wanted in entries.items():
        yield from _members(entry, wanted)


def _entry(inputs: Sequence[Address], source: str) -> Entry:
    """The file of a source, or the tar that contains it. Raises FileNotFoundError, RemoteError and UnsafeNameError."""
    parts = safe_name(source).split("/")
    for end in range(1, len(parts) + 1):
        name = "/".join(parts[:end])
        shard = is_shard(name) and end < len(parts)
        place = find_input(inputs, name) if shard or end == len(parts) else None
        if place is not None and (not shard or place.is_file()):
            return Entry(place, name, shard)
    raise FileNotFoundError(source)


def _members(entry: Entry, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (source, bytes) of the wanted members of a tar, or of a single file, as far as they can be read."""
    missing = set(wanted)
    try:
        for item in read([entry], lambda source: source not in missing, side_members=True):
            if item.data is not None:
                yield item.source, item.data
                missing.discard(item.source)
            if not missing:
                return
    except SourceError:  # a store does not answer: it goes without these files
        return


def read_output(output: Address, name: str) -> bytes | None:
    """An output that is a file of its own; None if it cannot be read. name: below the output folder."""
    try:
        return (output / safe_name(name)).read_bytes()
    except (OSError, ValueError, RemoteError):
        return None


def read_outputs(output: Address, records: Iterable[Record]) -> Iterator[tuple[str, bytes]]:
    """Yields (name below the output folder, file) for the records' outputs that can still be read."""
    shards: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name in record.outputs:
            if record.shard is not None:
                shards[record.shard].add(name)
                continue
            data = read_output(output, name)
            if data is not None:
                yield name, data
    for shard, names in shards.items():
        with suppress(UnsafeNameError):
            yield from _members(Entry(output / safe_name(shard), shard, shard=True), names)


def link_to(record: Record, name: str) -> str:
    """An output's URL, relative to the output folder; for a member of a tar, the tar's."""
    return "./" + quote(os.fsencode(record.shard or name))
