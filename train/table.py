"""Rows of the paper's Table 1 (arXiv 2211.11827): summed up over images, and printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from train.measures import CROP, Compressed, Correlation, Extractor, Halves, add_crops, consistency, psnr
from train.restorations import Restoration
from train.texture import Residual
from train.wasserstein import Patches


@dataclass(frozen=True)
class Row:
    """One mode (see MODES) at one quality: means of the images' values, each image's first sample standing for all but
    `std` and `correlation`.

    psnr: dB, 8 bits. gain: over plain decode, dB. consistency: the RMSE, gray levels per pixel, between what Pillow
    makes of the original and of the output, compressed alike. mismatches: quantised coefficients that differ, of
    `coefficients`, all images together, counted on the output compressed again. disputed: images of which the
    certificate says another number than was counted. std: over the samples, image range 0..1, mean over pixels and
    channels. correlation: of that deviation with |X - mmse|, over all pixels of all images; the error of one X being
    one draw, a perfect sampler too stays well below 1. frechet: distance to the originals, of all crops of both.
    frechet_halves: the same between one half's originals and the other half's outputs, to be compared with the
    report's floor. fid, hed: as `frechet`, with the features of Inception and of HED. swd: the sliced Wasserstein
    distance to the originals, see train/wasserstein.py.

    In flat areas, of the luma of output - mmse, see train/texture.py: lattice, the mean over frequencies, and
    lattice_worst; flat_deviation, gray levels. original_...: the same of original - mmse. flat_windows: how many both
    are over. None: does not exist for this mode, or was not asked for."""

    quality: int
    mode: str
    psnr: float
    gain: float
    consistency: float
    mismatches: int
    coefficients: int
    disputed: int | None
    std: float | None
    correlation: float | None
    frechet: float | None
    frechet_halves: float | None
    fid: float | None
    hed: float | None
    swd: float | None
    lattice: float | None
    lattice_worst: float | None
    flat_deviation: float | None
    original_lattice: float | None
    original_lattice_worst: float | None
    original_flat_deviation: float | None
    flat_windows: int


@dataclass(frozen=True)
class Report:
    """regression, sampler: the weights' digests. crops: how many the Fréchet distances are over, on either side; floor:
    the distance between two halves of the originals, the images at even and those at odd places."""

    sampling: str
    samples: int
    seed: int
    regression: str
    sampler: str | None
    images: int
    crops: int
    floor: float | None
    rows: list[Row]


@dataclass
class Originals:
    """Of the clean images: how many there are, their crops' features by extractor, and their patches."""

    images: int = 0
    features: dict[str, Halves] = field(default_factory=dict)
    patches: Patches = field(default_factory=Patches)


class Tally:
    """Sums of one mode's figures over the images of one quality. Outputs of any other program will do too: no more than
    `Restoration(image)` is needed of them, and without `mmse` texture is not measured."""

    def __init__(self, mode: str, extractors: Mapping[str, Extractor]) -> None:
        self.mode = mode
        self.extractors = extractors
        self.images = self.mismatches = self.coefficients = 0
        self.psnr = self.plain = self.consistency = 0.0
        self.disputed: int | None = None
        self.std: float | None = None
        self.correlation = Correlation()
        self.features = {name: Halves() for name in extractors}
        self.patches, self.residual = Patches(), Residual()

    def add(self, compressed: Compressed, restoration: Restoration, mmse: Tensor | None = None) -> None:
        """The next image; `mmse` [C, H, W] uint8 is the regression's, which the deviation is to tell the error of, and
        from which texture is measured."""
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
            add_crops(self.features[name], self.images, output, extract)
        if mmse is not None:
            self.patches.add(self.images, output)
            self.residual.add(output, mmse)
        self.images += 1

    def row(self, quality: int, originals: Originals, truth: Residual | None = None) -> Row:
        """truth: the originals' residual at this quality. Raises ZeroDivisionError without any image."""
        reference, own, n = originals.features, self.features, self.images
        truth = truth or Residual()
        return Row(
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
            frechet=reference["frechet"].distance(own["frechet"]) if "frechet" in own else None,
            frechet_halves=reference["frechet"].crossed(own["frechet"]) if "frechet" in own else None,
            fid=reference["fid"].distance(own["fid"]) if "fid" in own else None,
            hed=reference["hed"].distance(own["hed"]) if "hed" in own else None,
            swd=originals.patches.distance(self.patches),
            lattice=self.residual.lattice,
            lattice_worst=self.residual.lattice_worst,
            flat_deviation=self.residual.deviation,
            original_lattice=truth.lattice,
            original_lattice_worst=truth.lattice_worst,
            original_flat_deviation=truth.deviation,
            flat_windows=self.residual.windows,
        )


Column = tuple[str, str, str]
"""Heading, field of a Row and format."""

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
    """Those that can hold something: with samples, and with Inception's weights."""
    missing = (() if sampled else ("std", "correlation")) + (() if fid else ("fid",))
    return [column for column in COLUMNS if column[1] not in missing]


def heading(chosen: list[Column]) -> str:
    """The first two lines of the table, in Markdown."""
    return f"| {' | '.join(title for title, _, _ in chosen)} |\n|{' --- |' * len(chosen)}"


def line(row: object, chosen: list[Column]) -> str:
    """A row of the table, of anything that has the columns' fields; what does not exist is a dash."""
    values = ((getattr(row, name), form) for _, name, form in chosen)
    return f"| {' | '.join('-' if value is None else format(value, form) for value, form in values)} |"


def footnote(report: Report) -> str:
    """What the table's distances are over, and their floor."""
    text = f"{report.images} images, {report.sampling}; Fréchet distances over {report.crops} crops of {CROP}x{CROP}. "
    if report.floor is None:
        return f"{text}Halves need two crops or more at even and at odd places each."
    return (
        f"{text}The floor of `halves`, the distance between the originals at even and those at odd places: "
        f"{report.floor:.3f}."
    )
