"""Duplicate keys: detects inputs of a run that map to the same output name; the first in the listing has it."""

from collections.abc import Mapping

from pipeline.inputs.names import digest
from pipeline.inputs.source import Item


class Keys:
    """The keys taken so far, about 130 bytes each however long they are; not thread-safe.

    Output files are named by key, so a second item of the same key would overwrite the first. Claim every item in
    reading order, finished and unreadable ones too: who is first then does not depend on where an earlier run stopped.
    """

    def __init__(self, per_shard: bool = False) -> None:
        """`per_shard`: keys have to differ only within a shard, as with tar output, and are forgotten after it."""
        self._per_shard = per_shard
        self._shard: str | None = None
        self._taken: dict[bytes, int] = {}
        # A source is its shard, its key and its extension: to name the first owner, a number for the pair is enough.
        self._origins: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def claim(self, item: Item) -> str | None:
        """Take the item's key. Returns None if it was free, else the source of the item that has it."""
        if self._per_shard and item.shard != self._shard:
            self._shard = item.shard
            self._taken.clear()
        head = "" if item.shard is None else item.shard + "/"
        stem = head + item.key
        if not item.source.startswith(stem + "."):
            return None  # reports on a folder, a shard or an unsafe name: no output will bear this key
        origin = (head, item.source[len(stem) :])
        number = self._numbers.setdefault(origin, len(self._origins))
        if number == len(self._origins):
            self._origins.append(origin)
        first = self._taken.setdefault(digest(item.key), number)
        if first == number:
            return None
        first_head, first_extension = self._origins[first]
        return first_head + item.key + first_extension


class PrecomputedKeys(Keys):
    """Keys that were claimed elsewhere. owners: of the items that came too late, by source, who has their key."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        super().__init__()
        self._owners = owners

    def claim(self, item: Item) -> str | None:
        """As in Keys."""
        return self._owners.get(item.source)
