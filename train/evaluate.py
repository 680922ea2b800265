"""The columns of the paper's Table 1 (arXiv 2211.11827) for any weights on any data:

python -m train.evaluate --weights runs/posterior/generator.safetensors --data val.tar --quality 5 10 20 30

From Python: `evaluate(Photographs(Path("val.tar")), load_networks("mmse"), Settings(), {})` returns a Report, without
Fréchet distances; `load_extractors(None, torch.device("cpu"))` in the last place adds them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import Subsampling
from model.features import FeaturesError
from model.weights import load, write_whole
from pipeline.engine.options import REGRESSION, Options
from pipeline.engine.restorer import Restorer
from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.source import Item, read
from pipeline.jpeg.errors import JpegError
from pipeline.jpeg.fallback import fallback_decode
from train.grid import FULL_DEVIATION, centre, deviation_picture, grid
from train.measures import (
    CROPS_WANTED,
    Compressed,
    Extractor,
    Halves,
    add_crops,
    compress,
    load_extractors,
    truth_of,
)
from train.restorations import DRAWN, MODES, Networks, Restoration, restorations
from train.table import Originals, Report, Row, Tally, columns, footnote, heading, line
from train.texture import Residual

MAX_PIXELS = 1 << 28
SHOWN_IMAGES = 4

Photograph = tuple[str, Tensor]
"""An image's key, on which its noise depends, and the image, [3, H, W] uint8."""

Show = Callable[[list[Row]], None]
Look = Callable[[int, Compressed, Mapping[str, Restoration]], None]


class EvaluationError(ValueError):
    """An evaluation that cannot be made; the message says what to give instead."""


@dataclass(frozen=True)
class Settings:
    """modes: of MODES, None for all that the networks can serve. samples: K, of each image; the paper takes 64."""

    qualities: tuple[int, ...] = (5, 10, 20, 30)
    sampling: Subsampling = Subsampling.S420
    modes: tuple[str, ...] | None = None
    samples: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Photographs:
    """The clean images of a tar, a folder or a file, RGB, one at a time in memory and in a fixed order: all of them, or
    the first `limit`. Iterating reads them anew; it raises SourceError for one that cannot be read, naming it, and when
    there is none."""

    path: Path
    limit: int | None = None

    def __iter__(self) -> Iterator[Photograph]:
        count = 0
        for item in read(list_sources(self.path)):
            if count == self.limit:
                return
            if isinstance(item, Item):
                yield item.key, _decoded(item, self.path)
                count += 1
        if not count:
            raise SourceError(f"{self.path}: no JPEG image in it; give a tar, a folder or a file of clean photographs")


def _decoded(item: Item, path: Path) -> Tensor:
    way_out = "take it out of the set, or repair it"
    if item.data is None:
        raise SourceError(f"{item.source} (of {path}): {item.error}; {way_out}")
    try:
        pixels = torch.from_numpy(fallback_decode(item.data, MAX_PIXELS).pixels.copy())
    except JpegError as error:
        raise SourceError(f"{item.source} (of {path}): {error}; {way_out}") from error
    return pixels.expand(3, -1, -1)


MMSE_HELP = f"another regression beside a sampler [its own, or {REGRESSION}]"


def load_networks(weights: str, mmse: str | None = None, device: str = "auto", dtype: str = "auto") -> Networks:
    """weights: a sampler's or a regression network's, by shipped name or path. mmse: another regression network's
    beside a sampler; None takes the sampler's own output, or where it has none the shipped network. Raises
    EvaluationError."""
    try:
        config = load(weights).generator.config
        noisy = config.noise
        if not noisy and mmse is not None:
            raise EvaluationError(
                f"weights {weights!r} are those of a regression network: give them without --mmse {mmse}, "
                "or give weights that draw samples"
            )
        estimator = mmse or (weights if config.regresses else REGRESSION)
        regression = Restorer.from_pretrained(estimator, device, dtype, Options("mmse"))
        sampler = Restorer.from_pretrained(weights, device, dtype, Options("sample")) if noisy else None
        return Networks(regression, sampler)
    except ValueError as error:  # of weights, a mode, a device or a number type
        raise EvaluationError(str(error)) from error


def modes_of(settings: Settings, networks: Networks) -> frozenset[str]:
    """Raises EvaluationError for settings that cannot be, and for modes that the networks cannot serve."""
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
            f"modes {names}: these weights are deterministic, trained with MSE, and draw no samples; "
            "ask for plain and mmse, or give weights that take noise"
        )
    raise EvaluationError(f"modes {names}: the deviation of 1 sample is unknown; expected 2 samples or more")


def evaluate(
    photographs: Iterable[Photograph],
    networks: Networks,
    settings: Settings,
    extractors: Mapping[str, Extractor],
    *,
    show: Show = lambda rows: None,
    look: Look = lambda place, compressed, found: None,
) -> Report:
    """All columns, all modes, all qualities. `photographs` is iterated anew for each quality, and once before.

    extractors: `load_extractors`'s, or none for no Fréchet distances. show: given the rows of a quality when they are
    there. look: given each image's restorations, with its place. Raises EvaluationError, and SourceError."""
    modes_of(settings, networks)
    originals = measure_originals(photographs, settings.sampling, extractors)
    rows: list[Row] = []
    for quality in settings.qualities:
        found = measure_quality(
            photographs, networks, settings, quality, originals=originals, extractors=extractors, look=look
        )
        show(found)
        rows += found
    features = originals.features.get("frechet", Halves())
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
    """Once for all qualities. Raises EvaluationError when there is no image."""
    originals = Originals(features={name: Halves() for name in extractors})
    for place, (_, image) in enumerate(tqdm(photographs, desc="originals", unit="img", leave=False)):
        for name, extract in extractors.items():
            add_crops(originals.features[name], place, truth_of(image, sampling), extract)
        originals.patches.add(place, truth_of(image, sampling))
        originals.images += 1
    if not originals.images:
        raise EvaluationError("no image to evaluate on; expected one at least")
    return originals


