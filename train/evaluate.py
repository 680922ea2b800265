"""Evaluation: the columns of the paper's Table 1 (arXiv 2211.11827) for any weights on any data.

    python -m train.evaluate --weights runs/posterior/generator.safetensors --data val.tar --quality 5 10 20 30

From Python, `evaluate(Photographs(Path("val.tar")), load_networks("mmse"), EvaluationSettings(), {})` returns a Report
without Fréchet distances; pass `load_extractors(None, torch.device("cpu"))` as the last argument to include them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import Subsampling
from model.atomic import write_atomically
from model.features import FeaturesError
from model.weights import load
from pipeline.engine.options import REGRESSION, Options
from pipeline.engine.restorer import Restorer
from pipeline.inputs.listing import SourceError
from train.data.photographs import DATA_HELP, Photograph, Photographs
from train.frechet import CROPS_WANTED, Extractor, SplitMoments, load_extractors
from train.grid import FULL_DEVIATION, centre, deviation_picture, grid
from train.measures import Compressed, compress, truth_of
from train.restorations import DRAWN, MODES, Networks, Restoration, restorations
from train.table import Originals, Report, RowAccumulator, TableRow, columns, footnote, heading, line
from train.texture import FlatTexture

GRID_IMAGES = 4
"""Images shown in the grid."""

OnRows = Callable[[list[TableRow]], None]
OnImage = Callable[[int, Compressed, Mapping[str, Restoration]], None]


class EvaluationError(ValueError):
    """An evaluation that is not possible; the message says what to give instead."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate."""

    qualities: tuple[int, ...] = (5, 10, 20, 30)  # libjpeg's scale, 1..100
    sampling: Subsampling = Subsampling.S420
    modes: tuple[str, ...] | None = None  # of MODES; None: all that the networks support
    samples: int = 16  # K, per image; the paper's is 64
    seed: int = 0


MMSE_HELP = f"regression network to compare a sampler with [its own output, or {REGRESSION}]"


def load_networks(weights: str, mmse: str | None = None, device: str = "auto", dtype: str = "auto") -> Networks:
    """weights: of a sampler or a regression network, by shipped name or path. mmse: weights of another regression
    network to compare a sampler with; None takes the sampler's own regression output, or the shipped network if it has
    none. Raises EvaluationError."""
    try:
        config = load(weights).generator.config
        noisy = config.noise
        if not noisy and mmse is not None:
            raise EvaluationError(
                f"weights {weights!r} are those of a regression network: omit --mmse {mmse}, "
                "or give a sampler's weights"
            )
        estimator = mmse or (weights if config.has_regression else REGRESSION)
        regression = Restorer.from_pretrained(estimator, device, dtype, Options("mmse"))
        sampler = Restorer.from_pretrained(weights, device, dtype, Options("sample")) if noisy else None
        return Networks(regression, sampler)
    except ValueError as error:  # unusable weights, mode, device or dtype
        raise EvaluationError(str(error)) from error


def modes_of(settings: EvaluationSettings, networks: Networks) -> frozenset[str]:
    """The modes to evaluate. Raises EvaluationError for invalid settings and for modes that the networks do not
    support."""
    asked = frozenset(MODES if settings.modes is None else settings.modes)
    if asked - set(MODES):
        raise EvaluationError(f"modes {', '.join(sorted(asked - set(MODES)))}: expected some of {', '.join(MODES)}")
    bad = [quality for quality in settings.qualities if not 1 <= quality <= 100]
    if bad or not settings.qualities:
        raise EvaluationError(f"quality {', '.join(map(str, bad)) or 'missing'}: expected 1..100, libjpeg's scale")
    if settings.samples < 1:
        raise EvaluationError(f"samples {settings.samples}: expected at least 1, and 2 for a deviation")
    impossible = DRAWN if networks.sampler is None else frozenset({"noise"} if settings.samples < 2 else ())
    if settings.modes is None or not asked & impossible:
        return asked - impossible
    names = ", ".join(sorted(asked & impossible))
    if networks.sampler is None:
        raise EvaluationError(
            f"modes {names}: these are weights of a deterministic regression network, without samples; "
            "ask for plain and mmse, or give a sampler's weights"
        )
    raise EvaluationError(f"modes {names}: 1 sample has no deviation; expected 2 samples or more")


