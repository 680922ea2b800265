"""Cost of a restoration from shards to shards, by stage: the real pipeline on JPEG files of several sizes, made here
from clean photographs and restored in a fresh process; compared with Pillow's decode and PNG (level 1) of the same
files and with the network alone, both with as many workers.

  python -m bench.restore --data val.tar                        three sizes; a CPU takes minutes
  python -m bench.restore --quick                               one size, from the sample shard's photographs
  python -m bench.restore --data val.tar --sizes 512x512 --megapixels 16 --weights mmse
  python -m bench.restore --data val.tar --sizes --scaling      time and memory by files and by megapixels
  python -m bench.restore --data val.tar --json figures.json --chart stages.png
  python -m bench.restore --data shards --as-is                 real files, unchanged
  python -m bench.restore --data val.tar --stand-in-device      the host alone, with a device that takes no time

CPU time: user and system, of the stage's threads or processes. Busy: the share of wall time that the threads or
processes of a stage spent in it. Megapixels are the images', each pixel once. The time is from listing the shards to
closing the output's; it excludes Python's start, loading the weights and one file to warm up. Peak memory is of all
processes together, sampled ten times a second, shared pages counted once.

Without --data the photographs are the sample shard's, which have been compressed before: use it for speed only.

Where workers on a CPU are much busier than its cores, other processes were running: then compare CPU times only.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.end_to_end.chart import can_draw, draw_scaling, draw_stages
from bench.end_to_end.host import Host, measure_alone, on_cores, stand_in, table
from bench.end_to_end.measure import BenchError, Factory, Run, Setup, measure_others, restore_shards
from bench.end_to_end.memory import in_fresh_process
from bench.end_to_end.report import Outcome, ScalingPoint, markdown, scaling_table
from bench.end_to_end.workload import AsIs, Size, Workload, write_as_is, write_shards
from bench.machine import CORES, processor
from bench.photographs import SAMPLE, Pixels, load
from bench.pillow import SAMPLINGS
from pipeline.command_line import MEAN_SAMPLES
from pipeline.engine.device import choose_device
from pipeline.engine.options import MODES, SAMPLER
from pipeline.inputs.listing import SourceError
from pipeline.outputs.record import SinkError
from train.data.photographs import DATA_HELP

SIZES = (Size(128, 128), Size(512, 512), Size(4000, 3000))
ON_CPU, ON_GPU, ON_HOST = 48.0, 960.0, 480.0
"""Default megapixels of each size: some seconds. More for the host alone, whose first megapixels are slow, while its
processes touch their shared memory for the first time."""

QUICK_SIZE, QUICK_CPU, QUICK_GPU = Size(512, 512), 2.0, 200.0
"""The size of --quick, and how many megapixels of it."""

WARM_UP = Size(128, 128)
"""Of the file that warms up a CPU; a GPU, which compiles for a shape, gets one of the size that is measured."""

MOST_PHOTOGRAPHS = 256


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--data", type=Path, default=SAMPLE, help=f"{DATA_HELP} [the sample shard]")
    add("--quick", action="store_true", help=f"only {QUICK_SIZE}, {QUICK_CPU:.0f} megapixels; a GPU: {QUICK_GPU:.0f}")
    add("--sizes", type=size_of, nargs="*", metavar="WxH", help=f"[{' '.join(map(str, SIZES))}]")
    many = result.add_mutually_exclusive_group()
    many.add_argument("--files", type=int, metavar="N", help="of each size")
    many.add_argument("--megapixels", type=float, metavar="N", help=f"of each size [{ON_CPU:.0f}; a GPU: {ON_GPU:.0f}]")
    add(
        "--as-is", action="store_true", help="the files of --data unchanged: all, or as many as --files or --megapixels"
    )
    add(
        "--stand-in-device",
        action="store_true",
        help="a device that only copies pixels: the host's throughput, of one worker on one core and of --workers "
        "on as many",
    )
    add("--quality", type=int, default=10, help="[%(default)s]")
    add("--sampling", choices=SAMPLINGS, default="4:2:0", help="[%(default)s]")
    add("--weights", default=SAMPLER, help="[%(default)s]")
    add("--mode", choices=MODES, help="[sample, if the weights are a sampler's]")
    add("--samples", type=int, metavar="K", help=f"draws for each file [1; {MEAN_SAMPLES} in mode mean]")
    add("--workers", type=int, default=0, metavar="N", help="0: one for each core [%(default)s]")
    add("--device", default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="[%(default)s]")
    add("--seconds", type=float, default=3.0, help="for timing the network alone, about [%(default)s]")
    add("--throttle", type=float, default=0.0, metavar="MB/S", help="limit the speed of the output's disk [no limit]")
    add("--scaling", action="store_true", help="also time and peak memory by files and by megapixels of one file")
    add("--scaling-files", type=int, nargs="+", default=[1, 4, 16, 64, 256], metavar="N", help="[1 4 16 64 256]")
    add("--scaling-size", type=size_of, default=Size(512, 512), metavar="WxH", help="of those files [%(default)s]")
    add("--scaling-megapixels", type=float, nargs="+", default=[1, 4, 16, 64], metavar="N", help="[1 4 16 64]")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--chart", type=Path, metavar="FILE.png", help="CPU time by stage; with --scaling also FILE-scaling.png")
    return result


def size_of(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check(options: argparse.Namespace) -> None:
    """Raises BenchError for options that exclude each other, before anything is measured."""
    counts = [options.files, options.megapixels, options.samples, *options.scaling_files, *options.scaling_megapixels]
    if any(count is not None and count <= 0 for count in counts) or min(options.workers, options.throttle) < 0:
        raise BenchError("expected positive numbers of files, megapixels, samples, megabytes and workers")
    if not 1 <= options.quality <= 100:
        raise BenchError(f"--quality {options.quality}: expected 1..100")
    if options.as_is and (options.quick or options.sizes or options.scaling):
        raise BenchError("--as-is: files as they are have no --sizes, --quick or --scaling")
    if not (options.as_is or options.sizes or options.scaling):
        raise BenchError("nothing to measure: give --sizes at least one size, or --scaling")
    if options.stand_in_device and (options.scaling or options.chart):
        raise BenchError("--stand-in-device: the host alone has no --scaling and no --chart")
    if options.chart and not can_draw():
        raise BenchError("--chart needs matplotlib; install it with: pip install '.[bench]'")
    for path in (options.json, options.chart):
        if path is not None and not path.parent.is_dir():
            raise BenchError(f"{path}: there is no folder {path.parent}")


@dataclass(frozen=True)
class Bench:
    """Makes files from the photographs and measures their restoration. seconds: for timing the network alone."""

    photographs: list[Pixels]
    setup: Setup
    quality: int
    sampling: str
    seconds: float

    def workloads(self, options: argparse.Namespace, megapixels: float) -> Iterator[tuple[Workload | AsIs, Path, Size]]:
        """Those of --as-is or --sizes, as `made` gives them; shards exist until the next workload is asked for.
        megapixels: the default of each size."""
        if options.as_is:
            with TemporaryDirectory() as folder:
                shards, found = write_as_is(options.data, options.files, options.megapixels, Path(folder) / "shards")
                yield found, shards, WARM_UP
        for size in options.sizes or ():
            total = options.megapixels or megapixels
            with self.made(size, options.files or math.ceil(total / size.megapixels)) as workload:
                yield workload

    @contextmanager
    def made(self, size: Size, files: int) -> Iterator[tuple[Workload, Path, Size]]:
        """(the workload, the folder of its shards, the size of the file to warm up with)."""
        workload = Workload(size, files, self.quality, self.sampling)
        with TemporaryDirectory() as folder:
            shards = write_shards(self.photographs, workload, Path(folder) / "shards")
            yield workload, shards, size if self.setup.device.startswith("cuda") else WARM_UP

    def outcome(self, workload: Workload | AsIs, shards: Path, warm_up: Size) -> Outcome:
        run, peak = self.restore(workload.files, shards, warm_up, self.setup.workers)
        others, _ = in_fresh_process(measure_others, self.setup, shards, self.seconds)
        return Outcome(workload, run, self.setup.workers, CORES, others, peak)

    def hosts(self, workload: Workload | AsIs, shards: Path) -> list[Host]:
        """With one worker on one core, and with all. Before each, what decoding and encoding cost alone: the machine's
        speed varies."""
        found = []
        for workers in sorted({1, self.setup.workers}):
            with on_cores(workers):
                alone, _ = in_fresh_process(measure_alone, self.setup, shards)
                run, _ = self.restore(workload.files, shards, WARM_UP, workers, stand_in)
            found.append(Host(workload, run, workers, CORES, alone))
        return found

    def scaling_point(self, size: Size, files: int) -> ScalingPoint:
        with self.made(size, files) as (workload, shards, warm_up):
            run, peak = self.restore(files, shards, warm_up, self.setup.workers)
        return ScalingPoint(workload, run.seconds, peak, run.gpu_bytes)

    def restore(
        self, files: int, shards: Path, warm_up: Size, workers: int, factory: Factory | None = None
    ) -> tuple[Run, int]:
        """(the figures, the peak memory in bytes). Raises BenchError unless `files` files were restored."""
        with TemporaryDirectory() as folder:
            small = Workload(warm_up, 1, self.quality, self.sampling)
            first = write_shards(self.photographs, small, Path(folder) / "warm-up")
            setup = replace(self.setup, workers=workers)
            run, peak = in_fresh_process(restore_shards, setup, shards, first, Path(folder) / "output", factory)
        if run.images != files:
            raise BenchError(f"{run.images} of {files} files were restored")
        return run, peak


def prepare(options: argparse.Namespace) -> Bench:
    """Raises SourceError, BenchError, or ValueError for a device that does not exist."""
    photographs = load(options.data, 1 if options.as_is else MOST_PHOTOGRAPHS)
    samples = options.samples or (MEAN_SAMPLES if options.mode == "mean" else 1)
    device, workers = str(choose_device(options.device)), options.workers or CORES
    setup = Setup(options.weights, options.mode, samples, device, options.dtype, workers, 1e6 * options.throttle)
    return Bench(photographs, setup, options.quality, options.sampling, options.seconds)


def measure_hosts(options: argparse.Namespace, bench: Bench) -> list[Host]:
    """Prints the table."""
    workloads = bench.workloads(options, QUICK_CPU if options.quick else ON_HOST)
    hosts = [host for workload, shards, _ in workloads for host in bench.hosts(workload, shards)]
    print(table(hosts), flush=True)
    return hosts


def measure_outcomes(options: argparse.Namespace, bench: Bench) -> list[Outcome]:
    """Prints each table when it is ready."""
    on_cpu, on_gpu = (QUICK_CPU, QUICK_GPU) if options.quick else (ON_CPU, ON_GPU)
    outcomes = []
    for workload in bench.workloads(options, on_gpu if bench.setup.device.startswith("cuda") else on_cpu):
        outcomes.append(bench.outcome(*workload))
        print(markdown(outcomes[-1]), flush=True)
    return outcomes


def measure_scaling(options: argparse.Namespace, bench: Bench) -> tuple[list[ScalingPoint], list[ScalingPoint]]:
    """(by files, by megapixels of one file). Prints the table."""
    if not options.scaling:
        return [], []
    by_files = [bench.scaling_point(options.scaling_size, files) for files in options.scaling_files]
    by_megapixels = [bench.scaling_point(Size.of(megapixels), 1) for megapixels in options.scaling_megapixels]
    print(scaling_table([*by_files, *by_megapixels]), flush=True)
    return by_files, by_megapixels


def run(options: argparse.Namespace) -> None:
    """Measures, prints, writes and draws."""
    check(options)
    bench = prepare(options)
    machine = f"{processor()}, PyTorch {torch.__version__}"
    print(f"`python -m bench.restore {shlex.join(options.given)}`, {machine}\n", flush=True)
    figures: dict[str, Any] = {"machine": machine, "setup": asdict(bench.setup)}
    if options.stand_in_device:
        figures["hosts"] = [host.figures() for host in measure_hosts(options, bench)]
    else:
        outcomes = measure_outcomes(options, bench)
        by_files, by_megapixels = measure_scaling(options, bench)
        figures["sizes"] = [outcome.figures() for outcome in outcomes]
        figures["files"] = [point.figures() for point in by_files]
        figures["megapixels"] = [point.figures() for point in by_megapixels]
        if options.chart and outcomes:
            draw_stages(outcomes, options.chart)
        if options.chart and options.scaling:
            draw_scaling(by_files, by_megapixels, options.chart.with_stem(f"{options.chart.stem}-scaling"))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


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
