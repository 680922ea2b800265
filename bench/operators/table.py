"""Rows, goals and tables of bench/kernels.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bench.markdown import header, line
from bench.operators.cases import Case, bytes_needed
from bench.operators.timing import Cost
from kernels import Subsampling

SECOND = "2nd configuration"
"""The kernel, launched with the second of its configurations."""

OTHERS = (SECOND, "torch_ops", "compiled", "kornia")
FROM_MEGAPIXELS = 16
SHARE_OF_COPY, TIMES_KORNIA, TIMES_KORNIA_CPU, EXACT_GIGAPIXELS = 0.8, 20.0, 3.0, 2.0
"""Goals on an H100, from 16 megapixels a launch up; TIMES_KORNIA_CPU is the goal on a CPU."""


def verdict(goal: str, met: bool) -> str:
    return f"{goal}: {'met' if met else 'missed'}"


@dataclass
class Row:
    """A case on a GPU. seconds: by implementation, `kernel` or one of OTHERS. notes: why an implementation has no
    time."""

    case: Case
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def kernel(self) -> float | None:
        return self.seconds.get("kernel")

    def gigapixels(self) -> float | None:
        return self.case.pixels / self.kernel / 1e9 if self.kernel else None

    def bandwidth(self) -> float | None:
        """Bytes needed, per second."""
        return bytes_needed(self.case) / self.kernel if self.kernel else None

    def times(self, other: str) -> float | None:
        """How many times as long the other takes."""
        return self.seconds[other] / self.kernel if self.kernel and other in self.seconds else None

    def goal(self, copy: float) -> str:
        """The goal of this case and whether it is met, or "". copy: the card's copy bandwidth in bytes a second."""
        operator, gigapixels, bandwidth = self.case.operator, self.gigapixels(), self.bandwidth()
        if self.case.images < FROM_MEGAPIXELS or gigapixels is None or bandwidth is None:
            return ""
        if operator in ("encode", "decode", "roundtrip", "project"):
            return verdict(f">= {100 * SHARE_OF_COPY:.0f} % of copy", bandwidth >= SHARE_OF_COPY * copy)
        if self.case.sampling is not Subsampling.S420:
            return ""
        kornia = self.times("kornia")
        if operator == "roundtrip+backward" and kornia is not None:
            return verdict(f">= {TIMES_KORNIA:.0f}x kornia", kornia >= TIMES_KORNIA)
        if operator == "project_exact" and self.case.quality == 10 and not self.case.edges:
            return verdict(f">= {EXACT_GIGAPIXELS:.0f} GP/s", gigapixels >= EXACT_GIGAPIXELS)
        return ""

    def figures(self, copy: float) -> dict[str, Any]:
        """For --json."""
        kernel, bandwidth = self.kernel, self.bandwidth()
        return {
            "operator": self.case.name,
            "sampling": self.case.sampling.label,
            "dtype": self.case.dtype,
            "megapixels": self.case.images,
            "quality": self.case.quality,
            "milliseconds": 1e3 * kernel if kernel else None,
            "gigapixels_a_second": self.gigapixels(),
            "megabytes": bytes_needed(self.case) / 1e6,
            "share_of_copy": bandwidth / copy if bandwidth else None,
            "milliseconds_of_others": {name: 1e3 * self.seconds[name] for name in OTHERS if name in self.seconds},
            "goal": self.goal(copy),
            "notes": self.notes,
        }


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def cuda_line(row: Row, copy: float) -> str:
    case, share = row.case, row.figures(copy)["share_of_copy"]
    cells = [case.name, case.sampling.label, case.dtype, str(case.images)]
    cells += [number(1e3 * row.kernel if row.kernel else None, 4) or row.notes.get("kernel", "")]
    cells += [number(row.gigapixels()), number(bytes_needed(case) / 1e6, 1), number(share and 100 * share, 0)]
    cells += [number(row.times(name), 1, "x") or row.notes.get(name, "") for name in OTHERS]
    return line([*cells, row.goal(copy)])


def cuda_table(rows: list[Row], copy: float) -> str:
    """Milliseconds of the device; other implementations as how many times as long they take."""
    names = ["operator", "sampling", "images", "MP", "ms", "GP/s", "MB needed", "% of copy", *OTHERS, "goal"]
    return "\n".join([header(names), *(cuda_line(row, copy) for row in rows)])


@dataclass(frozen=True)
class Pair:
    """torch_ops and another implementation on the CPU, on the same number of `pixels`. mine, theirs: seconds."""

    what: str
    other: str
    shape: str
    pixels: int
    mine: Cost
    theirs: Cost

    @property
    def ratio(self) -> float:
        """How many times as long the other takes, in wall time."""
        return self.theirs.wall / self.mine.wall

    @property
    def cpu_ratio(self) -> float:
        return self.theirs.cpu / self.mine.cpu

    def goal(self) -> str:
        if (self.what, self.other) != ("roundtrip+backward 4:2:0", "kornia"):
            return ""
        return verdict(f">= {TIMES_KORNIA_CPU:.0f}x", min(self.ratio, self.cpu_ratio) >= TIMES_KORNIA_CPU)

    def figures(self) -> dict[str, Any]:
        mine, theirs = vars(self.mine), vars(self.theirs)
        kept = {"what": self.what, "other": self.other, "shape": self.shape, "megapixels": self.pixels / 2**20}
        return kept | {"mine": mine, "theirs": theirs, "ratio": self.ratio, "cpu_ratio": self.cpu_ratio}


def cpu_table(pairs: list[Pair]) -> str:
    """Milliseconds a megapixel (of 2^20)."""
    costs = ["ms/MP", "CPU ms/MP", "other's ms/MP", "other's CPU ms/MP"]
    lines = [header(["operator", "images", "other", *costs, "ratio", "CPU ratio", "goal"])]
    for pair in pairs:
        megapixels = pair.pixels / 2**20
        seconds = (pair.mine.wall, pair.mine.cpu, pair.theirs.wall, pair.theirs.cpu)
        cells = [number(1e3 * each / megapixels, 1) for each in seconds]
        ratios = [number(pair.ratio, 2, "x"), number(pair.cpu_ratio, 2, "x")]
        lines.append(line([pair.what, pair.shape, pair.other, *cells, *ratios, pair.goal()]))
    return "\n".join(lines)


def device_line(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s'[: threads > 1]}, PyTorch {torch.__version__}"
