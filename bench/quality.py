"""Quality of restorations after `project_exact`: PSNR compared with plain decoding; for samplers also of one sample and
of the samples' mean compared with the regression, variety, Fréchet and sliced Wasserstein distances, texture in flat
areas; mismatches recounted by libjpeg-turbo.

python -m bench.quality --data val.tar
python -m bench.quality --data val.tar --weights runs/posterior/generator.safetensors

train/evaluate.py measures. A second table compares whole restorations of the same files: by this decoder, timed from
the file's bytes to the image in memory, and by the programs of bench/rivals.py that are on the PATH, timed as one
process for each file, which writes its output. The exit code is 1 when a certificate is false, and 2 when something
cannot be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.photographs import command_line
from bench.rivals import COLUMNS as BESIDE
from bench.rivals import PROGRAMS, Contest, Decoder, Figures, RivalError, choose, engine
from kernels import Subsampling
from model.features import FeaturesError
from pipeline.engine.options import SAMPLER
from pipeline.inputs.listing import SourceError
from train.data.photographs import Photographs
from train.evaluate import (
    MMSE_HELP,
    EvaluationError,
    EvaluationSettings,
    evaluate,
    load_networks,
    modes_of,
)
from train.frechet import CROP, CROPS_WANTED, Extractor, load_extractors
from train.restorations import MODES, Networks
from train.table import Column, Report, TableRow, heading, line

BEFORE_PROJECTION = "sample"
"""Samples without `project_exact`, which the command line never gives."""

COLUMNS: list[Column] = [
    ("quality", "quality", ""),
    ("mode", "mode", ""),
    ("PSNR dB", "psnr", ".2f"),
    ("gain dB", "gain", "+.2f"),
    ("to mmse dB", "to_mmse", "+.2f"),
    ("consistency", "consistency", ".4f"),
    ("mismatches", "mismatches", ""),
    ("in dispute", "disputed", ""),
    ("STD", "std", ".4f"),
    ("correlation", "correlation", ".3f"),
    ("Fréchet", "frechet", ".3f"),
    ("to mmse's", "frechet_ratio", ".3f"),
    ("Fréchet (HED)", "hed", ".3f"),
    ("to mmse's", "hed_ratio", ".3f"),
    ("SWD", "swd", ".1f"),
    ("to mmse's", "swd_ratio", ".3f"),
    ("lattice", "lattice", ".2f"),
    ("worst", "lattice_worst", ".2f"),
    ("deviation", "flat_deviation", ".2f"),
]


@dataclass(frozen=True)
class Compared(TableRow):
    """to_mmse: PSNR minus the regression's, dB. frechet_ratio, hed_ratio, swd_ratio: divided by the regression's."""

    to_mmse: float
    frechet_ratio: float | None
    hed_ratio: float | None
    swd_ratio: float | None


def compare(rows: list[TableRow]) -> list[Compared]:
    """rows: of one quality, with `mmse` among them."""
    (mmse,) = (row for row in rows if row.mode == "mmse")
    return [
        Compared(
            **vars(row),
            to_mmse=row.psnr - mmse.psnr,
            frechet_ratio=ratio(row.frechet, mmse.frechet),
            hed_ratio=ratio(row.hed, mmse.hed),
            swd_ratio=ratio(row.swd, mmse.swd),
        )
        for row in rows
    ]


def ratio(value: float | None, reference: float | None) -> float | None:
    """None when either is missing."""
    return value / reference if value is not None and reference else None


def columns(sampled: bool, extractors: Collection[str]) -> list[Column]:
    """Those that have figures. extractors: the names of the Fréchet distances."""
    missing = set() if sampled else {"std", "correlation"}
    for name in {"frechet", "hed"}.difference(extractors):
        missing |= {name, f"{name}_ratio"}
    return [column for column in COLUMNS if column[1] not in missing]


@dataclass(frozen=True)
class Tables:
    """Of one sampling. beside: this decoder and others on the same files."""

    report: Report
    rows: list[Compared]
    beside: list[Figures]

    @property
    def untrue(self) -> list[str]:
        """Where certificates differ from the recount."""
        names = [(row.quality, row.mode, row.disputed) for row in self.rows]
        names += [(row.quality, row.decoder, row.disputed) for row in self.beside]
        return [
            f"{count} of {self.report.sampling} quality {quality}, {name}" for quality, name, count in names if count
        ]


def measure(
    photographs: Photographs,
    networks: Networks,
    settings: EvaluationSettings,
    extractors: Mapping[str, Extractor],
    decoders: Mapping[str, Decoder],
) -> Tables:
    """Prints the tables. Raises EvaluationError, SourceError and RivalError."""
    rows: list[Compared] = []
    beside: list[Figures] = []
    contest = Contest(decoders)
    chosen = columns(networks.sampler is not None, extractors)

    def show(found: list[TableRow]) -> None:
        compared = compare(found)
        print(*(line(row, chosen) for row in compared), sep="\n", flush=True)
        rows.extend(compared)
        beside.extend(contest.finish(found[0].quality))

    print(heading(chosen), flush=True)
    report = evaluate(photographs, networks, settings, extractors, on_rows=show, on_image=contest.on_image)
    print(f"\n{footnote(report, networks.sampler is not None)}\n{legend(report.rows)}\n\n{heading(BESIDE)}")
    print(*(line(row, BESIDE) for row in beside), sep="\n", end="\n\n", flush=True)
    return Tables(report, rows, beside)


def footnote(report: Report, sampled: bool) -> str:
    """How many images, samples and crops the figures are over."""
    text = f"{report.images} images, {report.sampling}"
    if sampled:
        text += f", {report.samples} samples of each"
    return f"{text}; Fréchet distances over {report.crops} crops of {CROP}x{CROP}." if report.crops else f"{text}."


def legend(rows: Iterable[TableRow]) -> str:
    """The meaning of the texture columns, and the originals' values at each quality."""
    found = []
    for row in {row.quality: row for row in rows}.values():
        figures = (row.original_lattice, row.original_lattice_worst, row.original_flat_deviation)
        text = ", ".join("-" if figure is None else f"{figure:.2f}" for figure in figures)
        found.append(f"quality {row.quality}: {text} in {row.flat_windows} windows")
    return (
        "Lattice, mean and worst, and deviation (gray levels): of the luma of output - mmse in flat areas. "
        f"The originals', {'; '.join(found)}."
    )


