"""The effect of `--strength`: PSNR, Fréchet and sliced Wasserstein distance, from the regression (0) to a sample (1).

python -m bench.dial --data val.tar
python -m bench.dial --data val.tar --quality 10 --strengths 0 0.5 1 --limit 30

One sample of each image, after `project_exact`; measured by train/evaluate.py, as in bench/quality.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from bench.photographs import command_line
from model.features import FeaturesError
from pipeline.engine.options import SAMPLER
from pipeline.inputs.listing import SourceError
from train.data.photographs import Photographs
from train.evaluate import EvaluationError, EvaluationSettings, evaluate, load_networks
from train.frechet import CROP, load_extractors
from train.table import Column, TableRow, heading, line

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

COLUMNS: list[Column] = [
    ("quality", "quality", ""),
    ("strength", "strength", "g"),
    ("PSNR dB", "psnr", ".2f"),
    ("gain dB", "gain", "+.2f"),
    ("Fréchet", "frechet", ".3f"),
    ("SWD", "swd", ".1f"),
    ("deviation in flat areas", "flat_deviation", ".2f"),
    ("originals'", "original_flat_deviation", ".2f"),
    ("mismatches", "mismatches", ""),
]


@dataclass(frozen=True)
class Point(TableRow):
    """The figures at one strength."""

    strength: float


def parser() -> argparse.ArgumentParser:
    result = command_line(__doc__)
    add = result.add_argument
    add("--quality", type=int, nargs="+", default=[10, 20, 40], help="[10 20 40]")
    add("--strengths", type=float, nargs="+", default=list(STRENGTHS), help=f"[{' '.join(map(str, STRENGTHS))}]")
    add("--weights", default=SAMPLER, help="a sampler with a noise head [%(default)s]")
    add("--device", default="auto")
    add("--dtype", default="auto")
    return result


def run(options: argparse.Namespace) -> None:
    """Prints the table. Raises EvaluationError, FeaturesError and SourceError."""
    networks = load_networks(options.weights, None, options.device, options.dtype)
    if networks.sampler is None or not networks.sampler.generator.config.has_noise_head:
        raise EvaluationError(f"weights {options.weights!r}: expected a sampler with a noise head")
    extractors = load_extractors(None, networks.regression.device, hed=False)
    photographs = Photographs(options.data, options.limit)
    settings = EvaluationSettings(tuple(options.quality), modes=("projected",), samples=1)
    points: list[Point] = []
    for strength in options.strengths:
        networks.sampler.options = replace(networks.sampler.options, strength=strength)
        report = evaluate(photographs, networks, settings, extractors)
        points += [Point(**vars(row), strength=strength) for row in report.rows]
    print(heading(COLUMNS))
    print(*(line(point, COLUMNS) for point in sorted(points, key=lambda point: point.quality)), sep="\n")
    crops = f"Fréchet distances over {report.crops} crops of {CROP}x{CROP}"
    print(f"\n{report.images} images, {report.sampling}, one sample; {crops}.")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(arguments))
    except (EvaluationError, FeaturesError, SourceError, OSError) as error:
        print(f"dial: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
