"""What `--strength` does: PSNR against Fréchet and sliced Wasserstein distance, from the regression to a sample.

python -m bench.dial --data val.tar
python -m bench.dial --data val.tar --quality 10 --strengths 0 0.5 1 --limit 30

One sample of each image, after `project_exact`. The measuring is train/evaluate.py's, as in bench/quality.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from model.features import FeaturesError
from pipeline.engine.options import SAMPLER
from pipeline.inputs.listing import SourceError
from train.evaluate import EvaluationError, EvaluationSettings, Photographs, evaluate, load_networks
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
    """A row of one strength."""

    strength: float


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a JPEG file")
    add("--quality", type=int, nargs="+", default=[10, 20, 40], help="[10 20 40]")
    add("--strengths", type=float, nargs="+", default=list(STRENGTHS), help=f"[{' '.join(map(str, STRENGTHS))}]")
    add("--weights", default=SAMPLER, help="a sampler with a noise head [%(default)s]")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--limit", type=int, help="the first so many images only")
    return result


def run(options: argparse.Namespace) -> None:
    """Prints the table. Raises EvaluationError, FeaturesError and SourceError."""
    networks = load_networks(options.weights, None, options.device, options.dtype)
    if networks.sampler is None or not networks.sampler.generator.config.has_noise_head:
        raise EvaluationError(
            f"weights {options.weights!r} have no regression beside samples: there is no line between"
        )
    extractors = load_extractors(None, networks.regression.device, hed=False)
    photographs = Photographs(options.data, options.limit)
    settings = EvaluationSettings(tuple(options.quality), modes=("projected",), samples=1)
    points: list[Point] = []
    for strength in options.strengths:
        networks.sampler.options = replace(networks.sampler.options, strength=strength)
        report = evaluate(photographs, networks, settings, extractors)
        points += [Point(**vars(row), strength=strength) for row in report.rows if row.mode == "projected"]
    print(heading(COLUMNS))
    print(*(line(point, COLUMNS) for point in sorted(points, key=lambda point: point.quality)), sep="\n")
    over = f"Fréchet distances over {report.crops} crops of {CROP}x{CROP}"
    print(f"\n{report.images} images, {report.sampling}, one sample; {over}.")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(arguments))
    except (EvaluationError, FeaturesError, SourceError, OSError) as error:
        print(f"dial: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