@torch.inference_mode()
def measure_quality(
    photographs: Iterable[Photograph],
    networks: Networks,
    settings: Settings,
    quality: int,
    *,
    originals: Originals,
    extractors: Mapping[str, Extractor],
    look: Look = lambda place, compressed, found: None,
) -> list[Row]:
    """One row for each mode, in the order of MODES, at one quality, whatever the settings' own."""
    modes = modes_of(settings, networks)
    tallies = {mode: Tally(mode, extractors) for mode in MODES if mode in modes}
    truth = Residual()
    bar = tqdm(photographs, desc=f"quality {quality}", total=originals.images, unit="img", leave=False)
    for place, (key, image) in enumerate(bar):
        compressed = compress(key, image, quality, settings.sampling)
        found = restorations(compressed, networks, modes, settings.samples, settings.seed)
        for mode, tally in tallies.items():
            tally.add(compressed, found[mode], found["mmse"].image)
        truth.add(compressed.truth, found["mmse"].image)
        look(place, compressed, found)
    return [tally.row(quality, originals, truth) for tally in tallies.values()]


class Sheet:
    """Collects the grid: for each quality and each of the first images the input, samples, mean, deviation, the
    regression's image and the truth, their middles."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, list[tuple[str, Tensor]]]] = []

    def look(self, place: int, compressed: Compressed, found: Mapping[str, Restoration]) -> None:
        if place < SHOWN_IMAGES:
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
        "consistency, variety, Fréchet distances, by mode and quality.",
        epilog="modes: " + "; ".join(f"{mode}: {what}" for mode, what in MODES.items()),
    )
    add = result.add_argument
    add("--weights", required=True, metavar="W", help="a shipped name or a file: a sampler, or a regression network")
    add("--mmse", metavar="W", help=MMSE_HELP)
    add("--data", type=Path, required=True, metavar="PATH", help="clean photographs: a tar, a folder or a JPEG file")
    add("--quality", type=int, nargs="+", default=[5, 10, 20, 30], metavar="Q", help="1 to 100 [5 10 20 30]")
    add("--sampling", default="4:2:0", metavar="S", help="chroma sampling: 4:2:0, 4:2:2, 4:4:0, 4:4:4, gray [4:2:0]")
    add("--modes", nargs="+", choices=list(MODES), metavar="MODE", help="[all that the weights can serve]")
    add("--samples", type=int, default=16, metavar="K", help="draws of each image; the paper's are 64 [16]")
    add("--seed", type=int, default=0, help="of the noise [0]")
    add("--limit", type=int, metavar="N", help="the first so many images only")
    add("--inception", type=Path, metavar="FILE.pth", help="pytorch-fid's Inception weights: prints FID too")
    add("--json", type=Path, metavar="FILE.json", help="write all figures there")
    add("--grid", type=Path, metavar="FILE.png", help=f"a picture of the first {SHOWN_IMAGES} images and their samples")
    add("--device", default="auto", help="auto, cpu or cuda:N [auto]")
    add("--dtype", default="auto", help="auto, float32 or bfloat16: the network's convolutions [auto]")
    return result


def run(options: argparse.Namespace) -> Report:
    """Prints the table. Raises EvaluationError, FeaturesError, SourceError or OSError."""
    settings = settings_of(options)
    networks = load_networks(options.weights, options.mmse, options.device, options.dtype)
    modes_of(settings, networks)
    if networks.sampler is None:
        missing = ", ".join(mode for mode in MODES if mode in DRAWN)
        say(f"weights {options.weights!r} are deterministic, trained with MSE: no samples, so no {missing}, no STD")
    extractors = load_extractors(options.inception, networks.regression.device)
    chosen = columns(networks.sampler is not None, "fid" in extractors)
    print(heading(chosen), flush=True)
    sheet = Sheet()
    report = evaluate(
        Photographs(options.data, options.limit),
        networks,
        settings,
        extractors,
        show=lambda rows: print(*(line(row, chosen) for row in rows), sep="\n", flush=True),
        look=sheet.look if options.grid else lambda place, compressed, found: None,
    )
    print(f"\n{footnote(report)}")
    if 0 < report.crops < CROPS_WANTED:
        say(
            f"Fréchet distances over {report.crops} crops, fewer than the {CROPS_WANTED} wanted, are too large: "
            "compare them only with others of this very set, or give more images"
        )
    if options.json:
        names = {"weights": options.weights, "mmse": options.mmse, "data": str(options.data)}
        write_whole(options.json, json.dumps(names | asdict(report), indent=1).encode())
    if options.grid:
        grid(sheet.rows).save(options.grid, "PNG", optimize=True)
    return report


def settings_of(options: argparse.Namespace) -> Settings:
    """What can be checked before anything is loaded, is. Raises EvaluationError."""
    try:
        sampling = Subsampling.from_label(options.sampling)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"limit {options.limit}: expected at least 1 image")
    for path in (options.json, options.grid):
        if path is not None and not path.parent.is_dir():
            raise EvaluationError(f"{path}: there is no folder {path.parent}; make it, or name another file")
    modes = None if options.modes is None else tuple(options.modes)
    return Settings(tuple(options.quality), sampling, modes, options.samples, options.seed)


def say(message: str) -> None:
    print(f"evaluate: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with a message when the evaluation cannot be made."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (EvaluationError, FeaturesError, SourceError, OSError) as error:
        say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
