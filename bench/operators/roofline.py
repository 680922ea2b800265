"""A roofline chart of bench/kernels.py's figures of a GPU: bytes needed against the bandwidth reached, one mark for
each case, and the bandwidth of the card's own copy. It needs matplotlib (pip install -e '.[bench]'), but no GPU.

python -m bench.kernels --json figures.json && python -m bench.operators.roofline figures.json roofline.png
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

MARKS = {"gray": "o", "4:4:4": "s", "4:2:2": "<", "4:4:0": "^", "4:2:0": "D"}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Writes the PNG. figures: the content of --json's file. Raises ModuleNotFoundError without matplotlib."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    rows = [row for row in figures["rows"] if row["milliseconds"] is not None]
    for number, operator in enumerate(dict.fromkeys(row["operator"] for row in rows)):
        for row in (row for row in rows if row["operator"] == operator):
            bandwidth = row["megabytes"] / row["milliseconds"]  # MB/ms = GB/s
            fill = f"C{number}" if row["dtype"] == "float32" else "none"
            mark = MARKS[row["sampling"]]
            axes.plot(row["megabytes"] / 1e3, bandwidth, mark, color=f"C{number}", markerfacecolor=fill)
        axes.plot([], [], "D", color=f"C{number}", label=operator)
    for sampling in dict.fromkeys(row["sampling"] for row in rows):
        axes.plot([], [], MARKS[sampling], color="0.4", label=sampling)
    axes.plot([], [], "D", color="0.4", markerfacecolor="none", label="bfloat16 (filled: float32)")
    copy = figures["copy_gigabytes_a_second"]
    axes.axhline(copy, color="black", label=f"copy, {copy:.0f} GB/s")
    axes.axhline(0.8 * copy, color="black", linestyle="--", linewidth=0.8, label="80 % of it")
    axes.set(xscale="log", yscale="log", xlabel="bytes needed, GB", ylabel="bytes needed / time, GB/s")
    axes.set_title(figures["device"])
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="written by `python -m bench.kernels --json` on a GPU")
    parser.add_argument("output", type=Path, help="the PNG file")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    if "copy_gigabytes_a_second" not in figures:
        parser.error(f"{options.figures} has no figures of a GPU")
    try:
        draw(figures, options.output)
    except ModuleNotFoundError:
        parser.error("matplotlib is not installed: pip install -e '.[bench]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
