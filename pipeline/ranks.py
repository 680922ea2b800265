"""A run shared out: among ranks, processes on one or many machines, none of which knows what the others are doing; or
as units of work, by a driver that knows (cluster.py).

    share = choose(None, None, os.environ)          # torchrun's or SLURM's, or everything
    for entry in share.of(sources, shards=False):   # all entries, those of other ranks marked

What is a rank's depends on the listing of the input alone: files and shards are dealt out in turn. So the input has to
stay as it is while ranks run; a file that is added meanwhile may be done twice, with the same bytes, or be left to the
next run. Which of two inputs of the same key has it is decided as in a run of one: by the first in the listing. Where
keys of several tars can meet, that is unless outputs are tars, too, somebody has to see the names in all tars: each
rank reads them, and the driver does. On a disk that is their headers; in a store it is all of them.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.keys import Keys
from pipeline.shard_sink import LOOSE_SHARD
from pipeline.sink import Ledger
from pipeline.source import Entry, Item, read

LOOSE = 128
"""Loose files in a unit."""


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `ranks`. local: its number among the `neighbours` ranks on its machine, if it has been told.
    said_by: where this comes from, for people."""

    rank: int = 0
    ranks: int = 1
    local: int | None = None
    neighbours: int = 1
    said_by: str = ""

    @property
    def part(self) -> str:
        """The name of its part of the manifest; of a single rank none."""
        return f"{self.rank}-of-{self.ranks}" if self.ranks > 1 else ""

    @property
    def cores(self) -> int:
        """The rank's share of the machine's."""
        return max(1, len(os.sched_getaffinity(0)) // self.neighbours)

    def device(self, name: str, gpus: int) -> str:
        """The device `auto` becomes the rank's own of so many; there may be fewer than ranks, also because each rank
        has been shown its own alone."""
        return f"cuda:{self.local % gpus}" if name == "auto" and self.local is not None and gpus else name

    def of(self, entries: Iterable[Entry], shards: bool) -> Iterator[Entry]:
        """The entries that this rank has to know of, in order; other ranks' are not `mine`. shards: outputs are tars,
        so that a folder's loose files stay together and keys meet only in the same tar: others' are left out."""
        if self.ranks == 1:
            yield from entries
            return
        dealt = 0
        folders: dict[str, int] = {}
        for entry in entries:
            number = dealt
            if shards and not entry.shard:
                number = folders.setdefault(posixpath.dirname(entry.name), dealt)
            dealt += number == dealt
            mine = number % self.ranks == self.rank
            if mine or not shards:
                yield replace(entry, mine=mine)


ALL = Share()
"""A run of one."""


def choose(rank: int | None, ranks: int | None, environment: Mapping[str, str]) -> Share:
    """By the numbers given, or else as torchrun or SLURM's srun started this process. Raises ValueError.

    A batch script of SLURM's is one process, whatever it may start later; only a step's processes are ranks."""
    said_by = "--rank and --world-size"
    if rank is None and ranks is None:
        for rank_name, ranks_name, starter in _STARTERS:
            if rank_name in environment and ranks_name in environment:
                said_by = f"{starter}'s {rank_name} and {ranks_name}"
                rank, ranks = _number(environment, rank_name), _number(environment, ranks_name)
                break
        else:
            return ALL
    if rank is None or ranks is None:
        raise ValueError("--rank and --world-size: give both or none")
    if not 0 <= rank < ranks:
        raise ValueError(f"{said_by}: rank {rank} of {ranks}: expected 0 to {ranks - 1}")
    local = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment), None)
    return Share(
        rank,
        ranks,
        local=None if local is None else _number(environment, local),
        neighbours=max(1, _number(environment, "LOCAL_WORLD_SIZE")) if "LOCAL_WORLD_SIZE" in environment else 1,
        said_by=said_by,
    )


_STARTERS = (("RANK", "WORLD_SIZE", "torchrun"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM"))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ValueError(f"{name}={environment[name]!r}: expected a number") from error


@dataclass(frozen=True)
class Unit:
    """What a worker does at a time. finished: sources that have a line. owners: sources whose key is taken, and by
    whom; None: keys meet only in here. whole: finished output shards. attempt: how many workers it has cost."""

    entries: tuple[Entry, ...]
    finished: frozenset[str] = frozenset()
    owners: dict[str, str] | None = None
    whole: frozenset[str] = frozenset()
    attempt: int = 0

    def __str__(self) -> str:
        more = len(self.entries) - 1
        return self.entries[0].name + (f" and {more} more" if more else "")


def units_of(entries: Iterable[Entry], shards: bool, manifest: Ledger) -> Iterator[Unit]:
    """What is left to do, in order. Tars as outputs: an input tar, or a folder's loose files, which become one."""
    if not shards:
        yield from _surveyed(entries, manifest.finished)
        return
    for _, group in itertools.groupby(entries, lambda x: (x.shard and x.name, posixpath.dirname(x.name))):
        found = tuple(group)
        if found[0].shard:
            if not manifest.whole(found[0].name):
                yield Unit(found)
            continue
        loose = posixpath.join(posixpath.dirname(found[0].name), LOOSE_SHARD)
        finished = frozenset(entry.name for entry in found if manifest.finished(entry.name))
        if len(finished) < len(found):
            yield Unit(found, finished, whole=frozenset({loose} if manifest.whole(loose) else ()))


def _surveyed(entries: Iterable[Entry], finished: Callable[[str], bool]) -> Iterator[Unit]:
    """Tars, and loose files by the hundred. Whose key is whose is decided here, where all names are seen in order."""
    keys = Keys()
    for shard, group in itertools.groupby(entries, lambda entry: entry.shard):
        while found := tuple(itertools.islice(group, 1 if shard else LOOSE)):
            done: set[str] = set()
            owners: dict[str, str] = {}
            left = 0
            for item in read(replace(entry, mine=False) for entry in found):
                assert isinstance(item, Item)  # others are not asked for
                owner = keys.claim(item)
                if finished(item.source):
                    done.add(item.source)
                    continue
                left += 1
                if owner is not None:
                    owners[item.source] = owner
            if left:
                yield Unit(found, frozenset(done), owners)
