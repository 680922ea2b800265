"""What the paper's Table 1 measures (arXiv 2211.11827, section 5), each computed so that it can be added up over any
number of images in the same memory: PSNR, consistency, deviation over samples, Fréchet distances of crops.

Images are [C, H, W] uint8, C = 3 for RGB and 1 for gray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from math import log10, sqrt
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kernels import Subsampling, quality_to_tables
from model.features import EfficientNetLite0, FeaturesError, read_tensors
from pipeline.engine.results import as_pixels
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.fallback import fallback_decode
from pipeline.outputs.verify import recompress
from train.frechet import gaussian_distance
from train.hed import HED

PSNR_LIMIT = 100.0
"""dB, of images without any error: so that one flat image does not make a mean infinite."""

CROP = 128
STRIDE = 64
"""Pixels a side of the crops that Fréchet distances are over, and from one to the next."""

CROPS_WANTED = 2000
"""Fewer make a Fréchet distance of 320 features mostly a matter of their number."""

BATCH = 64

INCEPTION_SOURCE = (
    "FID's Inception, https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (96 MB)"
)

Extractor = Callable[[Tensor], Tensor]
"""Crops [N, 3, H, W] uint8 → features [N, d] on the CPU."""


def psnr(output: Tensor, truth: Tensor) -> float:
    """dB, over all channels, of 8-bit images; at most PSNR_LIMIT."""
    error = float((output.double() - truth.double()).square().mean())
    return min(PSNR_LIMIT, 10 * log10(255**2 / error)) if error else PSNR_LIMIT


@dataclass(frozen=True)
class Compressed:
    """A clean image and its JPEG. truth: [C, H, W] uint8. data: the file. bitstream: what it says. decoded: [C, H, W]
    uint8, what Pillow shows."""

    key: str
    truth: Tensor
    data: bytes
    bitstream: Bitstream
    decoded: Tensor


def truth_of(image: Tensor, sampling: Subsampling) -> Tensor:
    """What a file of that sampling can show of an RGB image [3, H, W] uint8: all of it, and if gray its luma."""
    if sampling is not Subsampling.GRAY:
        return image
    red, green, blue = image.int()
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # as Pillow computes "L"
    return luma.to(torch.uint8)[None]


def compress(key: str, image: Tensor, quality: int, sampling: Subsampling) -> Compressed:
    """An RGB image [3, H, W] uint8 through libjpeg-turbo's encoder (Pillow's; for 4:4:0 jpeglib's), with Annex K's
    tables at `quality`."""
    truth = truth_of(image, sampling)
    data = recompress(as_pixels(truth), quality_to_tables(quality, sampling.components).numpy(), sampling)
    return Compressed(key, truth, data, *_read(data, truth.numel()))


def _read(data: bytes, largest: int) -> tuple[Bitstream, Tensor]:
    return read_bitstream(data, largest), torch.from_numpy(fallback_decode(data, largest).pixels.copy())


@dataclass(frozen=True)
class Consistency:
    """rmse: gray levels per pixel. mismatches: quantised coefficients that differ."""

    rmse: float
    mismatches: int


def consistency(output: Tensor, compressed: Compressed) -> Consistency:
    """How far the output, compressed as the original was, is from what the original was compressed to: the paper's RMSE
    between the two decompressed images, one real codec on both sides, and the coefficients."""
    c = compressed.bitstream.coefficients
    data = recompress(as_pixels(output), c.tables[0].numpy(), c.sampling)
    again, decoded = _read(data, output.numel())
    rmse = sqrt(float((decoded.double() - compressed.decoded.double()).square().mean()))
    return Consistency(rmse, int(again.coefficients.mismatches(c)))


class Spread:
    """Mean and deviation, pixel by pixel, over samples that come one at a time (Welford's update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, sample: Tensor) -> None:
        """float, all of one shape."""
        self.count += 1
        change = sample - self.mean.to(sample.device)
        self.mean = self.mean.to(sample.device) + change / self.count
        self._squares = self._squares.to(sample.device) + change * (sample - self.mean)

    @property
    def deviation(self) -> Tensor | None:
        """Of the samples' shape, with n - 1, in their unit; None for a single sample."""
        return (self._squares / (self.count - 1)).sqrt() if self.count > 1 else None


@dataclass
class Correlation:
    """Pearson's, over all elements of pairs of tensors that come one at a time."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        n = torch.tensor(float(x.numel()), dtype=torch.float64)
        self.sums += torch.stack([n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])

    @property
    def value(self) -> float | None:
        """-1..1; None when there is nothing to compare, or one side is constant."""
        n, x, y, xx, yy, xy = self.sums.tolist()
        variances = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / sqrt(variances) if variances > 0 else None


class Moments:
    """Mean and covariance of features that come some at a time, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.products = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """[n, d], n may be 0."""
        features = features.double()
        self.count += len(features)
        self.total = self.total + features.sum(0)
        self.products = self.products + features.mT @ features

    def __add__(self, other: Moments) -> Moments:
        """Those of both sets together."""
        both = Moments()
        both.count = self.count + other.count
        both.total, both.products = self.total + other.total, self.products + other.products
        return both

    def distance(self, other: Moments) -> float | None:
        """The Fréchet distance; None unless both have at least 2."""
        if min(self.count, other.count) < 2:
            return None
        return gaussian_distance(*self._gaussian(), *other._gaussian())

    def _gaussian(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.products - self.count * mean.outer(mean)) / (self.count - 1)


@dataclass
class Halves:
    """Features of the crops of a set of images, in two halves: of the images at even and at odd places of the set. So
    no crop of one half overlaps one of the other, or shares its image."""

    even: Moments = field(default_factory=Moments)
    odd: Moments = field(default_factory=Moments)

    def add(self, place: int, features: Tensor) -> None:
        """Those of the image at `place`, [crops, d]."""
        (self.odd if place % 2 else self.even).add(features)

    @property
    def count(self) -> int:
        return self.even.count + self.odd.count

    @property
    def floor(self) -> float | None:
        """The distance between the halves of one set: what `crossed` would be for outputs without any fault."""
        return self.even.distance(self.odd)

    def distance(self, other: Halves) -> float | None:
        """Between all of both sets, which hold the same crops of the same images: 0 for equal sets."""
        return (self.even + self.odd).distance(other.even + other.odd)

    def crossed(self, other: Halves) -> float | None:
        """Between one set's even and the other's odd half, and the other way round, averaged. As many crops on either
        side as for `floor`, and no content in common, so the two can be compared; `distance` is less than both, for its
        sets are larger and show the same things."""
        distances = self.even.distance(other.odd), self.odd.distance(other.even)
        return None if distances[0] is None or distances[1] is None else (distances[0] + distances[1]) / 2


def crops(image: Tensor) -> Tensor:
    """[C, H, W] → [n, 3, 128, 128], every 64 pixels from the upper left corner on; gray three times. None of an image
    that is smaller."""
    if min(image.shape[1:]) < CROP:
        return image.new_empty(0, 3, CROP, CROP)
    windows = image.expand(3, -1, -1).unfold(1, CROP, STRIDE).unfold(2, CROP, STRIDE)
    return windows.permute(1, 2, 0, 3, 4).flatten(0, 1)


def add_crops(halves: Halves, place: int, image: Tensor, extract: Extractor) -> None:
    """The features of the crops of the image at `place` of its set."""
    for batch in crops(image).split(BATCH):
        if len(batch):
            halves.add(place, extract(batch))


def load_extractors(inception: Path | None, device: torch.device, hed: bool = False) -> dict[str, Extractor]:
    """`frechet`: EfficientNet-Lite0's last stage, averaged over the crop, 320 features. With a file of pytorch-fid's
    Inception weights also `fid`: 2048. With `hed` also `hed`: HED's conv4_3, averaged too, 512. Raises FeaturesError,
    which says where to get what is missing."""
    networks: dict[str, Extractor] = {"frechet": EfficientNetLite0.load().to(device).pooled}
    if inception is not None:
        network = load_inception(inception).to(device)
        networks["fid"] = lambda images: network(images)[0].flatten(1)
    if hed:
        networks["hed"] = HED.load().to(device).pooled

    def of_bytes(extract: Extractor) -> Extractor:
        return lambda images: extract(images.to(device).float() / 255).float().cpu()

    return {name: of_bytes(extract) for name, extract in networks.items()}


def load_inception(path: Path) -> nn.Module:
    """FID's Inception v3 as the package pytorch-fid has it, from a file: the package itself knows only how to download
    one. Images [N, 3, H, W], 0..1 → [[N, 2048, 1, 1]]. Raises FeaturesError."""
    try:
        package = import_module("pytorch_fid.inception")
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision made for another torch
        raise FeaturesError(f"FID needs the package pytorch-fid ({error}): pip install pytorch-fid") from error
    tensors = read_tensors(path, INCEPTION_SOURCE)
    try:
        with patch.object(package, "load_state_dict_from_url", lambda *_, **__: tensors):
            network: nn.Module = package.InceptionV3([package.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    except RuntimeError as error:
        raise FeaturesError(f"{path} does not hold the weights of {INCEPTION_SOURCE}: {error}") from error
    return network.eval().requires_grad_(False)
