"""Which term does what: short runs from the regression weights, with and without each, in the columns of the paper's
Table 1 (arXiv 2211.11827).

python -m bench.ablation --train data/train --data val.tar

Five set-ups, each with three seeds: the game without C, with C alone, with C and FM, with C and SM, and with all.
"Short" is some hundred steps of small crops: the directions show, the figures are far from a finished sampler's. What
is done is kept in --output, and the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import torch

from model.atomic import write_atomically
from train.config import load_config
from train.evaluate import EvaluationSettings, Photographs, load_networks, measure_originals, measure_quality
from train.frechet import load_extractors
from train.table import Originals, TableRow
from train.trainer import train

CONFIG = Path(__file__).parents[1] / "train/configs/game.yaml"

QUALITY = 10

ROWS = {
    "no C": ["game.consistency=[0,0]", "game.first_moment=3", "game.second_moment=0"],
    "C": ["game.first_moment=0", "game.second_moment=0"],
    "C + FM": ["game.first_moment=3", "game.second_moment=0"],
    "C + SM": ["game.first_moment=0", "game.second_moment=100"],
    "C + FM + SM": ["game.first_moment=3", "game.second_moment=100"],
}
"""Overrides of game.yaml; V and R1 are in all."""

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
"""What makes the runs short, in all rows alike."""

COLUMNS = {"consistency": ".3f", "psnr": ".3f", "std": ".4f", "frechet": ".1f"}


@dataclass(frozen=True)
class Figures:
    """Of one run's samples, not projected; see train.table.TableRow. row: of ROWS, or mmse, which draws none."""

    row: str
    seed: int
    consistency: float
    psnr: float
    std: float | None
    frechet: float | None


class Judge:
    """Measures weights on photographs; what only these decide is measured once, and when it is first needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.photographs, self.samples = Photographs(options.data, options.limit), options.samples
        self.extractors = load_extractors(None, torch.device("cpu"))
        self._originals: Originals | None = None

    def figures(self, name: str, seed: int, weights: str, mode: str) -> Figures:
        settings = EvaluationSettings((QUALITY,), modes=(mode,), samples=self.samples, seed=seed)
        if self._originals is None:
            self._originals = measure_originals(self.photographs, settings.sampling, self.extractors)
        row: TableRow = measure_quality(
            self.photographs,
            load_networks(weights),
            settings,
            QUALITY,
            originals=self._originals,
            extractors=self.extractors,
        )[0]
        return Figures(name, seed, row.consistency, row.psnr, row.std, row.frechet)


def one_run(name: str, seed: int, judge: Judge, options: argparse.Namespace) -> Figures:
    """Trains and measures, unless that is done."""
    folder = options.output / f"{name.replace(' ', '')}-{seed}"
    done = folder / "figures.json"
    if done.exists():
        return Figures(**json.loads(done.read_text()))
    if name in ROWS:
        overrides = [*SMALL, *ROWS[name], f"data.train=[{options.train}]", f"run.output={folder}", f"run.seed={seed}"]
        weights = train(load_config(CONFIG, [*overrides, f"optimiser.steps={options.steps}"]))
        figures = judge.figures(name, seed, str(weights), "sample")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        figures = judge.figures(name, seed, name, "mmse")
    write_atomically(done, json.dumps(asdict(figures)).encode())
    return figures


def table(figures: list[Figures]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [
        "| terms beside V and R1 | consistency RMSE | PSNR dB | STD | Fréchet |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(entry.row for entry in figures):
        cells = []
        for column, form in COLUMNS.items():
            values = [getattr(entry, column) for entry in figures if entry.row == name]
            spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
            cells.append("-" if None in values else f"{mean(values):{form}}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="PATH", help="tar shards or a folder of photographs")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="others, to measure on")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="[runs/ablation]")
    parser.add_argument("--steps", type=int, default=120, help="of each run [120]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row [3]")
    parser.add_argument("--samples", type=int, default=2, help="draws of each image, for the STD [2]")
    parser.add_argument("--limit", type=int, help="measure on the first so many images only")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    judge = Judge(options)
    figures = [one_run("mmse", 0, judge, options)]
    figures += [one_run(name, seed, judge, options) for seed in range(options.seeds) for name in ROWS]
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
