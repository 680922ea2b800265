"""Fréchet distances between sets of images, over the features of their crops: FID where the features are Inception's
(Heusel et al., "GANs trained by a two time-scale update rule", 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from model.features import EfficientNetLite0, FeaturesError, read_tensors
from train.hed import HED

CROP = 128
"""Height and width of the crops, pixels."""

STRIDE = 64
"""Pixels from one crop to the next."""

CROPS_WANTED = 2000
"""With fewer crops the distance between covariances of 320 features depends mostly on the number of crops."""

BATCH = 64
"""Crops per forward pass."""

INCEPTION_SOURCE = (
    "FID's Inception, https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (96 MB)"
)

Extractor = Callable[[Tensor], Tensor]
"""Crops [N, 3, H, W] uint8 → features [N, d] float32 on the CPU."""


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The squared Fréchet distance of two Gaussians, |m - m'|² + tr(S + S' - 2 (S S')^1/2), clamped at 0.

    Means [d] and covariances [d, d], float64. The trace of (S S')^1/2 is computed as that of the symmetric
    (R S' R)^1/2 with R = S^1/2, whose eigenvalues stay real and accurate for singular covariances (fewer crops than
    features)."""
    root = _square_root(covariance)
    product = root @ other_covariance @ root
    cross = torch.linalg.eigvalsh((product + product.mT) / 2).clamp_min(0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, float((mean - other_mean).square().sum() + spread))


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric positive semi-definite square root."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    return root


class FeatureMoments:
    """Running mean and covariance of features, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.products = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Features [n, d]; n may be 0."""
        features = features.double()
        self.count += len(features)
        self.total = self.total + features.sum(0)
        self.products = self.products + features.mT @ features

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of the union of both sets."""
        both = FeatureMoments()
        both.count = self.count + other.count
        both.total, both.products = self.total + other.total, self.products + other.products
        return both

    def distance(self, other: FeatureMoments) -> float | None:
        """The Fréchet distance; None if either set has fewer than 2 features."""
        if min(self.count, other.count) < 2:
            return None
        return gaussian_distance(*self.gaussian(), *other.gaussian())

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and unbiased covariance [d, d]."""
        mean = self.total / self.count
        return mean, (self.products - self.count * mean.outer(mean)) / (self.count - 1)


@dataclass
class SplitMoments:
    """Moments of the crops of a set of images, split by image into two halves: images at even and at odd positions in
    the set. No crop of one half overlaps a crop of the other or shares its image."""

    even: FeatureMoments = field(default_factory=FeatureMoments)
    odd: FeatureMoments = field(default_factory=FeatureMoments)

    def add(self, position: int, features: Tensor) -> None:
        """Features [crops, d] of the image at `position` in the set."""
        (self.odd if position % 2 else self.even).add(features)

    def add_image(self, position: int, image: Tensor, extract: Extractor) -> None:
        """Features of all crops of the image [C, H, W] uint8 at `position` in the set."""
        for batch in crops(image).split(BATCH):
            if len(batch):
                self.add(position, extract(batch))

    @property
    def count(self) -> int:
        return self.even.count + self.odd.count

    @property
    def floor(self) -> float | None:
        """The distance between the halves of one set: the value of `cross_distance` for perfect outputs."""
        return self.even.distance(self.odd)

    def distance(self, other: SplitMoments) -> float | None:
        """The distance between two sets of the same crops of the same images: 0 for equal sets."""
        return (self.even + self.odd).distance(other.even + other.odd)

    def cross_distance(self, other: SplitMoments) -> float | None:
        """The mean of the distances between one set's even half and the other's odd half, both ways.

        Comparable with `floor`, which has as many crops on either side and no common content either. `distance` is
        smaller than both, because its sets are larger and show the same content."""
        distances = self.even.distance(other.odd), self.odd.distance(other.even)
        return None if distances[0] is None or distances[1] is None else (distances[0] + distances[1]) / 2


def crops(image: Tensor) -> Tensor:
    """[C, H, W] → [n, 3, 128, 128], every 64 pixels from the upper left corner; gray is repeated to three channels.
    n is 0 for images smaller than a crop."""
    if min(image.shape[1:]) < CROP:
        return image.new_empty(0, 3, CROP, CROP)
    windows = image.expand(3, -1, -1).unfold(1, CROP, STRIDE).unfold(2, CROP, STRIDE)
    return windows.permute(1, 2, 0, 3, 4).flatten(0, 1)


def load_extractors(inception: Path | None, device: torch.device, hed: bool = False) -> dict[str, Extractor]:
    """Feature extractors by name. `frechet`: the last stage of EfficientNet-Lite0, averaged over the crop, 320
    features. `fid`, with a file of pytorch-fid's Inception weights: 2048 features. `hed`, on request: HED's conv4_3,
    averaged over the crop, 512 features. Raises FeaturesError, which says where to get missing weights."""
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
    """The Inception v3 of the package pytorch-fid, with weights from a file: images [N, 3, H, W] float32, 0..1 →
    [[N, 2048, 1, 1]]. Raises FeaturesError."""
    try:
        package = import_module("pytorch_fid.inception")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise FeaturesError(f"FID needs the package pytorch-fid ({error}): pip install pytorch-fid") from error
    tensors = read_tensors(path, INCEPTION_SOURCE)
    try:
        with _without_download(package, tensors):
            network: nn.Module = package.InceptionV3([package.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    except RuntimeError as error:
        raise FeaturesError(f"{path} does not hold the weights of {INCEPTION_SOURCE}: {error}") from error
    return network.eval().requires_grad_(False)


@contextmanager
def _without_download(package: ModuleType, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Replaces pytorch-fid's download by these tensors: its constructor has no argument for a local file."""
    download = package.load_state_dict_from_url
    package.load_state_dict_from_url = lambda *_, **__: tensors  # type: ignore[attr-defined]
    try:
        yield
    finally:
        package.load_state_dict_from_url = download  # type: ignore[attr-defined]
