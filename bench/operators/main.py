"""How fast the operators of kernels/ are, and beside whom. Right before fast: all is checked before it is timed.

With a GPU: each operator, sampling, dtype and size (1, 16 and 128 megapixels a launch, in images of 1024 x 1024). Time:
the device's, a median, on inputs and results that go round so that the L2 cache does not hold them. Bytes needed: the
least that must be read and written, each once a launch; 100 % is the bandwidth of the card's own copy, measured first.
Beside it: torch_ops (PyTorch, eager, on whole images), the same under torch.compile (at 16 megapixels), both without
project_exact, of which PyTorch has no version, and for roundtrip 4:2:0 kornia's jpeg_codec_differentiable. project and
project_exact are given plainly decoded images with noise of 3 gray levels, so that they have work to do; encode and
roundtrip photographs of the sample shard, continued by mirroring.

Without: torch_ops beside kornia (roundtrip) and beside Pillow's codec (encode, decode), in turn in one run, by the
clock and by CPU time, on one thread: threads that wait for each other on a busy machine measure how busy it is.

kornia's JPEG is not quite ours: it rounds by a polynomial that is differentiable, samples 4:2:0 chroma by bilinear
interpolation (ours: mean and repetition), and its limits leak. Both are given the same tables.

  python -m bench.kernels                     everything; a GPU takes about 8 minutes, a CPU 2
  python -m bench.kernels --quick             float32 at 16 megapixels, two samplings; 1.5 minutes at most on a GPU
  python -m bench.kernels --operator roundtrip roundtrip+backward --sampling 4:2:0 --minutes 2
  python -m bench.kernels --megapixels 16 --dtype bfloat16 --against torch_ops kornia
  python -m bench.kernels --json figures.json --plot roofline.png
  python -m bench.kernels --resources         registers, stack, shared memory; needs no GPU, takes minutes

Goals, printed as met or missed, are an H100's from 16 megapixels up: encode, decode, roundtrip and project at 80 % of
copy bandwidth, roundtrip with backward 20 times as fast as kornia, project_exact at 2 GP/s (quality 10, 4:2:0); and a
CPU's: roundtrip with backward 3 times as fast as kornia. Exit status: 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from bench.operators import cpu, cuda, roofline
from bench.operators.cases import DTYPES, OPERATORS
from bench.operators.resources import print_resources
from kernels import Subsampling

AGAINST = ("torch_ops", "compiled", "kornia", "pillow")

QUICK = {
    "sampling": ["4:2:0", "4:4:4"],
    "dtype": ["float32"],
    "against": ["torch_ops", "kornia", "pillow"],
    "seconds": 0.05,
    "repetitions": 15,
    "minutes": 1.5,
}
"""The defaults of --quick; on a GPU at 16 megapixels."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kernels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    labels = [sampling.label for sampling in Subsampling]
    add = parser.add_argument
    add("--operator", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="[all]")
    add("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    add("--megapixels", nargs="+", type=int, metavar="N", help="of 2^20 pixels, a launch [GPU: 1 16 128, CPU: 1]")
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of images; a CPU has float32 only [both]")
    add("--quality", type=int, default=10, help="the tables' [%(default)s]")
    add(
        "--against", nargs="*", choices=AGAINST, default=list(AGAINST), help="beside what; nothing: kernels alone [all]"
    )
    add("--repetitions", type=int, help="at most so many for a median [GPU: 50, CPU: 31]")
    add("--seconds", type=float, help="about so long for a median [GPU: 0.2, CPU: 6]")
    add("--minutes", type=float, default=8.0, help="a GPU begins nothing new after so many [%(default)s]")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto: CUDA where there is any]")
    add("--threads", type=int, default=1, help="PyTorch's on a CPU; Pillow's codec has one [%(default)s]")
    add("--quick", action="store_true", help="fewer cases, shorter medians, see above")
    add("--resources", action="store_true", help="only the table of what kernels take, compiled for --capability")
    add("--capability", type=int, nargs="+", default=[90], help="of --resources [90]")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--plot", type=Path, metavar="FILE.png", help="the roofline, of a GPU's figures; needs matplotlib")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick and options.device == "cuda":
        options.megapixels = options.megapixels or [16]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    if options.plot and (options.device == "cpu" or options.resources):
        parser.error("--plot: a roofline is of kernels timed on a GPU")
    if min([options.threads, *(options.megapixels or [1])]) < 1:
        parser.error("--megapixels, --threads: expected 1 or more")
    return options


def cuda_settings(options: argparse.Namespace) -> cuda.Settings:
    return cuda.Settings(
        operators=options.operator,
        samplings=[Subsampling.from_label(label) for label in options.sampling],
        dtypes=options.dtype,
        megapixels=options.megapixels or [1, 16, 128],
        quality=options.quality,
        against=options.against,
        seconds=options.seconds or 0.2,
        repetitions=options.repetitions or 50,
        minutes=options.minutes,
    )


def cpu_settings(options: argparse.Namespace) -> cpu.Settings:
    return cpu.Settings(
        operators=options.operator,
        samplings=[Subsampling.from_label(label) for label in options.sampling],
        megapixels=options.megapixels or [1],
        quality=options.quality,
        against=options.against,
        seconds=options.seconds or 6.0,
        repetitions=options.repetitions or 31,
    )


def main() -> int:
    options = parse()
    if options.resources:
        samplings = [Subsampling.from_label(label) for label in options.sampling]
        figures, right = print_resources(options.operator, samplings, options.dtype, options.capability), True
    elif options.device == "cuda":
        figures, right = cuda.measure(cuda_settings(options), torch.device("cuda"))
    else:
        torch.set_num_threads(options.threads)
        figures, right = cpu.measure(cpu_settings(options))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.plot and not roofline.draw(figures, options.plot):
        print(roofline.MISSING)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
