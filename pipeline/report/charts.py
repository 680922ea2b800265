"""The report's charts: positions of bars, lines and text in an SVG, in its own units, and the same numbers as a
table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.outputs.record import STATUSES, describe_counts

WIDTH = 360

BIN = 5
"""Qualities per column; the last column includes 100."""


@dataclass(frozen=True)
class Bar:
    """A rectangle. kind: its CSS class; label: its tooltip."""

    x: float
    y: float
    width: float
    height: float
    label: str
    kind: str = "plain"


@dataclass(frozen=True)
class Word:
    """Text at a point; anchor: SVG's start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """rows: the table with the same numbers, under `columns`. rules: y positions of horizontal lines."""

    id: str
    title: str
    description: str
    height: float
    columns: tuple[str, str]
    rows: list[tuple[str, int]]
    width: float = WIDTH
    bars: list[Bar] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    rules: list[float] = field(default_factory=list)


def status_chart(counts: Mapping[str, int], total: int) -> Chart:
    """One bar, divided by status."""
    present = [(status, counts[status]) for status in STATUSES if status in counts]
    rows = [(status.replace("_", " ").capitalize(), count) for status, count in present]
    description = f"{total:,} inputs: {describe_counts(counts)}."
    chart = Chart("status", "Inputs by status", description, 12, ("Status", "Inputs"), rows, 1000)
    least, gap, x = 6.0, 3.0, 0.0
    room = chart.width - gap * (len(present) - 1) - least * len(present)
    for (status, count), (label, _) in zip(present, rows, strict=True):
        width = least + room * count / total
        chart.bars.append(Bar(x, 0, width, chart.height, f"{label}: {count:,}", status))
        x += width + gap
    return chart


def quality_chart(qualities: Counter[int]) -> Chart:
    """A histogram in bins of BIN qualities; the table has the exact numbers."""
    bins: Counter[int] = Counter()
    for quality, count in qualities.items():
        bins[min(quality, 99) // BIN] += count
    largest, rows = max(bins.values(), default=1), [(str(q), n) for q, n in sorted(qualities.items())]
    low, high = min(qualities, default=0), max(qualities, default=0)
    description = (
        f"Between {low} and {high}; the fullest of the bins of {BIN} has {largest:,} of {qualities.total():,} files."
    )
    chart = Chart("quality", "Quality of the JPEG files", description, 176, ("Quality", "Files"), rows)
    top, bottom, columns = 24.0, 148.0, 100 // BIN
    step = WIDTH / columns
    for number in range(columns):
        if not bins[number]:
            continue
        height = max(2.0, (bottom - top) * bins[number] / largest)
        first, last = BIN * number, BIN * number + BIN - 1 + (number == columns - 1)
        label = f"Quality {first} to {last}: {bins[number]:,}"
        chart.bars.append(Bar(step * number + 1.5, bottom - height, step - 3, height, label))
    chart.rules.extend((bottom, top))
    chart.words.append(Word(0, top - 7, f"{largest:,} {'file' if largest == 1 else 'files'}"))
    for value, anchor in ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end")):
        chart.words.append(Word(WIDTH * value / 100, bottom + 18, str(value), anchor))
    return chart


def sampling_chart(samplings: Counter[str]) -> Chart:
    """A bar per chroma sampling."""
    rows = sorted(samplings.items(), key=lambda row: (-row[1], row[0]))
    description = ", ".join(f"{name}: {count:,}" for name, count in rows) + "."
    chart = Chart("sampling", "Chroma subsampling", description, 32 * len(rows), ("Sampling", "Files"), rows)
    largest = rows[0][1] if rows else 1
    for number, (name, count) in enumerate(rows):
        y, width = 32.0 * number, max(2.0, 210 * count / largest)
        chart.bars.append(Bar(64, y + 7, width, 18, f"{name}: {count:,}"))
        chart.words.append(Word(0, y + 20.5, name))
        chart.words.append(Word(72 + width, y + 20.5, f"{count:,}"))
    return chart