def evaluate(
    photographs: Iterable[Photograph],
    networks: Networks,
    settings: EvaluationSettings,
    extractors: Mapping[str, Extractor],
    *,
    on_rows: OnRows = lambda rows: None,
    on_image: OnImage = lambda position, compressed, found: None,
) -> Report:
    """Evaluates all modes at all qualities. `photographs` is iterated once for the originals, then once per quality.

    extractors: from `load_extractors`; empty for no Fréchet distances. on_rows: called with the rows of each quality.
    on_image: called with each image's position and restorations. Raises EvaluationError and SourceError."""
    modes_of(settings, networks)
    originals = measure_originals(photographs, settings.sampling, extractors)
    rows: list[TableRow] = []
    for quality in settings.qualities:
        found = measure_quality(
            photographs, networks, settings, quality, originals=originals, extractors=extractors, on_image=on_image
        )
        on_rows(found)
        rows += found
    features = originals.features.get("frechet", SplitMoments())
    return Report(
        sampling=settings.sampling.label,
        samples=settings.samples,
        seed=settings.seed,
        regression=networks.regression.digest,
        sampler=None if networks.sampler is None else networks.sampler.digest,
        images=originals.images,
        crops=features.count,
        floor=features.floor,
        rows=rows,
    )


@torch.inference_mode()
def measure_originals(
    photographs: Iterable[Photograph], sampling: Subsampling, extractors: Mapping[str, Extractor]
) -> Originals:
    """Statistics of the clean images, the same for all qualities. Raises EvaluationError if there is no image."""
    originals = Originals(features={name: SplitMoments() for name in extractors})
    for position, (_, image) in enumerate(tqdm(photographs, desc="originals", unit="img", leave=False)):
        for name, extract in extractors.items():
            originals.features[name].add_image(position, truth_of(image, sampling), extract)
        originals.patches.add(position, truth_of(image, sampling))
        originals.images += 1
    if not originals.images:
        raise EvaluationError("no image to evaluate on; expected at least one")
    return originals


@torch.inference_mode()
def measure_quality(
    photographs: Iterable[Photograph],
    networks: Networks,
    settings: EvaluationSettings,
    quality: int,
    *,
    originals: Originals,
    extractors: Mapping[str, Extractor],
    on_image: OnImage = lambda position, compressed, found: None,
) -> list[TableRow]:
    """One row for each mode, in the order of MODES, at `quality`; the qualities in the settings are not used."""
    modes = modes_of(settings, networks)
    accumulators = {mode: RowAccumulator(mode, extractors) for mode in MODES if mode in modes}
    truth = FlatTexture()
    bar = tqdm(photographs, desc=f"quality {quality}", total=originals.images, unit="img", leave=False)
    for position, (key, image) in enumerate(bar):
        compressed = compress(key, image, quality, settings.sampling)
        found = restorations(compressed, networks, modes, settings.samples, settings.seed)
        for mode, accumulator in accumulators.items():
            accumulator.add(compressed, found[mode], found["mmse"].image)
        truth.add(compressed.truth, found["mmse"].image)
        on_image(position, compressed, found)
    return [accumulator.row(quality, originals, truth) for accumulator in accumulators.values()]


