"""Figures and pictures of the averaged generator on held-out images, on the way; train/evaluate.py measures in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from kernels import Subsampling, quality_to_tables, roundtrip
from model.generator import Generator
from train.config import Config
from train.degradation import Batch, as_batch, compress
from train.grid import deviation_picture, grid
from train.objectives.forward import draw, restore
from train.texture import Residual

QUALITIES = (10, 20, 40)
SAMPLES = 4
SIDE = 160
AT_ONCE = 16

SHOWN, PICTURE_QUALITY, PICTURE_SAMPLES = 8, 10, 16


def middles(images: list[Tensor]) -> Tensor:
    """[n, 3, s, s] uint8: of each image, as large as the smallest allows."""
    side = min(SIDE, *(min(image.shape[1:]) // 16 * 16 for image in images))
    places = [((i.shape[1] - side) // 2, (i.shape[2] - side) // 2) for i in images]
    return torch.stack([i[:, y : y + side, x : x + side] for i, (y, x) in zip(images, places, strict=True)])


def compressed(clean: Tensor, quality: int, device: torch.device) -> Batch:
    """[n, 3, h, w] uint8 → their JPEGs of 4:2:0, with noise seeds for `PICTURE_SAMPLES` samples."""
    tables = quality_to_tables(quality, 3).expand(len(clean), -1, -1, -1).to(device)
    seeds = torch.arange(len(clean) * PICTURE_SAMPLES, device=device).reshape(len(clean), PICTURE_SAMPLES)
    return as_batch(compress(clean.to(device).float(), tables, Subsampling.S420), seeds)


@dataclass(frozen=True)
class Outputs:
    """Within 0..1, float32. expected: the regression's output [n, 3, h, w], where there is one. samples: those of a
    generator with noise, [n, K, 3, h, w]."""

    expected: Tensor | None
    samples: Tensor | None = None


@torch.no_grad()
def outputs(generator: Generator, batch: Batch, config: Config, samples: int) -> Outputs:
    """All that a generator makes of a batch."""
    if not generator.config.noise:
        return Outputs(restore(generator, batch, config).clamp(0, 1))
    drawn = draw(generator, batch, config, batch.seeds[:, :samples])
    return Outputs(None if drawn.mean is None else drawn.mean.clamp(0, 1), drawn.samples.clamp(0, 1))


def validate(
    generator: Generator, images: list[Tensor], config: Config, device: torch.device, mmse: Generator | None = None
) -> dict[str, float]:
    """On the middle of each image, 4:2:0, at three qualities, before projection: `gain`, the regression's PSNR gain
    over plain decode in dB. Of a sampler: `sample_gain`, that of one sample, `mean_gain`, that of the mean of a few,
    `std`, their deviation by pixel (range 0..1), and `consistency`, the RMSE in gray levels between the JPEGs of truth
    and sample; also train/texture.py's figures of one sample less the regression's output, its own or that of the
    network `mmse`, where images are flat: `lattice`, `lattice_worst` and `flat_deviation`."""
    figures = {}
    for quality in QUALITIES:
        found, residual = [], Residual()
        for clean in middles(images).split(AT_ONCE):
            batch = compressed(clean, quality, device)
            made = outputs(generator, batch, config, SAMPLES)
            found.append(_figures(made, batch))
            expected = made.expected if mmse is None else outputs(mmse, batch, config, 1).expected
            if made.samples is not None and expected is not None:
                _add_texture(residual, made.samples[:, 0], expected)
        for name in found[0]:
            value = float(torch.cat([one[name] for one in found]).mean())
            figures[f"{name}_{quality}"] = round(value**0.5 if name == "consistency" else value, 4)
        texture = {
            "lattice": residual.lattice,
            "lattice_worst": residual.lattice_worst,
            "flat_deviation": residual.deviation,
        }
        figures |= {f"{name}_{quality}": round(value, 4) for name, value in texture.items() if value is not None}
    return figures


def _add_texture(residual: Residual, samples: Tensor, expected: Tensor) -> None:
    """[n, 3, h, w] both, 0..1."""
    for sample, mean in zip(255 * samples, 255 * expected, strict=True):
        residual.add(sample, mean)


def _figures(made: Outputs, batch: Batch) -> dict[str, Tensor]:
    """Each [n]; the consistency's square."""
    figures, samples = {}, made.samples
    if made.expected is not None:
        figures["gain"] = _gain(made.expected, batch)
    if samples is not None:
        jpegs = [roundtrip(255 * x, batch.tables, Subsampling.S420) for x in (batch.clean, samples[:, 0])]
        figures["sample_gain"] = _gain(samples[:, 0], batch)
        figures["mean_gain"] = _gain(samples.mean(1), batch)
        figures["std"] = samples.std(1).flatten(1).mean(1)
        figures["consistency"] = (jpegs[0] - jpegs[1]).square().flatten(1).mean(1)
    return figures


def _gain(restored: Tensor, batch: Batch) -> Tensor:
    errors = (255**2 * (x - batch.clean).square().flatten(1).mean(1) for x in (batch.decoded, restored))
    before, after = (error.clamp_min(1e-4) for error in errors)  # flat images are decoded without any
    return 10 * torch.log10(before / after)


def picture(generator: Generator, images: list[Tensor], config: Config, device: torch.device) -> Image.Image:
    """A row for each of a few images: the input at quality 10, the regression's output, where there is one, two
    samples, the mean of 16 and their standard deviation, of a generator with noise, and the truth."""
    batch = compressed(middles(images)[:SHOWN], PICTURE_QUALITY, device)
    made = outputs(generator, batch, config, PICTURE_SAMPLES)
    columns = {"input": eight_bits(batch.decoded)}
    if made.expected is not None:
        columns["regression"] = eight_bits(made.expected)
    if made.samples is not None:
        columns |= {f"sample {k + 1}": eight_bits(made.samples[:, k]) for k in range(2)}
        columns["mean"] = eight_bits(made.samples.mean(1))
        columns["deviation"] = torch.stack([deviation_picture(255 * one.std(0)) for one in made.samples]).cpu()
    columns["truth"] = eight_bits(batch.clean)
    return grid([("", [(name, column[row]) for name, column in columns.items()]) for row in range(len(batch))])


def eight_bits(x: Tensor) -> Tensor:
    return (255 * x).round().clamp(0, 255).byte().cpu()
