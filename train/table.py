"""Rows of the paper's Table 1 (arXiv 2211.11827): accumulated over images, and printed as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from train.frechet import CROP, Extractor, SplitMoments
from train.measures import Compressed, Correlation, consistency, psnr
from train.restorations import Restoration
from train.texture import FlatTexture
from train.wasserstein import PatchSet


@dataclass(frozen=True)
class TableRow:
    """One mode (see MODES) at one quality. Figures are means over images of the first sample, except `std` and
    `correlation`, which are over all samples. None: undefined for this mode, or not requested."""

    quality: int  # libjpeg's scale, 1..100
    mode: str
    psnr: float  # dB, 8 bits
    gain: float  # dB, PSNR above that of plain decode
    consistency: float  # RMSE between the decoded JPEGs of original and output, gray levels
    mismatches: int  # quantised coefficients of the recompressed output that differ, in all images
    coefficients: int  # quantised coefficients in all images
    disputed: int | None  # images whose certificate states another number of mismatches than was counted
    std: float | None  # deviation over the samples, range 0..1, mean over pixels and channels
    correlation: float | None  # of that deviation with |X - mmse|, over all pixels. X is a single draw, so that it
    # stays well below 1 for a perfect sampler, too. It grows with the number of samples (2: 0.29, 4: 0.38, 16: 0.45)
    frechet: float | None  # Fréchet distance to the originals, over all crops of both
    frechet_halves: float | None  # between halves of different images; compare it with the report's floor
    fid: float | None  # as `frechet`, with Inception's features
    hed: float | None  # as `frechet`, with HED's features
    swd: float | None  # sliced Wasserstein distance to the originals (train/wasserstein.py)
    # Texture of the luma of output - mmse in flat areas (train/texture.py):
    lattice: float | None  # mean over the frequencies
    lattice_worst: float | None  # maximum over the frequencies
    flat_deviation: float | None  # gray levels
    original_lattice: float | None  # the same of original - mmse
    original_lattice_worst: float | None
    original_flat_deviation: float | None
    flat_windows: int  # number of windows of both


@dataclass(frozen=True)
class Report:
    """The result of an evaluation."""

    sampling: str  # label of the chroma sampling
    samples: int  # per image
    seed: int
    regression: str  # digest of the regression network's weights
    sampler: str | None  # digest of the sampler's weights
    images: int
    crops: int  # on either side of the Fréchet distances
    floor: float | None  # Fréchet distance between the originals at even and at odd positions
    rows: list[TableRow]


@dataclass
class Originals:
    """Statistics of the clean images: their number, their crops' features by extractor, and their patches."""

    images: int = 0
    features: dict[str, SplitMoments] = field(default_factory=dict)
    patches: PatchSet = field(default_factory=PatchSet)


