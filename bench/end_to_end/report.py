"""The figures as text and for --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bench.end_to_end.measure import PILLOW_DECODE, PILLOW_PNG, Others, Run
from bench.end_to_end.memory import MEASURE
from bench.end_to_end.workload import AsIs, Workload
from bench.markdown import header, line
from pipeline.engine.stopwatch import Times

STAGES = ("read", "bitstream", "decode", "network", "project", "encode", "write")
JPEG_STAGES = ("bitstream", "decode", "project", "encode")
ELSEWHERE = "in no stage"
MEBI = 1 << 20


@dataclass(frozen=True)
class Timed:
    """A restored workload. cores: how many this process may use."""

    workload: Workload | AsIs
    run: Run
    workers: int
    cores: int

    @property
    def rate(self) -> float:
        """Megapixels a second."""
        return self.run.megapixels / self.run.seconds


@dataclass(frozen=True)
class Outcome(Timed):
    """With the figures of others on the same files. peak: the pipeline's memory in bytes."""

    beside: Others
    peak: int

    @property
    def elsewhere(self) -> float:
        """CPU seconds of the run outside the stages: forking, messages between processes, waiting."""
        return self.run.cpu - sum(times.cpu for times in self.run.stages.values())

    @property
    def pillow_cpu(self) -> float:
        return sum(times.cpu for times in self.beside.pillow.values())

    @property
    def ratio(self) -> float:
        """CPU time of the JPEG stages divided by that of Pillow's decode and PNG."""
        return sum(self.run.stages[stage].cpu for stage in JPEG_STAGES) / self.pillow_cpu

    @property
    def pillow_rate(self) -> float:
        """Megapixels a second of Pillow in as many processes."""
        return self.workers * self.run.megapixels / sum(times.wall for times in self.beside.pillow.values())

    @property
    def cores_busy(self) -> float:
        return self.run.cpu / self.run.seconds / self.cores

    @property
    def workers_busy(self) -> float:
        """The share of wall time that the workers spent in their stages."""
        wall = sum(times.wall for stage, times in self.run.stages.items() if self.sharing(stage) == self.workers)
        return wall / self.run.seconds / self.workers

    def sharing(self, stage: str) -> int:
        """How many threads or processes run a stage at once."""
        on_device = self.run.batched and stage in ("decode", "network", "project")
        return 1 if on_device or stage in ("read", "write") else self.workers

    def busy(self, stage: str) -> float:
        """The share of wall time that the threads or processes of a stage spent in it."""
        return self.run.stages[stage].wall / self.run.seconds / self.sharing(stage)

    def figures(self) -> dict[str, Any]:
        """For --json."""
        names = ("rate", "ratio", "cores_busy", "workers_busy", "elsewhere", "pillow_rate")
        derived = {name: getattr(self, name) for name in names}
        derived |= {"ceiling": self.beside.ceiling, "busy": {stage: self.busy(stage) for stage in self.run.stages}}
        return asdict(self) | derived


def markdown(outcome: Outcome) -> str:
    """A table of the stages, and remarks. Share: of all CPU time."""
    rows = [header(["stage", "CPU ms/MP", "CPU s", "share", "wall s", "busy"], "---:")]
    for stage in STAGES:
        rows.append(_row(outcome, stage, outcome.run.stages[stage], f"{outcome.busy(stage):.0%}"))
    rows.append(_row(outcome, ELSEWHERE, Times(0.0, outcome.elsewhere)))
    rows.append(_row(outcome, "**all**", Times(outcome.run.seconds, outcome.run.cpu)))
    rows += [_row(outcome, name, outcome.beside.pillow[name]) for name in (PILLOW_DECODE, PILLOW_PNG)]
    text = "\n".join(rows)
    return f"### {outcome.workload}\n\n{text}\n\n{remarks(outcome)}\n"


def _row(outcome: Outcome, name: str, times: Times, busy: str = "") -> str:
    each = 1000 * times.cpu / outcome.run.megapixels
    share = "" if name in outcome.beside.pillow else f"{times.cpu / outcome.run.cpu:.0%}"
    return line([name, f"{each:.1f}", f"{times.cpu:.2f}", share, f"{times.wall:.2f}" if times.wall else "", busy])


def remarks(outcome: Outcome) -> str:
    run, beside = outcome.run, outcome.beside
    batches = f", batches of {beside.batch}" if beside.batch > 1 else ""
    lines = [
        f"{run.megapixels:.2f} MP in {run.seconds:.2f} s: **{outcome.rate:.2f} MP/s**, "
        f"{run.images / run.seconds:.2f} images/s; mode {run.mode}, {run.device}, {run.dtype}",
        f"busy: workers {outcome.workers_busy:.0%} ({outcome.workers}), cores {outcome.cores_busy:.0%} "
        f"({outcome.cores}; user and system of all processes)",
        f"network: {beside.rate:.2f} MP/s alone in tiles of {beside.tile[1]}x{beside.tile[0]}{batches}; "
        f"{beside.enlarged:.2f} pixels for one of the image, so the ceiling is {beside.ceiling:.2f} MP/s; "
        f"{outcome.rate / beside.ceiling:.0%} of it is reached",
        f"JPEG stages ({', '.join(JPEG_STAGES)}): {outcome.ratio:.2f} times Pillow's decode + PNG, by CPU time",
        f"Pillow's decode + PNG in {_processes(outcome.workers)}: {outcome.pillow_rate:.1f} MP/s",
        f"peak memory: {outcome.peak / MEBI:.0f} MiB"
        + (f", and {run.gpu_bytes / MEBI:.0f} MiB on the GPU" if run.gpu_bytes else ""),
        f"mismatches: {run.mismatches}",
    ]
    if run.batched:
        lines.append("decode, network, project: the time of the GPU's stream, including its waits for the host")
    return "\n".join(f"- {line}" for line in lines)


def _processes(count: int) -> str:
    return f"{count} process{'es'[: 2 * (count > 1)]}"


@dataclass(frozen=True)
class ScalingPoint:
    """A workload of a series in which one quantity varies. peak, gpu_bytes: memory in bytes."""

    workload: Workload
    seconds: float
    peak: int
    gpu_bytes: int

    def figures(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"megapixels": self.workload.megapixels}


def scaling_table(points: list[ScalingPoint]) -> str:
    rows = [header(["files", "size", "MP", "seconds", "MP/s", "peak MiB", "GPU MiB"], "---:")]
    for point in points:
        workload, seconds = point.workload, point.seconds
        cells = [str(workload.files), str(workload.size), f"{workload.megapixels:.2f}", f"{seconds:.2f}"]
        cells += [f"{workload.megapixels / seconds:.2f}", f"{point.peak / MEBI:.0f}", f"{point.gpu_bytes / MEBI:.0f}"]
        rows.append(line(cells))
    text = "\n".join(rows)
    return f"### Each in a fresh process\n\n{text}\n\nPeak memory: {MEASURE}.\n"
