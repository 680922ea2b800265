"""What a report counts, in one pass over a manifest's lines, in constant memory."""

from __future__ import annotations

import re
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

from pipeline.outputs.record import Record

WORST = 20
"""Files with mismatches that the report lists."""

GROUPS, EXAMPLES = 40, 5
"""Number of different reasons that are counted separately, and of example sources per reason."""

_VARIABLE = re.compile(
    r"(?<=duplicate key: ).*(?= has it already)"  # names
    r"|'[^']*'|\"[^\"]*\""
    r"|\b[0-9a-f]{2}(?: [0-9a-f]{2})+\b|\b0x[0-9a-f]+\b|\d+(?:\.\d+)?",  # bytes and numbers
    re.DOTALL,
)


class SmallestRecords:
    """The `limit` records with the smallest keys, in order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._found: list[tuple[tuple[int, int, str], Record]] = []

    def offer(self, key: tuple[int, int, str], record: Record) -> None:
        """Adds a record. key: unique."""
        if len(self._found) < self.limit or (self._found and key < self._found[-1][0]):
            insort(self._found, (key, record), key=lambda pair: pair[0])
            del self._found[self.limit :]

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self._found)


@dataclass
class ReasonGroup:
    """Inputs whose reasons differ only in names and numbers. examples: (source, its reason)."""

    pattern: str
    count: int = 0
    transient: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class Reasons:
    """Groups of reasons. After GROUPS groups, further reasons share one."""

    OTHER = "other reasons"

    def __init__(self) -> None:
        self._groups: dict[str, ReasonGroup] = {}

    def note(self, record: Record) -> None:
        """Counts the record's reason."""
        pattern = _VARIABLE.sub("…", record.reason)
        if pattern not in self._groups and len(self._groups) >= GROUPS:
            pattern = self.OTHER
        group = self._groups.setdefault(pattern, ReasonGroup(pattern))
        group.count += 1
        group.transient += bool(record.transient)
        if len(group.examples) < EXAMPLES:
            group.examples.append((record.source, record.reason))

    def groups(self) -> list[ReasonGroup]:
        """The groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: (-group.count, group.pattern))


class Statistics:
    """Counts over manifest lines.

    coefficients, mismatches: of all outputs with a certificate.
    excess: the largest of the 16-bit outputs, in quantisation steps.
    inexact: files with mismatches.
    megapixels: of restored outputs.
    recovered_from: files whose coefficients were recovered from decoded pixels, by front end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.qualities: Counter[int] = Counter()
        self.samplings: Counter[str] = Counter()
        self.recovered_from: Counter[str] = Counter()
        self.coefficients = self.mismatches = self.inexact = self.outputs = 0
        self.megapixels = 0.0
        self.excess: float | None = None
        self.worst = SmallestRecords(WORST)
        self.failed, self.passed_through = Reasons(), Reasons()

    def note(self, record: Record) -> None:
        """Counts a line."""
        self.counts[record.status] += 1
        if record.status != "restored":
            (self.failed if record.status == "failed" else self.passed_through).note(record)
            return
        if record.quality is not None:
            self.qualities[record.quality] += 1
        if record.sampling is not None:
            self.samplings[record.sampling] += 1
        self.megapixels += record.pixels / 1e6
        self.outputs += len(record.outputs)
        if record.excess is not None:
            self.excess = max(record.excess, self.excess or 0.0)
        else:
            self.coefficients += (record.coefficients or 0) * len(record.outputs)
        if record.coefficients_from is not None:
            self.recovered_from[record.coefficients_from] += 1
        if record.mismatches:
            self.mismatches += record.mismatches
            self.inexact += 1
            self.worst.offer((-record.mismatches, 0, record.source), record)


class Selection:
    """Chooses the gallery's files: up to a third with the most mismatches, a third with the lowest qualities, the rest
    at random. A hash of the source decides ties and chance, so that the order of the lines does not matter."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inexact, self._lowest, self._random = (
            SmallestRecords(limit),
            SmallestRecords(limit),
            SmallestRecords(limit),
        )

    def note(self, record: Record) -> None:
        """Considers a line."""
        if record.status != "restored" or not record.outputs or not self._limit:
            return
        source = record.source
        chance = crc32(source.encode("utf-8", "surrogatepass"))
        if record.mismatches:
            self._inexact.offer((-record.mismatches, chance, source), record)
        if record.quality is not None:
            self._lowest.offer((record.quality, chance, source), record)
        self._random.offer((0, chance, source), record)

    def chosen(self) -> list[tuple[Record, str]]:
        """(record, why it was chosen), each source once."""
        found: dict[str, tuple[Record, str]] = {}
        third = -(-self._limit // 3)
        for records, why, most in (
            (self._inexact, "Most mismatches", third),
            (self._lowest, "Lowest quality", 2 * third),
            (self._random, "Random choice", self._limit),
        ):
            for record in records:
                if len(found) < min(most, self._limit):
                    found.setdefault(record.source, (record, why))
        return list(found.values())
