"""Speed of the operators of kernels/, compared with other implementations. Results are checked before they are timed.

On a GPU: each operator, sampling, dtype and size (1, 16 and 128 megapixels a launch, in images of 1024 x 1024, and for
project_exact also of 1009 x 1009, whose edges it searches by themselves). The time is the device's, a median, with
inputs and results that rotate so that the L2 cache does not hold them. Bytes needed: the minimum that must be read and
written, each once per launch; 100 % is the bandwidth of the card's own copy, measured first. Compared with: torch_ops
(PyTorch, eager, on whole images), the same under torch.compile (at 16 megapixels), both without project_exact, of which
PyTorch has no version, and for roundtrip 4:2:0 kornia's jpeg_codec_differentiable. project and project_exact get
decoded images with noise of 3 gray levels, so that there is something to project; encode and roundtrip get photographs
of the sample shard, extended by mirroring.

On a CPU: torch_ops compared with kornia (roundtrip) and with Pillow's codec (encode, decode), taking turns in one run,
in wall time and CPU time, on one thread: on a busy machine several threads would wait for each other.

kornia's JPEG differs from ours: it rounds by a differentiable polynomial, samples 4:2:0 chroma by bilinear
interpolation (ours: mean and repetition), and clamps leakily. Both get the same tables.

  python -m bench.kernels                     everything; a GPU takes about 8 minutes, a CPU 2
  python -m bench.kernels --quick             float32 at 16 megapixels, two samplings; 1.5 minutes at most on a GPU
  python -m bench.kernels --operator roundtrip roundtrip+backward --sampling 4:2:0 --minutes 2
  python -m bench.kernels --megapixels 16 --dtype bfloat16 --against torch_ops kornia
  python -m bench.kernels --json figures.json && python -m bench.operators.roofline figures.json roofline.png

Goals, printed as met or missed, are for an H100 from 16 megapixels up: encode, decode, roundtrip and project at 80 % of
copy bandwidth, roundtrip with backward 20 times as fast as kornia, project_exact at 2 GP/s (quality 10, 4:2:0); and for
a CPU: roundtrip with backward 3 times as fast as kornia. The exit code is 1 if any result was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.operators import cpu, cuda
from bench.operators.cases import DTYPES, OPERATORS, Settings
from kernels import Subsampling

AGAINST = ("torch_ops", "compiled", "kornia", "pillow")

DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"megapixels": [1, 16, 128], "seconds": 0.2, "repetitions": 50},
    "cpu": {"megapixels": [1], "seconds": 6.0, "repetitions": 31},
}

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
        prog="python -m bench.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    labels = [sampling.label for sampling in Subsampling]
    add = parser.add_argument
    add("--operator", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="[all]")
    add("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    add("--megapixels", nargs="+", type=int, metavar="N", help="of 2^20 pixels, a launch [GPU: 1 16 128, CPU: 1]")
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of images; a CPU has float32 only [both]")
    add("--quality", type=int, default=10, help="the tables' [%(default)s]")
    add("--against", nargs="*", choices=AGAINST, default=list(AGAINST), help="other implementations, or nothing [all]")
    add("--repetitions", type=int, help="limit for a median [GPU: 50, CPU: 31]")
    add("--seconds", type=float, help="for a median, about [GPU: 0.2, CPU: 6]")
    add("--minutes", type=float, default=8.0, help="a GPU starts nothing new after them [%(default)s]")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto: CUDA where there is a GPU]")
    add("--threads", type=int, default=1, help="of PyTorch on a CPU; Pillow's codec has one [%(default)s]")
    add("--quick", action="store_true", help="fewer cases, shorter medians: see above")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
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
    if min([options.threads, *(options.megapixels or [1])]) < 1:
        parser.error("--megapixels, --threads: expected 1 or more")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    defaults = DEFAULTS[options.device]
    return Settings(
        operators=options.operator,
        samplings=[Subsampling.from_label(label) for label in options.sampling],
        dtypes=options.dtype,
        megapixels=options.megapixels or defaults["megapixels"],
        quality=options.quality,
        against=options.against,
        seconds=options.seconds or defaults["seconds"],
        repetitions=options.repetitions or defaults["repetitions"],
        minutes=options.minutes,
    )


def main() -> int:
    options = parse()
    if options.device == "cuda":
        figures, right = cuda.measure(settings_of(options), torch.device("cuda"))
    else:
        torch.set_num_threads(options.threads)
        figures, right = cpu.measure(settings_of(options))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
