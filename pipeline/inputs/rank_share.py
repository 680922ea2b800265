"""Which of a run's inputs one process restores: all of them, or the share of one rank of several.

    for entry in share.of(sources, shards=False):   # all entries, those of other ranks marked

Which entries are a rank's depends on the listing of the input alone: files and shards are dealt out in turn. The input
must not change while ranks run: a file added meanwhile may be restored twice, with the same bytes, or be left to the
next run. Unless outputs are tars, keys of several tars can collide, so every rank reads the names in all of them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.inputs.listing import Entry


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `world_size`. local: its number among the `local_world_size` ranks on its machine, if it has been told.
    said_by: where this comes from, for people."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int = 1
    origin: str = ""

    @property
    def part(self) -> str:
        """The name of its part of the manifest; of a single rank none."""
        return f"{self.rank}-of-{self.world_size}" if self.world_size > 1 else ""

    @property
    def cores(self) -> int:
        """The rank's share of the machine's."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)

    def device(self, name: str, gpus: int) -> str:
        """The device `auto` becomes the rank's own of so many; there may be fewer than ranks, also because each rank
        has been shown its own alone."""
        return f"cuda:{self.local_rank % gpus}" if name == "auto" and self.local_rank is not None and gpus else name

    def entries(self, entries: Iterable[Entry], shards: bool) -> Iterator[Entry]:
        """The entries that this rank has to know of, in order; other ranks' are not `assigned`. shards: outputs are tars,
        so that a folder's loose files stay together and keys meet only in the same tar: others' are left out."""
        if self.world_size == 1:
            yield from entries
            return
        dealt = 0
        folders: dict[str, int] = {}
        for entry in entries:
            number = dealt
            if shards and not entry.shard:
                number = folders.setdefault(posixpath.dirname(entry.name), dealt)
            dealt += number == dealt
            assigned = number % self.world_size == self.rank
            if assigned or not shards:
                yield replace(entry, assigned=assigned)


SINGLE_RANK = Share()
"""A run of one."""
