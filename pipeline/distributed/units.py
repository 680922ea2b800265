"""Splits a run into units for the workers of a Ray cluster (cluster.py).

If two inputs have the same key, the first in the listing keeps it, as in a run of one process. Unless outputs are tars,
the driver therefore reads the names in all tars: on a disk only their headers, from a store the whole tars."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.inputs.keys import Keys
from pipeline.inputs.listing import Entry
from pipeline.inputs.source import Item, read
from pipeline.outputs.manifest import Manifest
from pipeline.outputs.shard_sink import LOOSE_SHARD

FILES_PER_UNIT = 128
"""Loose files per unit."""


@dataclass(frozen=True)
class InputUnit:
    """The inputs that a worker restores at a time.

    finished: sources that have a manifest line.
    owners: source whose key is in use → source that has it; None: keys can only collide within the unit.
    finished_shards: finished output shards.
    attempt: how many workers were lost over it."""

    entries: tuple[Entry, ...]
    finished: frozenset[str] = frozenset()
    owners: dict[str, str] | None = None
    finished_shards: frozenset[str] = frozenset()
    attempt: int = 0

    def __str__(self) -> str:
        more = len(self.entries) - 1
        return self.entries[0].name + (f" and {more} more" if more else "")


def split_into_units(
    entries: Iterable[Entry],
    shards: bool,
    manifest: Manifest,
    may_have_outputs: Callable[[Item], bool] = lambda item: True,
) -> Iterator[InputUnit]:
    """The units that are left to do, in order. shards: outputs are tars; then a unit is an input tar, or a folder's
    loose files, which become one tar. may_have_outputs: whether an item may have outputs, and so claims its key."""
    if not shards:
        yield from _units_with_keys(entries, manifest, may_have_outputs)
        return
    for _, group in itertools.groupby(entries, lambda x: (x.shard and x.name, posixpath.dirname(x.name))):
        found = tuple(group)
        if found[0].shard:
            if not manifest.shard_finished(found[0].name):
                yield InputUnit(found)
            continue
        loose = posixpath.join(posixpath.dirname(found[0].name), LOOSE_SHARD)
        finished = frozenset(entry.name for entry in found if manifest.finished(entry.name))
        if len(finished) < len(found):
            yield InputUnit(
                found, finished, finished_shards=frozenset({loose} if manifest.shard_finished(loose) else ())
            )


def _units_with_keys(
    entries: Iterable[Entry], manifest: Manifest, may_have_outputs: Callable[[Item], bool]
) -> Iterator[InputUnit]:
    """Units for image files as outputs: tars, and FILES_PER_UNIT loose files at a time. Keys are claimed here, where
    all names are read in order."""
    keys = Keys(taken=manifest.key_taken)
    for shard, group in itertools.groupby(entries, lambda entry: entry.shard):
        while found := tuple(itertools.islice(group, 1 if shard else FILES_PER_UNIT)):
            done: set[str] = set()
            owners: dict[str, str] = {}
            left = 0
            for item in read(replace(entry, assigned=False) for entry in found):
                assert isinstance(item, Item)  # side members are not requested
                owner = keys.claim(item) if may_have_outputs(item) else None
                if manifest.finished(item.source):
                    done.add(item.source)
                    continue
                left += 1
                if owner is not None:
                    owners[item.source] = owner
            if left:
                yield InputUnit(found, frozenset(done), owners)
