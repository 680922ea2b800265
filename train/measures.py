"""The measures of the paper's Table 1 (arXiv 2211.11827, section 5) except the Fréchet distance (train/frechet.py):
PSNR, consistency and the deviation over samples, each accumulated image by image in constant memory.

Images are [C, H, W] uint8, C = 3 for RGB and 1 for gray."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, lgamma, log10, sqrt

import torch
from torch import Tensor

from kernels import Subsampling, quality_to_tables
from pipeline.engine.results import as_pixels
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.fallback import fallback_decode
from pipeline.outputs.verify import recompress

PSNR_LIMIT = 100.0
"""dB. PSNR of identical images, so that one flat image does not make a mean infinite."""


def psnr(output: Tensor, truth: Tensor) -> float:
    """PSNR in dB over all channels of two images [C, H, W] uint8, at most PSNR_LIMIT."""
    error = float((output.double() - truth.double()).square().mean())
    return min(PSNR_LIMIT, 10 * log10(255**2 / error)) if error else PSNR_LIMIT


@dataclass(frozen=True)
class Compressed:
    """A clean image and its JPEG."""

    key: str  # of the image; seeds its noise
    truth: Tensor  # [C, H, W] uint8
    data: bytes  # the JPEG file
    bitstream: Bitstream  # the parsed file
    decoded: Tensor  # [C, H, W] uint8, Pillow's decode


def truth_of(image: Tensor, sampling: Subsampling) -> Tensor:
    """The part of an RGB image [3, H, W] uint8 that a file of this sampling holds: the luma [1, H, W] for gray, else
    the image itself."""
    if sampling is not Subsampling.GRAY:
        return image
    red, green, blue = image.int()
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # as Pillow computes "L"
    return luma.to(torch.uint8)[None]


def compress(key: str, image: Tensor, quality: int, sampling: Subsampling) -> Compressed:
    """Compresses an RGB image [3, H, W] uint8 by libjpeg-turbo (through Pillow; 4:4:0 through jpeglib) with Annex K's
    tables at `quality`, 1..100."""
    truth = truth_of(image, sampling)
    data = recompress(as_pixels(truth), quality_to_tables(quality, sampling.components).numpy(), sampling)
    return Compressed(key, truth, data, *_read(data, truth.numel()))


def _read(data: bytes, largest: int) -> tuple[Bitstream, Tensor]:
    return read_bitstream(data, largest), torch.from_numpy(fallback_decode(data, largest).pixels.copy())


@dataclass(frozen=True)
class Consistency:
    """The difference between the JPEGs of an output and of its original."""

    rmse: float  # of the decoded images, gray levels
    mismatches: int  # number of quantised coefficients that differ


def consistency(output: Tensor, compressed: Compressed) -> Consistency:
    """Compresses the output [C, H, W] uint8 like the original and compares the two files. The RMSE is the paper's, with
    a real codec on both sides."""
    c = compressed.bitstream.coefficients
    data = recompress(as_pixels(output), c.tables[0].numpy(), c.sampling)
    again, decoded = _read(data, output.numel())
    rmse = sqrt(float((decoded.double() - compressed.decoded.double()).square().mean()))
    return Consistency(rmse, int(again.coefficients.mismatches(c)))


def unbiased_deviation(deviation: Tensor, count: int) -> Tensor:
    """Sample standard deviations (n - 1) of `count` normal values each, at least 2 → their unbiased estimates, divided
    by c4(count): otherwise means over pixels depend on the number of samples (of 2, they are a fifth too small)."""
    c4 = sqrt(2 / (count - 1)) * exp(lgamma(count / 2) - lgamma((count - 1) / 2))
    return deviation / c4


class PixelMoments:
    """Running mean and standard deviation of each pixel over samples (Welford's update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, sample: Tensor) -> None:
        """The next sample [C, H, W] float; all have the same shape."""
        self.count += 1
        change = sample - self.mean.to(sample.device)
        self.mean = self.mean.to(sample.device) + change / self.count
        self._squares = self._squares.to(sample.device) + change * (sample - self.mean)

    @property
    def deviation(self) -> Tensor | None:
        """`unbiased_deviation` [C, H, W], in the unit of the samples; None for fewer than 2."""
        if self.count < 2:
            return None
        return unbiased_deviation((self._squares / (self.count - 1)).sqrt(), self.count)


@dataclass
class Correlation:
    """Pearson correlation over all elements of pairs of tensors, accumulated pair by pair."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        """The next pair, of equal shapes and any dtype."""
        x, y = x.double(), y.double()
        n = torch.tensor(float(x.numel()), dtype=torch.float64)
        self.sums += torch.stack([n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])

    @property
    def value(self) -> float | None:
        """-1..1; None without data or if one side is constant."""
        n, x, y, xx, yy, xy = self.sums.tolist()
        variances = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / sqrt(variances) if variances > 0 else None