class RowAccumulator:
    """Sums of one mode's figures over the images of one quality. It also takes outputs of other programs, as
    `Restoration(image)`; without `mmse` texture and SWD are not measured."""

    def __init__(self, mode: str, extractors: Mapping[str, Extractor]) -> None:
        self.mode = mode
        self.extractors = extractors
        self.images = self.mismatches = self.coefficients = 0
        self.psnr = self.plain = self.consistency = 0.0
        self.disputed: int | None = None
        self.std: float | None = None
        self.correlation = Correlation()
        self.features = {name: SplitMoments() for name in extractors}
        self.patches, self.texture = PatchSet(), FlatTexture()

    def add(self, compressed: Compressed, restoration: Restoration, mmse: Tensor | None = None) -> None:
        """Adds the next image. mmse: the regression's image [C, H, W] uint8, the reference of correlation and
        texture."""
        output, truth = restoration.image, compressed.truth
        found = consistency(output, compressed)
        self.psnr += psnr(output, truth)
        self.plain += psnr(compressed.decoded, truth)
        self.consistency += found.rmse
        self.mismatches += found.mismatches
        self.coefficients += compressed.bitstream.coefficients.count
        if restoration.claimed is not None:
            self.disputed = (self.disputed or 0) + (restoration.claimed != found.mismatches)
        if restoration.deviation is not None:
            self.std = (self.std or 0.0) + float(restoration.deviation.double().mean()) / 255
            if mmse is not None:
                self.correlation.add(restoration.deviation, (truth.float() - mmse.float()).abs())
        for name, extract in self.extractors.items():
            self.features[name].add_image(self.images, output, extract)
        if mmse is not None:
            self.patches.add(self.images, output)
            self.texture.add(output, mmse)
        self.images += 1

    def row(self, quality: int, originals: Originals, truth: FlatTexture | None = None) -> TableRow:
        """The means. truth: texture of the originals at this quality. Raises ZeroDivisionError without any image."""
        n, truth = self.images, truth or FlatTexture()
        distances = {name: originals.features[name].distance(own) for name, own in self.features.items()}
        halves = {name: originals.features[name].cross_distance(own) for name, own in self.features.items()}
        return TableRow(
            quality=quality,
            mode=self.mode,
            psnr=self.psnr / n,
            gain=(self.psnr - self.plain) / n,
            consistency=self.consistency / n,
            mismatches=self.mismatches,
            coefficients=self.coefficients,
            disputed=self.disputed,
            std=None if self.std is None else self.std / n,
            correlation=self.correlation.value,
            frechet=distances.get("frechet"),
            frechet_halves=halves.get("frechet"),
            fid=distances.get("fid"),
            hed=distances.get("hed"),
            swd=originals.patches.distance(self.patches),
            lattice=self.texture.lattice,
            lattice_worst=self.texture.lattice_worst,
            flat_deviation=self.texture.deviation,
            original_lattice=truth.lattice,
            original_lattice_worst=truth.lattice_worst,
            original_flat_deviation=truth.deviation,
            flat_windows=self.texture.windows,
        )


Column = tuple[str, str, str]
"""Heading, field of TableRow, format specification."""

COLUMNS: tuple[Column, ...] = (
    ("quality", "quality", ""),
    ("mode", "mode", ""),
    ("PSNR dB", "psnr", ".2f"),
    ("gain dB", "gain", "+.2f"),
    ("consistency", "consistency", ".4f"),
    ("mismatches", "mismatches", ""),
    ("STD", "std", ".4f"),
    ("correlation", "correlation", ".3f"),
    ("Fréchet", "frechet", ".3f"),
    ("halves", "frechet_halves", ".3f"),
    ("FID", "fid", ".2f"),
)


def columns(sampled: bool, fid: bool) -> list[Column]:
    """The columns that can hold values. sampled, fid: whether there are samples and Inception weights."""
    missing = (() if sampled else ("std", "correlation")) + (() if fid else ("fid",))
    return [column for column in COLUMNS if column[1] not in missing]


def heading(chosen: list[Column]) -> str:
    """The first two lines of the table in Markdown."""
    return f"| {' | '.join(title for title, _, _ in chosen)} |\n|{' --- |' * len(chosen)}"


def line(row: object, chosen: list[Column]) -> str:
    """One line of the table in Markdown, of any object with the columns' fields; a dash stands for None."""
    values = ((getattr(row, name), form) for _, name, form in chosen)
    return f"| {' | '.join('-' if value is None else format(value, form) for value, form in values)} |"


def footnote(report: Report) -> str:
    """States the numbers of images and crops, and the floor of the Fréchet distances."""
    text = f"{report.images} images, {report.sampling}; Fréchet distances over {report.crops} crops of {CROP}x{CROP}. "
    if report.floor is None:
        return f"{text}Halves need two crops or more at even and at odd positions each."
    return (
        f"{text}The floor of `halves`, the distance between the originals at even and at odd positions: "
        f"{report.floor:.3f}."
    )
