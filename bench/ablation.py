"""Ablation of the paper's loss: short training runs from the regression weights with and without each term, in the
columns of Table 1 (arXiv 2211.11827).

python -m bench.ablation --train data/train --data val.tar

Five configurations, each with three seeds: the game without C, with C alone, with C and FM, with C and SM, and with all
three. A run has some hundred steps of small crops: it shows directions, not a finished sampler. Results are kept
in --output, and the same command resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import torch

from bench.markdown import header, line
from bench.photographs import command_line
from kernels import Subsampling
from model.atomic import write_atomically
from pipeline.inputs.listing import SourceError
from train.checks import ConfigError
from train.config import load_config
from train.data.photographs import Photographs
from train.data.plan import LoaderError
from train.evaluate import EvaluationSettings, load_networks, measure_originals, measure_quality
from train.frechet import load_extractors
from train.state import TrainingError
from train.table import Originals
from train.trainer import train

CONFIG = Path(__file__).parents[1] / "train/configs/game.yaml"

QUALITY = 10

ROWS = {
    "FM": ["game.consistency=[0,0]", "game.first_moment=3", "game.second_moment=0"],
    "C": ["game.first_moment=0", "game.second_moment=0"],
    "C + FM": ["game.first_moment=3", "game.second_moment=0"],
    "C + SM": ["game.first_moment=0", "game.second_moment=100"],
    "C + FM + SM": ["game.first_moment=3", "game.second_moment=100"],
}
"""Overrides of game.yaml; every configuration has V and R1."""

SMALL = [
    "run.device=cpu",
    "run.compile=false",
    "run.log_every=50",
    "run.save_every=100",
    "run.validate_every=100000",
    "data.loader=memory",
    "data.crop=64",
    "data.batch=8",
    "critic.features=32",
    "critic.most_features=128",
    "critic.halvings=3",
    "game.perceptual=0",
    "game.r1_every=4",
    "game.moment_images=4",
    "game.samples=4",
    "game.moments_every=2",
    "game.consistency=[1,10]",
    "game.adversarial=0.02",
    "optimiser.learning_rate=1e-3",
    "optimiser.warmup=20",
    "optimiser.ema=0.98",
    f"degradation.quality=[{QUALITY},{QUALITY}]",
    f"degradation.quality_mean={QUALITY}",
    "degradation.perturbed=0",
    "degradation.samplings={'4:2:0': 1}",
]
"""Overrides that make the runs short, the same in all rows."""

COLUMNS = {"consistency": ".3f", "psnr": ".3f", "std": ".4f", "frechet": ".1f"}


@dataclass(frozen=True)
class Figures:
    """Of one run's samples, without projection; units as in train.table.TableRow. row: of ROWS, or `mmse`, without
    STD."""

    row: str
    seed: int
    consistency: float
    psnr: float
    std: float | None
    frechet: float | None


class Judge:
    """Measures weights on photographs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.photographs, self.samples = Photographs(options.data, options.limit), options.samples
        self.extractors = load_extractors(None, torch.device("cpu"))

    @cached_property
    def originals(self) -> Originals:
        """The same for all weights; not measured when every run is done already."""
        return measure_originals(self.photographs, Subsampling.S420, self.extractors)

    def figures(self, name: str, seed: int, weights: str, mode: str) -> Figures:
        settings = EvaluationSettings((QUALITY,), modes=(mode,), samples=self.samples, seed=seed)
        row, *_ = measure_quality(
            self.photographs,
            load_networks(weights),
            settings,
            QUALITY,
            originals=self.originals,
            extractors=self.extractors,
        )
        return Figures(name, seed, row.consistency, row.psnr, row.std, row.frechet)


def one_run(name: str, seed: int, judge: Judge, options: argparse.Namespace) -> Figures:
    """Trains and measures one row with one seed, or reads what an earlier command found. Raises
    ConfigError if that had other options."""
    folder = options.output / f"{name.replace(' ', '')}-{seed}"
    done = folder / "figures.json"
    overrides = [*SMALL, *ROWS.get(name, []), f"data.train=[{options.train}]", f"optimiser.steps={options.steps}"]
    settings = {"overrides": overrides, "data": str(options.data), "limit": options.limit, "samples": options.samples}
    if done.exists():
        found = json.loads(done.read_text())
        if found["settings"] != settings:
            raise ConfigError(f"{done} is of a command with other options: give these, or another --output")
        return Figures(**found["figures"])
    if name in ROWS:
        weights = train(load_config(CONFIG, [*overrides, f"run.output={folder}", f"run.seed={seed}"]))
        figures = judge.figures(name, seed, str(weights), "sample")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        figures = judge.figures(name, seed, name, "mmse")
    write_atomically(done, json.dumps({"settings": settings, "figures": asdict(figures)}).encode())
    return figures


def table(figures: list[Figures]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [header(["terms beside V and R1", "consistency RMSE", "PSNR dB", "STD", "Fréchet"])]
    for name in dict.fromkeys(entry.row for entry in figures):
        cells = [name]
        for column, form in COLUMNS.items():
            values = [getattr(entry, column) for entry in figures if entry.row == name]
            spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
            cells.append("-" if None in values else f"{mean(values):{form}}{spread}")
        lines.append(line(cells))
    return "\n".join(lines)


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument(
        "--train", required=True, metavar="PATH", help="photographs to train on: tar shards or a folder"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="[runs/ablation]")
    parser.add_argument("--steps", type=int, default=120, help="of each run [120]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row [3]")
    parser.add_argument("--samples", type=int, default=2, help="draws of each image, for the STD [2]")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    judge = Judge(options)
    try:
        figures = [one_run("mmse", 0, judge, options)]
        figures += [one_run(name, seed, judge, options) for seed in range(options.seeds) for name in ROWS]
    except (SourceError, ConfigError, LoaderError, TrainingError) as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