def parser() -> argparse.ArgumentParser:
    result = command_line(__doc__)
    add = result.add_argument
    names = [program.name for program in PROGRAMS]
    labels = [sampling.label for sampling in Subsampling]
    add("--quality", type=int, nargs="+", default=[10, 20, 30, 40], help="[10 20 30 40]")
    add("--sampling", nargs="+", choices=labels, default=["4:2:0"], help="[4:2:0]")
    add("--weights", default=SAMPLER, help="a sampler, or a regression network [%(default)s]")
    add("--mmse", help=MMSE_HELP)
    add("--samples", type=int, default=16, help="draws of each image [%(default)s]")
    add("--no-frechet", action="store_true", help="without Fréchet distances and their weights")
    add(
        "--hed",
        action="store_true",
        help="also Fréchet distances by HED, which no loss uses, but which was trained on BSDS500",
    )
    add(
        "--programs",
        nargs="*",
        default=names,
        metavar="NAME",
        help=f"other decoders to compare with, or nothing [{' '.join(names)}]",
    )
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--json", type=Path, help="also write all figures to this file")
    return result


def run(options: argparse.Namespace) -> list[Tables]:
    """Measures each sampling. Raises EvaluationError, FeaturesError, SourceError, RivalError or OSError."""
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"limit {options.limit}: expected at least 1 image")
    if options.hed and options.no_frechet:
        raise EvaluationError("--hed and --no-frechet exclude each other: give one of them")
    if options.json is not None and not options.json.parent.is_dir():
        raise EvaluationError(f"{options.json}: there is no folder {options.json.parent}")
    programs, absent = choose(options.programs)
    networks = load_networks(options.weights, options.mmse, options.device, options.dtype)
    possible = modes_of(EvaluationSettings(tuple(options.quality), samples=options.samples), networks) - {
        BEFORE_PROJECTION
    }
    modes = tuple(mode for mode in MODES if mode in possible)
    extractors = {} if options.no_frechet else load_extractors(None, networks.regression.device, options.hed)
    decoders = {"ours, mmse": engine(networks.regression)}
    if networks.sampler is not None:
        decoders["ours, one sample"] = engine(networks.sampler)
    decoders |= {program.name: program.decode for program in programs}
    if absent:
        print(f"not on the PATH: {', '.join(absent)}\n")
    tables = []
    for label in options.sampling:
        settings = EvaluationSettings(tuple(options.quality), Subsampling.from_label(label), modes, options.samples)
        tables.append(measure(Photographs(options.data, options.limit), networks, settings, extractors, decoders))
    if extractors and tables[0].report.crops < CROPS_WANTED:
        say(
            f"Fréchet distances over fewer than {CROPS_WANTED} crops are overestimated: compare them in this table only"
        )
    if options.json:
        found = [
            asdict(t.report) | {"rows": [*map(asdict, t.rows)], "beside": [*map(asdict, t.beside)]} for t in tables
        ]
        names = {"weights": options.weights, "mmse": options.mmse, "data": str(options.data)}
        options.json.write_text(json.dumps(names | {"samplings": found}, indent=1))
    return tables


def say(message: str) -> None:
    print(f"quality: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        untrue = [text for table in run(options) for text in table.untrue]
    except (EvaluationError, FeaturesError, SourceError, RivalError, OSError) as error:
        say(str(error))
        return 2
    if untrue:
        say(f"certificates that are not true: {'; '.join(untrue)}")
    return int(bool(untrue))


if __name__ == "__main__":
    sys.exit(main())