class GridCollector:
    """Collects the rows of the grid: for each quality and each of the first images the centre crops of input, samples,
    mean, deviation, the regression's image and the truth."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, list[tuple[str, Tensor]]]] = []

    def on_image(self, position: int, compressed: Compressed, found: Mapping[str, Restoration]) -> None:
        """A callback of `evaluate`."""
        if position < GRID_IMAGES:
            self.add(compressed, found)

    def add(self, compressed: Compressed, found: Mapping[str, Restoration]) -> None:
        pictures = [("input", compressed.decoded)]
        drawn = found.get("projected") or found.get("sample")
        if drawn is not None:
            pictures += [(f"sample {number}", sample) for number, sample in enumerate(drawn.samples, 1)]
        if "mean" in found:
            pictures.append(("mean", found["mean"].image))
        if drawn is not None and drawn.deviation is not None:
            pictures.append((f"STD (white {FULL_DEVIATION:g})", deviation_picture(drawn.deviation)))
        pictures += [("mmse", found["mmse"].image), ("truth", compressed.truth)]
        title = f"q{compressed.bitstream.quality}"
        self.rows.append((title, [(name, centre(picture).clone()) for name, picture in pictures]))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        description="Compress clean photographs with Pillow, restore them, and print the paper's Table 1: PSNR, "
        "consistency, deviation over samples and Fréchet distances, by mode and quality.",
        epilog="modes: " + "; ".join(f"{mode}: {what}" for mode, what in MODES.items()),
    )
    add = result.add_argument
    add("--weights", required=True, metavar="W", help="shipped name or file of a sampler or a regression network")
    add("--mmse", metavar="W", help=MMSE_HELP)
    add("--data", type=Path, required=True, metavar="PATH", help=DATA_HELP)
    add(
        "--quality",
        type=int,
        nargs="+",
        default=[5, 10, 20, 30],
        metavar="Q",
        help="qualities, 1 to 100 [5 10 20 30]",
    )
    add("--sampling", default="4:2:0", metavar="S", help="chroma sampling: 4:2:0, 4:2:2, 4:4:0, 4:4:4, gray [4:2:0]")
    add(
        "--modes",
        nargs="+",
        choices=list(MODES),
        metavar="MODE",
        help="modes [all that the weights support]",
    )
    add("--samples", type=int, default=16, metavar="K", help="samples per image; the paper's is 64 [16]")
    add("--seed", type=int, default=0, help="seed of the noise [0]")
    add("--limit", type=int, metavar="N", help="use only the first N images")
    add("--inception", type=Path, metavar="FILE.pth", help="pytorch-fid's Inception weights; adds a column FID")
    add("--json", type=Path, metavar="FILE.json", help="write all figures to this file")
    add(
        "--grid",
        type=Path,
        metavar="FILE.png",
        help=f"write a grid of the first {GRID_IMAGES} images and their samples",
    )
    add("--device", default="auto", help="auto, cpu or cuda:N [auto]")
    add("--dtype", default="auto", help="dtype of the convolutions: auto, float32 or bfloat16 [auto]")
    return result


def run(options: argparse.Namespace) -> Report:
    """Evaluates and prints the table. Raises EvaluationError, FeaturesError, SourceError or OSError."""
    settings = settings_of(options)
    networks = load_networks(options.weights, options.mmse, options.device, options.dtype)
    modes_of(settings, networks)
    if networks.sampler is None:
        missing = ", ".join(mode for mode in MODES if mode in DRAWN)
        warn(
            f"weights {options.weights!r} are those of a regression network, which draws no samples: the table has "
            f"neither the modes {missing} nor the column STD"
        )
    extractors = load_extractors(options.inception, networks.regression.device)
    chosen = columns(networks.sampler is not None, "fid" in extractors)
    print(heading(chosen), flush=True)
    collector = GridCollector()
    report = evaluate(
        Photographs(options.data, options.limit),
        networks,
        settings,
        extractors,
        on_rows=lambda rows: print(*(line(row, chosen) for row in rows), sep="\n", flush=True),
        on_image=collector.on_image if options.grid else lambda position, compressed, found: None,
    )
    print(f"\n{footnote(report)}")
    if 0 < report.crops < CROPS_WANTED:
        warn(
            f"Fréchet distances over {report.crops} crops are biased upwards, {CROPS_WANTED} are recommended: compare "
            "them only with others on the same images, or give more images"
        )
    if options.json:
        names = {"weights": options.weights, "mmse": options.mmse, "data": str(options.data)}
        write_atomically(options.json, json.dumps(names | asdict(report), indent=1).encode())
    if options.grid:
        grid(collector.rows).save(options.grid, "PNG", optimize=True)
    return report


def settings_of(options: argparse.Namespace) -> EvaluationSettings:
    """The settings, checked before anything is loaded. Raises EvaluationError."""
    try:
        sampling = Subsampling.from_label(options.sampling)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"limit {options.limit}: expected at least 1 image")
    for path in (options.json, options.grid):
        if path is not None and not path.parent.is_dir():
            raise EvaluationError(f"{path}: there is no folder {path.parent}; create it, or name another file")
    modes = None if options.modes is None else tuple(options.modes)
    return EvaluationSettings(tuple(options.quality), sampling, modes, options.samples, options.seed)


def warn(message: str) -> None:
    """Prints to stderr, so that stdout holds only the table."""
    print(f"evaluate: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with a message if the evaluation is not possible."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (EvaluationError, FeaturesError, SourceError, OSError) as error:
        warn(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
