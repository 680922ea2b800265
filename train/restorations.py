"""The restorations of one file that an evaluation compares: plain decode, the regression, samples before and after
projection, averages of samples, and the regression with white noise. They are bit for bit the Restorer's; each sample
is drawn once for all modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Coefficients
from model.noise import derive_seed, gaussian
from pipeline.engine import tiling
from pipeline.engine.restorer import Restorer
from train.measures import Compressed, PixelMoments

MODES = {
    "plain": "Pillow's decode",
    "mmse": "the regression network's image, projected",
    "noise": "the regression network's image plus white noise with the samples' mean deviation, projected",
    "sample": "one sample, rounded to 8 bits",
    "projected": "one sample, projected",
    "independent": "the mean of all samples, projected",
    "mean": "the mean of as many samples in antithetic pairs, projected",
}
"""Projected: by `project_exact`, like every image that the pipeline writes."""

DRAWN = frozenset({"noise", "sample", "projected", "independent", "mean"})
"""Modes that need a sampler."""

MAX_KEPT = 4
"""Samples kept as images."""

WHITE_NOISE = -1
"""Sample number that seeds the white noise; samples are numbered from 0."""


@dataclass(frozen=True)
class Networks:
    """The networks under evaluation; both may have the same weights."""

    regression: Restorer  # in mode mmse
    sampler: Restorer | None = None  # in mode sample


@dataclass(frozen=True)
class Restoration:
    """One mode's result for a file."""

    image: Tensor  # [C, H, W] uint8
    claimed: int | None = None  # the certificate: mismatches according to `project_exact`; None if not projected
    deviation: Tensor | None = None  # [C, H, W] float32, gray levels, over the samples; None for a single one
    samples: tuple[Tensor, ...] = ()  # the first MAX_KEPT samples, [C, H, W] uint8, `image` included


class FileSampler:
    """Draws and projects the restorations of one file."""

    def __init__(self, restorer: Restorer, c: Coefficients) -> None:
        self.restorer, self.c = restorer, c
        self.parts = restorer.load(restorer.tile_tasks(c))
        self.decoded = [restorer.decode([part])[0] for part in self.parts]

    def draw(self, *seeds: int) -> Tensor:
        """One image for each seed, in mode mmse a single one: [K, C, H, W] float32, gray levels, not clamped."""
        count = 1 if self.restorer.mode == "mmse" else len(seeds)
        images = torch.empty(count, self.c.sampling.components, *self.c.size, device=self.restorer.device)
        for part, decoded in zip(self.parts, self.decoded, strict=True):
            (restored,) = self.restorer.draw([part], [decoded], [seeds])
            for image, core in zip(images, tiling.cut_core(restored, part.tile), strict=True):
                tiling.paste(image, core, part.tile)
        return images

    def project(self, x: Tensor) -> tuple[Tensor, int]:
        """[C, H, W] float32, gray levels → (the projected image, uint8 on the CPU; the number of mismatches)."""
        mismatches = 0
        image = torch.empty_like(x, dtype=torch.uint8, device="cpu")
        for part in self.parts:
            top, bottom, left, right = part.tile.core
            (exact,), wrong = self.restorer.project([part], [x[None, :, top:bottom, left:right].contiguous()])
            tiling.paste(image, exact.cpu(), part.tile)
            mismatches += int(wrong)
        return image, mismatches


def restorations(
    compressed: Compressed, networks: Networks, modes: frozenset[str], samples: int, seed: int
) -> dict[str, Restoration]:
    """Restorations by mode, in the order of MODES: `modes`, those that they depend on, and always `plain` and `mmse`.
    samples: K. The noise of a sample is a function of the seed, the image's key and the sample's number.

    Raises ValueError for modes that need a sampler if there is none."""
    if networks.sampler is None and modes & DRAWN:
        raise ValueError(f"modes {', '.join(sorted(modes & DRAWN))} need a sampler")
    regression = FileSampler(networks.regression, compressed.bitstream.coefficients)
    expected = regression.draw()[0]
    found = {"plain": Restoration(compressed.decoded), "mmse": Restoration(*regression.project(expected))}
    if networks.sampler is not None and modes & DRAWN:
        sampler = FileSampler(networks.sampler, compressed.bitstream.coefficients)
        seeds = [derive_seed(seed, compressed.key, number) for number in range(samples)]
        found |= _sampled(sampler, seeds, modes)
        deviation = found["sample"].deviation
        if "noise" in modes and deviation is not None:
            noise = white_noise(derive_seed(seed, compressed.key, WHITE_NOISE), expected) * deviation.mean()
            found["noise"] = Restoration(*regression.project(expected + noise))
    return {mode: found[mode] for mode in MODES if mode in found}


def _sampled(sampler: FileSampler, seeds: list[int], modes: frozenset[str]) -> dict[str, Restoration]:
    """`sample`, and those of `modes` among `projected`, `independent` and `mean`."""
    free, exact = PixelMoments(), PixelMoments()
    total = paired = torch.zeros(())
    drawn: list[Tensor] = []
    projected: list[tuple[Tensor, int]] = []
    for number, seed in enumerate(seeds):
        with_its_pair = "mean" in modes and 2 * number + 1 < len(seeds)
        x, *opposite = sampler.draw(*((seed, ~seed) if with_its_pair else (seed,)))
        total = total.to(x.device) + x
        if "mean" in modes and 2 * number < len(seeds):
            paired = sum(opposite, paired.to(x.device) + x)
        clamped = x.clamp(0, 255)
        free.add(clamped)
        if number < MAX_KEPT:
            drawn.append(clamped.round().to(torch.uint8).cpu())
        if "projected" in modes:
            image, mismatches = sampler.project(x)
            exact.add(image.float())
            if number < MAX_KEPT:
                projected.append((image, mismatches))
    found = {"sample": Restoration(drawn[0], None, _on_cpu(free.deviation), tuple(drawn))}
    if projected:
        found["projected"] = Restoration(*projected[0], exact.deviation, tuple(image for image, _ in projected))
    for mode, average in (("independent", total / len(seeds)), ("mean", paired / len(seeds))):
        if mode in modes:
            found[mode] = Restoration(*sampler.project(average))
    return found


def _on_cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()


def white_noise(seed: int, like: Tensor) -> Tensor:
    """Standard normal noise with the shape [C, H, W] and the device of `like`, float32."""
    seeds = torch.tensor([seed], device=like.device)
    corner = torch.zeros(1, 2, dtype=torch.int64, device=like.device)
    height, width = like.shape[1:]
    return gaussian(seeds, 0, len(like), corner, (height, width))[0]
