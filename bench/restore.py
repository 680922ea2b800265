"""What a restoration costs from shards to shards, and where: the real pipeline on JPEG files of several sizes, made
here of clean photographs and restored in a fresh process, beside Pillow's plain decode and PNG (level 1) of the same
files and beside the network alone, both with as many workers.

  python -m bench.restore --data val.tar                        three sizes; a CPU takes minutes
  python -m bench.restore --quick                               one size, of the sample shard's photographs
  python -m bench.restore --data val.tar --sizes 512x512 --megapixels 16 --weights mmse
  python -m bench.restore --data val.tar --sizes --scaling      time and memory by files and by megapixels
  python -m bench.restore --data val.tar --json figures.json --chart stages.png
  python -m bench.restore --data shards --as-is                 real files, just as they are
  python -m bench.restore --data val.tar --stand-in-device      the host alone, as if there was a GPU that took no time

CPU time: user and system, of the stage's threads or processes. busy: the share of the time, by the clock, that those
who do a stage were in it. Megapixels are the images', each pixel once. Timed is from listing the shards to closing the
output's; Python's start, the weights' loading and one file to warm up are not. Peak memory is of all processes
together, looked at ten times a second, pages that they share counted once.

Without --data it takes the sample shard's photographs, which have been compressed before: for a look at the speed only.

Where workers on a CPU are much busier than its cores, the machine has been doing something else besides: then compare
CPU times only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.end_to_end.chart import can_draw, draw_scaling, draw_stages
from bench.end_to_end.host import Host, measure_alone, stand_in, table
from bench.end_to_end.measure import BenchError, Run, Setup, measure_beside, restore_shards
from bench.end_to_end.memory import in_fresh_process
from bench.end_to_end.report import Outcome, Rung, markdown, scaling_table
from bench.end_to_end.workload import AsIs, Size, Workload, write_as_is, write_shards
from bench.photographs import Pixels, load
from pipeline.command_line import MEAN_SAMPLES
from pipeline.engine.device import choose_device
from pipeline.engine.options import MODES, SAMPLER
from pipeline.engine.restorer import Restorer
from pipeline.inputs.listing import SourceError
from pipeline.outputs.record import SinkError

Made = Callable[[Setup, Path], Restorer]

SIZES = (Size(128, 128), Size(512, 512), Size(4000, 3000))
ON_CPU, ON_GPU, ON_HOST = 48.0, 960.0, 480.0
"""Megapixels of each size, unless told otherwise: some seconds. Of the host alone more: the first are slow, while its
processes touch the memory that they share for the first time."""

QUICK_SIZE, QUICK_CPU, QUICK_GPU = Size(512, 512), 2.0, 200.0
"""What --quick measures: a size, and megapixels of it."""

SAMPLE = Path(__file__).parents[1] / "pipeline" / "sample" / "sample.tar"

WARM_UP = 128
"""Pixels a side of the file that a CPU is warmed up with; a GPU, where shapes matter, has one of the size itself."""

MOST_PHOTOGRAPHS = 256


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add(
        "--data", type=Path, default=SAMPLE, help="clean photographs: a tar, a folder or a JPEG file [the sample shard]"
    )
    add("--quick", action="store_true", help=f"{QUICK_SIZE} only, {QUICK_CPU:.0f} megapixels; a GPU {QUICK_GPU:.0f}")
    add("--sizes", type=size_of, nargs="*", metavar="WxH", help=f"[{' '.join(map(str, SIZES))}]")
    many = result.add_mutually_exclusive_group()
    many.add_argument("--files", type=int, metavar="N", help="of each size")
    many.add_argument("--megapixels", type=float, metavar="N", help=f"of each size [{ON_CPU:.0f}; a GPU: {ON_GPU:.0f}]")
    add(
        "--as-is", action="store_true", help="the files of --data themselves, all or as many as --files or --megapixels"
    )
    add(
        "--stand-in-device",
        action="store_true",
        help="one that copies pixels decoded once: what the host can do, with one worker and with --workers",
    )
    add("--quality", type=int, default=10, help="[%(default)s]")
    add("--sampling", choices=("4:2:0", "4:2:2", "4:4:4", "gray"), default="4:2:0", help="[%(default)s]")
    add("--weights", default=SAMPLER, help="[%(default)s]")
    add("--mode", choices=MODES, help="[sample, if the weights can draw]")
    add("--samples", type=int, metavar="K", help=f"draws for each file [1; {MEAN_SAMPLES} in mode mean]")
    add("--workers", type=int, default=0, metavar="N", help="0: one for each core [%(default)s]")
    add("--device", default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="[%(default)s]")
    add("--seconds", type=float, default=3.0, help="how long the network is timed alone, about [%(default)s]")
    add("--throttle", type=float, default=0.0, metavar="MB/S", help="how much the outputs' disk takes [all it can]")
    add("--scaling", action="store_true", help="time and peak memory, too, by files and by megapixels of one file")
    add("--scaling-files", type=int, nargs="+", default=[1, 4, 16, 64, 256], metavar="N", help="[1 4 16 64 256]")
    add("--scaling-size", type=size_of, default=Size(512, 512), metavar="WxH", help="of those files [%(default)s]")
    add("--scaling-megapixels", type=float, nargs="+", default=[1, 4, 16, 64], metavar="N", help="[1 4 16 64]")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    add("--chart", type=Path, metavar="FILE.png", help="CPU time by stage; of --scaling FILE-scaling.png")
    return result


def size_of(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check(options: argparse.Namespace) -> None:
    """Raises BenchError before anything is measured for nothing."""
    counts = [options.files, options.megapixels, options.samples, *options.scaling_files, *options.scaling_megapixels]
    if any(count is not None and count <= 0 for count in counts) or min(options.workers, options.throttle) < 0:
        raise BenchError("expected positive numbers of files, megapixels, samples, megabytes and workers")
    if not 1 <= options.quality <= 100:
        raise BenchError(f"--quality {options.quality}: expected 1..100")
    if options.as_is and (options.quick or options.sizes or options.scaling):
        raise BenchError("--as-is: files as they are have no --sizes; nor --quick, --scaling")
    if not (options.as_is or options.sizes or options.scaling):
        raise BenchError("nothing to measure: --sizes without a size, and no --scaling")
    if options.stand_in_device and (options.scaling or options.chart):
        raise BenchError("--stand-in-device: of the host alone there is no --scaling and no --chart")
    if options.chart and not can_draw():
        raise BenchError("--chart needs matplotlib; install it with: pip install '.[bench]'")
    for path in (options.json, options.chart):
        if path is not None and not path.parent.is_dir():
            raise BenchError(f"{path}: there is no folder {path.parent}")


@dataclass
class Bench:
    """Makes files of the photographs and has them measured."""

    photographs: list[Pixels]
    setup: Setup
    quality: int
    sampling: str
    seconds: float
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def workload(self, size: Size, files: int) -> Workload:
        return Workload(size, files, self.quality, self.sampling)

    def outcome(self, size: Size, files: int) -> Outcome:
        workload = self.workload(size, files)
        with TemporaryDirectory() as folder:
            shards = write_shards(self.photographs, workload, Path(folder) / "shards")
            return self._outcome(workload, shards, self.warm_up_size(size))

    def as_is(self, path: Path, files: int | None, megapixels: float | None) -> Outcome:
        """Of the first files there."""
        with TemporaryDirectory() as folder:
            shards, workload = write_as_is(path, files, megapixels, Path(folder) / "shards")
            return self._outcome(workload, shards, Size(WARM_UP, WARM_UP))

    def _outcome(self, workload: Workload | AsIs, shards: Path, small: Size) -> Outcome:
        run, peak = self._run(workload.files, shards, small)
        beside, _ = in_fresh_process(measure_beside, self.setup, shards, self.seconds)
        return Outcome(workload, run, self.setup.workers, self.cores, beside, peak)

    def hosts(self, size: Size, files: int) -> list[Host]:
        workload = self.workload(size, files)
        with TemporaryDirectory() as folder:
            return self._hosts(workload, write_shards(self.photographs, workload, Path(folder) / "shards"))

    def hosts_as_is(self, path: Path, files: int | None, megapixels: float | None) -> list[Host]:
        with TemporaryDirectory() as folder:
            shards, workload = write_as_is(path, files, megapixels, Path(folder) / "shards")
            return self._hosts(workload, shards)

    def _hosts(self, workload: Workload | AsIs, shards: Path) -> list[Host]:
        """With one worker and with as many as there are to be."""
        alone, _ = in_fresh_process(measure_alone, self.setup, shards)
        found = []
        for workers in sorted({1, self.setup.workers}):
            run, _ = self._run(workload.files, shards, Size(WARM_UP, WARM_UP), workers, stand_in)
            found.append(Host(workload, run, workers, self.cores, alone))
        return found

    def rung(self, size: Size, files: int) -> Rung:
        workload = self.workload(size, files)
        with TemporaryDirectory() as folder:
            shards = write_shards(self.photographs, workload, Path(folder) / "shards")
            run, peak = self._run(files, shards, self.warm_up_size(size))
        return Rung(workload, run.seconds, peak, run.gpu_bytes)

    def warm_up_size(self, size: Size) -> Size:
        return size if self.setup.device.startswith("cuda") else Size(WARM_UP, WARM_UP)

    def _run(
        self, files: int, shards: Path, small: Size, workers: int = 0, made: Made | None = None
    ) -> tuple[Run, int]:
        """What came of restoring so many files, and the peak memory. Raises BenchError."""
        with TemporaryDirectory() as folder:
            warm_up = write_shards(self.photographs, self.workload(small, 1), Path(folder) / "warm-up")
            setup = replace(self.setup, workers=workers or self.setup.workers)
            run, peak = in_fresh_process(restore_shards, setup, shards, warm_up, Path(folder) / "output", made)
        if run.images != files:
            raise BenchError(f"{run.images} of {files} files were restored")
        return run, peak


def prepare(options: argparse.Namespace) -> Bench:
    """Raises SourceError, BenchError, or ValueError for a device that is not there."""
    photographs = load(options.data, 1 if options.as_is else MOST_PHOTOGRAPHS)
    if not photographs:
        raise BenchError(f"{options.data}: no JPEG file")
    samples = options.samples or (MEAN_SAMPLES if options.mode == "mean" else 1)
    device, workers = str(choose_device(options.device)), options.workers or len(os.sched_getaffinity(0))
    setup = Setup(options.weights, options.mode, samples, device, options.dtype, workers, 1e6 * options.throttle)
    return Bench(photographs, setup, options.quality, options.sampling, options.seconds)


def measure_host(options: argparse.Namespace, bench: Bench) -> list[Host]:
    """Prints the table."""
    if options.as_is:
        hosts = bench.hosts_as_is(options.data, options.files, options.megapixels)
    else:
        total = options.megapixels or (QUICK_CPU if options.quick else ON_HOST)
        counts = [(size, options.files or math.ceil(total / size.megapixels)) for size in options.sizes]
        hosts = [host for size, files in counts for host in bench.hosts(size, files)]
    print(table(hosts), flush=True)
    return hosts


def measure(options: argparse.Namespace, bench: Bench) -> tuple[list[Outcome], list[Rung], list[Rung]]:
    """Prints tables as they become known. By size, by files, by megapixels."""
    if options.as_is:
        outcome = bench.as_is(options.data, options.files, options.megapixels)
        print(markdown(outcome), flush=True)
        return [outcome], [], []
    on_cpu, on_gpu = (QUICK_CPU, QUICK_GPU) if options.quick else (ON_CPU, ON_GPU)
    total = options.megapixels or (on_gpu if bench.setup.device.startswith("cuda") else on_cpu)
    outcomes = []
    for size in options.sizes:
        outcomes.append(bench.outcome(size, options.files or math.ceil(total / size.megapixels)))
        print(markdown(outcomes[-1]), flush=True)
    if not options.scaling:
        return outcomes, [], []
    by_files = [bench.rung(options.scaling_size, files) for files in options.scaling_files]
    by_megapixels = [bench.rung(Size.of(megapixels), 1) for megapixels in options.scaling_megapixels]
    print(scaling_table([*by_files, *by_megapixels]), flush=True)
    return outcomes, by_files, by_megapixels


def machine(bench: Bench) -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].split(":")[1].strip() if names else platform.machine()
    return f"{bench.cores} cores of {processor}, PyTorch {torch.__version__}"


def run(options: argparse.Namespace) -> None:
    """Measures, prints, writes and draws."""
    figures: dict[str, Any]
    check(options)
    bench = prepare(options)
    print(f"`python -m bench.restore {shlex.join(options.given)}`, {machine(bench)}\n", flush=True)
    if options.stand_in_device:
        hosts = measure_host(options, bench)
        if options.json:
            figures = {"machine": machine(bench), "setup": asdict(bench.setup), "hosts": [x.figures() for x in hosts]}
            options.json.write_text(json.dumps(figures, indent=1))
        return
    outcomes, by_files, by_megapixels = measure(options, bench)
    if options.json:
        figures = {"machine": machine(bench), "setup": asdict(bench.setup)}
        figures["sizes"] = [outcome.figures() for outcome in outcomes]
        figures["files"], figures["megapixels"] = ([r.figures() for r in rungs] for rungs in (by_files, by_megapixels))
        options.json.write_text(json.dumps(figures, indent=1))
    if options.chart and outcomes:
        draw_stages(outcomes, options.chart)
    if options.chart and options.scaling:
        draw_scaling(by_files, by_megapixels, options.chart.with_stem(f"{options.chart.stem}-scaling"))


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given, argparse.Namespace(given=given))
    if options.sizes is None and not options.as_is:
        options.sizes = [QUICK_SIZE] if options.quick else [*SIZES]
    try:
        run(options)
    except (BenchError, SourceError, SinkError, BrokenProcessPool, ValueError, OSError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
