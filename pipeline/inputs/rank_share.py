"""The inputs that one process restores: all, or one rank's share.

    for entry in share.entries(sources, shards=False):   # all entries, those of other ranks not `assigned`

Files and shards are assigned in turn, in the order of the listing, so the inputs must not change while ranks run: a
file that is added then may be restored twice, with the same bytes, or be left to the next run. Unless outputs are tars,
keys of different tars can collide, so every rank reads the names in all of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kernels.cores import available_cores
from pipeline.inputs.listing import Entry


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `world_size`.

    local_rank: its number among the `local_world_size` ranks of its machine, if known.
    origin: the options or variables that determined it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int = 1
    origin: str = ""

    @property
    def part(self) -> str:
        """The name of its part of the manifest; empty for a single rank."""
        return f"{self.rank}-of-{self.world_size}" if self.world_size > 1 else ""

    @property
    def cores(self) -> int:
        """The rank's share of the CPU cores that this process may use."""
        return max(1, available_cores() // self.local_world_size)

    def device(self, name: str, gpus: int) -> str:
        """Replaces `auto` and `cuda` by the rank's own GPU. gpus: how many this process sees, which may be fewer than
        there are ranks."""
        if name not in ("auto", "cuda") or self.local_rank is None or not gpus:
            return name
        return f"cuda:{self.local_rank % gpus}"

    def entries(self, entries: Iterable[Entry], shards: bool) -> Iterator[Entry]:
        """The entries that this rank needs, in order; those of other ranks are not `assigned`. shards: outputs are
        tars; then a folder's loose files belong to one rank, and other ranks' entries are left out, because keys can
        only collide within a tar."""
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
"""The share of a run with one process."""
