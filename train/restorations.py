"""All that is compared for one file: plain decode, the regression, samples before and after projection, averages of
them, and white noise as strong as their variety. Computed as the Restorer does it, down to the bit, with every draw
made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Coefficients
from model.noise import derive_seed, gaussian
from pipeline.engine import tiling
from pipeline.engine.restorer import Restorer
from train.measures import Compressed, Spread

MODES = {
    "plain": "what Pillow shows",
    "mmse": "the regression network's image, projected",
    "noise": "the same with white noise added, of the samples' mean deviation in this image, projected",
    "sample": "one draw, rounded to 8 bits",
    "projected": "one draw, projected",
    "independent": "the average of all draws, projected",
    "mean": "the average of as many draws in antithetic pairs, projected",
}
"""Projected: by `project_exact`, as in every image that the pipeline writes."""

DRAWN = frozenset({"noise", "sample", "projected", "independent", "mean"})
"""Those that need a network that draws samples."""

SHOWN = 4
WHITE = -1
"""In the place of a sample's number: no sample has the white noise's seed."""


@dataclass(frozen=True)
class Networks:
    """regression: of mode mmse. sampler: of mode sample, or None. They may have the same weights."""

    regression: Restorer
    sampler: Restorer | None = None


@dataclass(frozen=True)
class Restoration:
    """image: [C, H, W] uint8. claimed: its certificate, how many coefficients differ according to `project_exact`; None
    of an image that is not projected. deviation: [C, H, W] float32, gray levels, over the samples, where there are
    several. samples: the first SHOWN of them, the image included."""

    image: Tensor
    claimed: int | None = None
    deviation: Tensor | None = None
    samples: tuple[Tensor, ...] = ()


class Drawer:
    """One file's images before projection, and their projection."""

    def __init__(self, restorer: Restorer, c: Coefficients) -> None:
        self.restorer, self.c = restorer, c
        self.parts = restorer.load(restorer.tile_tasks(c))
        self.decoded = [restorer.decode([part])[0] for part in self.parts]

    def draw(self, *seeds: int) -> Tensor:
        """An image for each seed, in mode mmse one: [K, C, H, W] float32, gray levels, not limited to 0..255."""
        count = 1 if self.restorer.mode == "mmse" else len(seeds)
        images = torch.empty(count, self.c.sampling.components, *self.c.size, device=self.restorer.device)
        for part, decoded in zip(self.parts, self.decoded, strict=True):
            (restored,) = self.restorer.draw([part], [decoded], [seeds])
            for image, core in zip(images, tiling.cut_core(restored, part.tile), strict=True):
                tiling.paste(image, core, part.tile)
        return images

    def project(self, x: Tensor) -> tuple[Tensor, int]:
        """[C, H, W] float32 → uint8, on the CPU, consistent with the file but for so many coefficients."""
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
    """By mode, in the order of MODES: those of `modes`, and whatever they need; `plain` and `mmse` always. The noise of
    a sample depends on the user's `seed`, the image's key and the sample's number alone.

    Raises ValueError for modes that want a sampler when there is none."""
    if networks.sampler is None and modes & DRAWN:
        raise ValueError(f"modes {', '.join(sorted(modes & DRAWN))} need a network that draws samples")
    regression = Drawer(networks.regression, compressed.bitstream.coefficients)
    expected = regression.draw()[0]
    found = {"plain": Restoration(compressed.decoded), "mmse": Restoration(*regression.project(expected))}
    if networks.sampler is not None and modes & DRAWN:
        drawer = Drawer(networks.sampler, compressed.bitstream.coefficients)
        seeds = [derive_seed(seed, compressed.key, number) for number in range(samples)]
        found |= _drawn(drawer, seeds, modes)
        deviation = found["sample"].deviation
        if "noise" in modes and deviation is not None:
            noise = white_noise(derive_seed(seed, compressed.key, WHITE), expected) * deviation.mean()
            found["noise"] = Restoration(*regression.project(expected + noise))
    return {mode: found[mode] for mode in MODES if mode in found}


def _drawn(drawer: Drawer, seeds: list[int], modes: frozenset[str]) -> dict[str, Restoration]:
    """`sample` always, the others where wanted."""
    free, exact = Spread(), Spread()
    total = paired = torch.zeros(())
    drawn: list[Tensor] = []
    projected: list[tuple[Tensor, int]] = []
    for number, seed in enumerate(seeds):
        with_its_pair = "mean" in modes and 2 * number + 1 < len(seeds)
        x, *opposite = drawer.draw(*((seed, ~seed) if with_its_pair else (seed,)))
        total = total.to(x.device) + x
        if "mean" in modes and 2 * number < len(seeds):
            paired = sum(opposite, paired.to(x.device) + x)
        limited = x.clamp(0, 255)
        free.add(limited)
        if number < SHOWN:
            drawn.append(limited.round().to(torch.uint8).cpu())
        if "projected" in modes:
            image, mismatches = drawer.project(x)
            exact.add(image.float())
            if number < SHOWN:
                projected.append((image, mismatches))
    found = {"sample": Restoration(drawn[0], None, _on_cpu(free.deviation), tuple(drawn))}
    if projected:
        found["projected"] = Restoration(*projected[0], exact.deviation, tuple(image for image, _ in projected))
    for mode, average in (("independent", total / len(seeds)), ("mean", paired / len(seeds))):
        if mode in modes:
            found[mode] = Restoration(*drawer.project(average))
    return found


def _on_cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()


def white_noise(seed: int, like: Tensor) -> Tensor:
    """Standard normal, of the shape [C, H, W] and on the device of `like`."""
    seeds = torch.tensor([seed], device=like.device)
    corner = torch.zeros(1, 2, dtype=torch.int64, device=like.device)
    height, width = like.shape[1:]
    return gaussian(seeds, 0, len(like), corner, (height, width))[0]
