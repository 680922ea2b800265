"""Validation during training: figures and an image grid of the averaged generator on held-out images, before
projection. train/evaluate.py measures in full."""

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
from train.measures import unbiased_deviation
from train.objectives.forward import draw, restore
from train.texture import FlatTexture

QUALITIES = (10, 20, 40)
"""Qualities of `validate`, libjpeg's scale, of which those are used that `degradation.quality` has."""

SAMPLES = 4
"""Samples per image of `validate`."""

SIDE = 160
"""Largest height and width of a validation image, pixels."""

BATCH = 16
"""Images per forward pass."""

GRID_IMAGES, GRID_SAMPLES = 8, 16
"""Images and samples per image of `picture`, which is of the lowest quality of `validate`."""


def centre_crops(images: list[Tensor]) -> Tensor:
    """[3, H, W] uint8 each → [n, 3, s, s] uint8: square centre crops, as large as the smallest image allows, at most
    SIDE, in multiples of 16."""
    side = min(SIDE, *(min(image.shape[1:]) // 16 * 16 for image in images))
    corners = [((i.shape[1] - side) // 2, (i.shape[2] - side) // 2) for i in images]
    return torch.stack([i[:, y : y + side, x : x + side] for i, (y, x) in zip(images, corners, strict=True)])


def qualities(config: Config) -> tuple[int, ...]:
    """Those of QUALITIES that training has; if none, the median of training's."""
    low, high = config.degradation.quality
    return tuple(q for q in QUALITIES if low <= q <= high) or (round(config.degradation.quality_mean),)


def compressed(clean: Tensor, quality: int, device: torch.device) -> Batch:
    """[n, 3, h, w] uint8 → a batch of 4:2:0 JPEGs at `quality`, with noise seeds for GRID_SAMPLES samples."""
    tables = quality_to_tables(quality, 3).expand(len(clean), -1, -1, -1).to(device)
    seeds = torch.arange(len(clean) * GRID_SAMPLES, device=device).reshape(len(clean), GRID_SAMPLES)
    return as_batch(compress(clean.to(device).float(), tables, Subsampling.S420), seeds)


@dataclass(frozen=True)
class Outputs:
    """A generator's outputs, float32, clamped to 0..1."""

    expected: Tensor | None  # [n, 3, h, w], the regression's output; None if the generator has none
    samples: Tensor | None = None  # [n, K, 3, h, w]; None of a generator without noise


@torch.no_grad()
def outputs(generator: Generator, batch: Batch, config: Config, samples: int) -> Outputs:
    """The regression's output and `samples` samples of each image, as far as the generator has them."""
    if not generator.config.noise:
        return Outputs(restore(generator, batch, config).clamp(0, 1))
    drawn = draw(generator, batch, config, batch.seeds[:, :samples])
    return Outputs(None if drawn.mean is None else drawn.mean.clamp(0, 1), drawn.samples.clamp(0, 1))


def validate(
    generator: Generator, images: list[Tensor], config: Config, device: torch.device, mmse: Generator | None = None
) -> dict[str, float]:
    """Figures on centre crops of the images [3, H, W] uint8, as 4:2:0 JPEGs of `qualities`; names end in _QUALITY.

    gain: dB, the regression's PSNR above that of plain decode. Of a sampler also
    sample_gain: dB, that of one sample; mean_gain: dB, that of the mean of SAMPLES samples;
    std: standard deviation of a pixel over the samples, range 0..1;
    consistency: gray levels, RMSE between the JPEGs of the clean image and of a sample (`roundtrip`);
    lattice, lattice_worst, flat_deviation: texture of one sample in flat areas (train/texture.py), relative to the
    regression's output: `mmse`'s if given, else the generator's own; the same of the originals, with the prefix
    original_.
    """
    figures = {}
    for quality in qualities(config):
        found, textures = [], {"": FlatTexture(), "original_": FlatTexture()}
        for clean in centre_crops(images).split(BATCH):
            batch = compressed(clean, quality, device)
            made = outputs(generator, batch, config, SAMPLES)
            found.append(_figures(made, batch))
            expected = made.expected if mmse is None else outputs(mmse, batch, config, 1).expected
            if made.samples is not None and expected is not None:
                for images_of, shown in (("", made.samples[:, 0]), ("original_", batch.clean)):
                    for image, mean in zip(255 * shown, 255 * expected, strict=True):
                        textures[images_of].add(image, mean)
        for name in found[0]:
            value = float(torch.cat([one[name] for one in found]).mean())
            figures[f"{name}_{quality}"] = round(value**0.5 if name == "consistency" else value, 4)
        for prefix, texture in textures.items():
            named = {
                "lattice": texture.lattice,
                "lattice_worst": texture.lattice_worst,
                "flat_deviation": texture.deviation,
            }
            figures |= {f"{prefix}{name}_{quality}": round(x, 4) for name, x in named.items() if x is not None}
    return figures


def _figures(made: Outputs, batch: Batch) -> dict[str, Tensor]:
    """[n] each: the figures of each image; of the consistency the mean squared error."""
    figures, samples = {}, made.samples
    if made.expected is not None:
        figures["gain"] = _gain(made.expected, batch)
    if samples is not None:
        jpegs = [roundtrip(255 * x, batch.tables, Subsampling.S420) for x in (batch.clean, samples[:, 0])]
        figures["sample_gain"] = _gain(samples[:, 0], batch)
        figures["mean_gain"] = _gain(samples.mean(1), batch)
        figures["std"] = unbiased_deviation(samples.std(1), SAMPLES).flatten(1).mean(1)
        figures["consistency"] = (jpegs[0] - jpegs[1]).square().flatten(1).mean(1)
    return figures


def _gain(restored: Tensor, batch: Batch) -> Tensor:
    """[n] dB."""
    errors = (255**2 * (x - batch.clean).square().flatten(1).mean(1) for x in (batch.decoded, restored))
    before, after = (error.clamp_min(1e-4) for error in errors)  # the error of a flat image is 0
    return 10 * torch.log10(before / after)


def picture(generator: Generator, images: list[Tensor], config: Config, device: torch.device) -> Image.Image:
    """An image grid with a row for each of the first images [3, H, W] uint8: the input, the regression's output if
    there is one, of a sampler two samples, the mean of 16 and their standard deviation, and the clean image."""
    batch = compressed(centre_crops(images)[:GRID_IMAGES], qualities(config)[0], device)
    made = outputs(generator, batch, config, GRID_SAMPLES)
    columns = {"input": to_uint8(batch.decoded)}
    if made.expected is not None:
        columns["regression"] = to_uint8(made.expected)
    if made.samples is not None:
        columns |= {f"sample {k + 1}": to_uint8(made.samples[:, k]) for k in range(2)}
        columns["mean"] = to_uint8(made.samples.mean(1))
        columns["deviation"] = torch.stack([deviation_picture(255 * one.std(0)) for one in made.samples]).cpu()
    columns["truth"] = to_uint8(batch.clean)
    return grid([("", [(name, column[row]) for name, column in columns.items()]) for row in range(len(batch))])


def to_uint8(x: Tensor) -> Tensor:
    """[...] float, 0..1 → [...] uint8, 0..255, on the CPU."""
    return (255 * x).round().clamp(0, 255).byte().cpu()
