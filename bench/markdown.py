"""Markdown tables, as the benchmarks print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def line(cells: Iterable[object]) -> str:
    """One row."""
    return f"| {' | '.join(map(str, cells))} |"


def header(names: Sequence[str], align: str = "---") -> str:
    """The names and the line below them. align: of all columns but the first; `---:` is right."""
    return f"{line(names)}\n{line(['---', *[align] * (len(names) - 1)])}"
