"""Detects inputs of a run that map to the same output name. The first in the listing keeps the name."""

from collections.abc import Callable, Mapping

from pipeline.inputs.names import digest
from pipeline.inputs.source import Item

EARLIER_INPUT = "an input of an earlier run (if that is gone, delete its image)"
"""The owner of a key that was restored before an input with the same one was there."""


class Keys:
    """The keys in use, about 130 bytes each whatever their length. Not thread-safe.

    Output files are named by key, so a second item with the same key would overwrite the first. Every item must be
    claimed in reading order, including finished and unreadable ones: then the first is the same however often a run is
    resumed."""

    def __init__(self, per_shard: bool = False, taken: Callable[[str], bool] = lambda key: False) -> None:
        """per_shard: keys must differ only within a shard, as with tar output. taken: whether an input of an earlier
        run has this key; an unfinished item is another input."""
        self._per_shard = per_shard
        self._taken_before = taken
        self._shard: str | None = None
        self._taken: dict[bytes, int] = {}
        # A source is shard, key and extension; the first owner's is rebuilt from a number for (shard, extension).
        self._origins: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def claim(self, item: Item) -> str | None:
        """Claims the item's key. Returns None if it was free, else the source of the item that has it. The answer is
        for unfinished items: a finished one has its own key from an earlier run."""
        if self._per_shard and item.shard != self._shard:
            self._shard = item.shard
            self._taken.clear()
        head = "" if item.shard is None else item.shard + "/"
        stem = head + item.key
        if not item.source.startswith(stem + "."):
            return None  # an error of a folder, a shard or an unsafe name: there is no output with this key
        origin = (head, item.source[len(stem) :])
        number = self._numbers.setdefault(origin, len(self._origins))
        if number == len(self._origins):
            self._origins.append(origin)
        first = self._taken.setdefault(digest(item.key), number)
        if first == number:
            return EARLIER_INPUT if self._taken_before(item.key) else None
        first_head, first_extension = self._origins[first]
        return first_head + item.key + first_extension


class PrecomputedKeys(Keys):
    """Keys that were claimed elsewhere. owners: source of an item whose key is in use → source that has it."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        super().__init__()
        self._owners = owners

    def claim(self, item: Item) -> str | None:
        """See Keys."""
        return self._owners.get(item.source)
