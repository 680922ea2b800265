"""The charts of bench/restore.py; they need matplotlib (pip install -e '.[bench]')."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.end_to_end.measure import PILLOW_DECODE, PILLOW_PNG
from bench.end_to_end.report import ELSEWHERE, JPEG_STAGES, MEBI, Outcome, ScalingPoint

STACKED = (*JPEG_STAGES, "read", "write", ELSEWHERE, "network")
"""From the bottom: first the stages that Pillow has as well."""

COLORS = {name: f"C{number}" for number, name in enumerate(STACKED)} | {"network": "gold"}


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _pyplot() -> Any:
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def draw_stages(outcomes: Sequence[Outcome], path: Path) -> None:
    """CPU time a megapixel by stage, for each size next to Pillow's: with and without the network."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axes, left_out, title in zip(panels, ("", "network"), ("all", "without the network"), strict=True):
        for name in (name for name in STACKED if name != left_out):
            heights = [_cost(outcome, name) for outcome in outcomes]
            bottoms = [sum(_cost(o, below) for below in STACKED[: STACKED.index(name)]) for o in outcomes]
            axes.bar(range(len(outcomes)), heights, 0.36, bottoms, color=COLORS[name], label=name)
        below = [0.0] * len(outcomes)
        for name, gray in ((PILLOW_DECODE, "0.35"), (PILLOW_PNG, "0.65")):
            heights = [1000 * o.beside.pillow[name].cpu / o.run.megapixels for o in outcomes]
            axes.bar([x + 0.4 for x in range(len(outcomes))], heights, 0.36, below, color=gray, label=name)
            below = [one + other for one, other in zip(below, heights, strict=True)]
        axes.set_xticks([x + 0.2 for x in range(len(outcomes))], [o.workload.label for o in outcomes])
        axes.set(ylabel="CPU ms/MP", title=title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _cost(outcome: Outcome, name: str) -> float:
    """CPU milliseconds a megapixel."""
    seconds = max(0.0, outcome.elsewhere) if name == ELSEWHERE else outcome.run.stages[name].cpu
    return 1000 * seconds / outcome.run.megapixels


def draw_scaling(by_files: Sequence[ScalingPoint], by_megapixels: Sequence[ScalingPoint], path: Path) -> None:
    """Time and peak memory against the number of files, and against the megapixels of one file."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    series = ((by_files, "files"), (by_megapixels, "megapixels of one file"))
    for (times, memories), (points, what) in zip(panels.T, series, strict=True):
        across = [point.workload.files if what == "files" else point.workload.megapixels for point in points]
        times.plot(across, [point.seconds for point in points], "o-")
        times.set(xscale="log", yscale="log", xlabel=what, ylabel="seconds")
        memories.plot(across, [point.peak / MEBI for point in points], "o-", label="memory")
        if any(point.gpu_bytes for point in points):
            memories.plot(across, [point.gpu_bytes / MEBI for point in points], "s-", label="the GPU's")
            memories.legend()
        memories.set(xscale="log", xlabel=what, ylabel="peak MiB")
        memories.set_ylim(bottom=0)
        for axes in (times, memories):
            axes.set_xticks(across, [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in across])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
