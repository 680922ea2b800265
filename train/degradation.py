"""Degradation: compresses clean crops with random tables and samplings, by the project's `encode` and `decode`.

Random numbers are drawn for the crops of the whole step, of which each rank takes its own, so that the result does not
depend on the number of ranks. Tables are drawn on the device; samplings determine shapes and are drawn on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import log

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, encode
from kernels.tables import tables_by_quality
from model.generator import SAMPLINGS, three_tables
from train.checks import expect
from train.distributed import Ranks, to_device


@dataclass(frozen=True)
class DegradationConfig:
    """Distribution of the JPEGs."""

    quality: tuple[int, int] = (5, 95)  # range on libjpeg's scale, both ends included
    quality_mean: float = 30.0  # median of the quality
    perturbed: float = 0.25  # share of crops whose tables are not Annex K's, 0..1
    samplings: dict[str, float] = field(  # label → relative frequency
        default_factory=lambda: {"4:2:0": 0.7, "4:4:4": 0.15, "4:2:2": 0.06, "gray": 0.06, "4:4:0": 0.03}
    )

    def __post_init__(self) -> None:
        (low, high), mean, shares = self.quality, self.quality_mean, self.samplings
        expect(self, "quality", 1 <= low <= high <= 100, "two numbers in 1..100, the lower one first")
        expect(self, "quality_mean", low <= mean <= high, f"{low} to {high}, as the quality")
        expect(self, "perturbed", 0 <= self.perturbed <= 1, "a share, 0..1")
        labels = [sampling.label for sampling in Subsampling]
        expect(self, "samplings", set(shares) <= set(labels), f"weights of {', '.join(labels)}")
        sound = min(shares.values(), default=0) >= 0 < sum(shares.values())
        expect(self, "samplings", sound, "a positive weight")


@dataclass(frozen=True)
class CompressedCrops:
    """Crops of one sampling and their JPEGs."""

    clean: Tensor  # [n, 3, h, w] float32, 0..255, gray repeated
    coefficients: Coefficients
    decoded: Tensor  # [n, 3, h, w] float32, 0..255, plain decode

    def sampling_index(self) -> Tensor:
        """[n] int64: positions in SAMPLINGS, the generator's argument `sampling`."""
        return torch.full((len(self.clean),), SAMPLINGS.index(self.coefficients.sampling), device=self.clean.device)


@dataclass(frozen=True)
class Batch:
    """Crops of any samplings, as inputs of networks and losses: a rank's crops of a step, or a micro-batch of them."""

    clean: Tensor  # [n, 3, h, w] float32, 0..1, gray repeated
    decoded: Tensor  # [n, 3, h, w] float32, 0..1, plain decode, gray repeated
    tables: Tensor  # [n, 3, 8, 8] int32, ones for the chroma tables of gray
    samplings: list[Subsampling]  # of each crop
    sampling_index: Tensor  # [n] int64, positions in SAMPLINGS, the generator's argument `sampling`
    seeds: Tensor  # [n, draws] int64, noise seeds
    first: int  # number of the first crop among all crops of the step, on all ranks
    total: int  # number of crops of the step, on all ranks

    def __len__(self) -> int:
        return len(self.samplings)

    def select(self, indices: list[int]) -> Batch:
        """The crops at these indices, which may repeat."""
        index = to_device(torch.tensor(indices), self.clean.device)
        return replace(self._indexed(index), samplings=[self.samplings[number] for number in indices])

    def split(self, count: int) -> list[Batch]:
        """`count` micro-batches of equal size, as views."""
        size = len(self) // count
        slices = [slice(start, start + size) for start in range(0, len(self), size)]
        return [replace(self._indexed(s), samplings=self.samplings[s], first=self.first + s.start) for s in slices]

    def _indexed(self, index: slice | Tensor) -> Batch:
        names = ("clean", "decoded", "tables", "sampling_index", "seeds")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def evenly_spaced(self, count: int) -> list[int]:
        """The indices of this batch's crops among `count` evenly spaced ones of the whole step."""
        chosen = {number * self.total // count for number in range(count)}
        return [index for index in range(len(self)) if self.first + index in chosen]

    def by_sampling(self) -> Iterator[tuple[Subsampling, Tensor]]:
        """Each sampling that occurs, with the indices of its crops [m] int64 on the device."""
        return group_by_sampling(self.samplings, self.clean.device)


def group_by_sampling(samplings: list[Subsampling], device: torch.device) -> Iterator[tuple[Subsampling, Tensor]]:
    """Each sampling that occurs, with its indices [m] int64 on the device."""
    for sampling in SAMPLINGS:
        indices = [index for index, one in enumerate(samplings) if one is sampling]
        if indices:
            yield sampling, to_device(torch.tensor(indices), device)


def random_qualities(config: DegradationConfig, uniform: Tensor) -> Tensor:
    """Uniform numbers [n, 2] float64, 0..1 → qualities [n] int64: log-uniform below and above `quality_mean`, half of
    them on each side, because artefacts change with the logarithm of the quality."""
    ends = config.quality[0] - 0.5, config.quality_mean, config.quality[1] + 0.5  # half a quality more, for rounding
    low, middle, high = map(log, ends)
    below = uniform[:, 0] < 0.5
    bottom, span = torch.where(below, low, middle), torch.where(below, middle - low, high - middle)
    return (bottom + uniform[:, 1] * span).exp().round().long().clamp(*config.quality)


PERTURBATIONS = 4 + 2 * 64
"""Random numbers that `perturb` takes for an image."""


def perturb(tables: Tensor, normal: Tensor) -> Tensor:
    """Varies tables [n, 3, 8, 8] int32 as other encoders do: the range between fine and coarse steps (smaller towards
    flat tables, larger as in ImageMagick's and MozJPEG's), a tilt over frequencies, coarser or finer chroma, and
    independent noise on each entry of luma's and of chroma's table. normal: [n, PERTURBATIONS] standard normal
    numbers."""
    scales = to_device(torch.tensor([0.4, 0.5, 0.5, 0.3]), normal.device)
    spread, down, across, chroma = (normal[:, :4] * scales)[:, :, None, None].unbind(1)
    frequency = torch.linspace(-0.5, 0.5, 8, device=tables.device)
    tilt = down * frequency[:, None] + across * frequency
    coarser = torch.stack((torch.zeros_like(chroma), chroma, chroma), 1)
    logs = tables.float().log()
    level = logs.mean((2, 3), keepdim=True)
    spread_logs = level + (1 + spread).clamp(0, 2)[:, None] * (logs - level)
    noise = 0.05 * normal[:, 4:].reshape(-1, 2, 8, 8)[:, [0, 1, 1]]
    return (spread_logs + tilt[:, None] + coarser + noise).exp().round().clamp(1, 255).int()


def random_tables(config: DegradationConfig, count: int, random: torch.Generator) -> Tensor:
    """Tables [count, 3, 8, 8] int32, on the device of `random`."""
    uniform = torch.rand(count, 3, generator=random, device=random.device, dtype=torch.float64)
    normal = torch.randn(count, PERTURBATIONS, generator=random, device=random.device)
    tables = _annex_k(random.device)[random_qualities(config, uniform) - 1]
    others = uniform[:, 2] < config.perturbed
    return torch.where(others[:, None, None, None], perturb(tables, normal), tables)


@cache
def _annex_k(device: torch.device) -> Tensor:
    """Annex K's tables (T.81) at the qualities 1 to 100: [100, 3, 8, 8] int32."""
    return tables_by_quality()[:, [0, 1, 1]].to(device)


def compress(clean: Tensor, tables: Tensor, sampling: Subsampling) -> CompressedCrops:
    """Compresses crops [n, 3, h, w] float32, 0..255, with tables [n, 1 or 3, 8, 8] int32; gray takes their luma."""
    if sampling is Subsampling.GRAY:
        luma = 0.299 * clean[:, :1] + 0.587 * clean[:, 1:2] + 0.114 * clean[:, 2:]
        coefficients = encode(luma, tables, sampling)
        return CompressedCrops(luma.expand(-1, 3, -1, -1), coefficients, decode(coefficients).expand(-1, 3, -1, -1))
    coefficients = encode(clean, tables, sampling)
    return CompressedCrops(clean, coefficients, decode(coefficients))


def as_batch(crops: CompressedCrops, seeds: Tensor) -> Batch:
    """A batch of one sampling. seeds: [n, draws] int64."""
    count, sampling = len(crops.clean), crops.coefficients.sampling
    tables = three_tables(crops.coefficients.tables)
    index = crops.sampling_index()
    return Batch(crops.clean / 255, crops.decoded / 255, tables, [sampling] * count, index, seeds, 0, count)


def degrade(
    clean: Tensor, config: DegradationConfig, random: torch.Generator, ranks: Ranks | None = None, draws: int = 0
) -> Batch:
    """Compresses this rank's crops [n, 3, h, w] uint8 or float, 0..255, each with its own tables and sampling.

    random: a CPU generator in the same state on all ranks. draws: the number of noise seeds for each crop."""
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    count, total, device = len(clean), len(clean) * size, clean.device
    own = slice(rank * count, (rank + 1) * count)
    weights = torch.tensor([config.samplings.get(s.label, 0.0) for s in SAMPLINGS])
    drawn = torch.multinomial(weights, total, replacement=True, generator=random)[own]
    samplings = [SAMPLINGS[number] for number in drawn.tolist()]
    random = _generator_on(device, random)
    tables = random_tables(config, total, random)[own]
    seeds = torch.randint(2**62, (total, draws), generator=random, device=device)[own]

    clean = clean.float()
    kept, decoded = torch.empty_like(clean), torch.empty_like(clean)
    for sampling, index in group_by_sampling(samplings, device):
        crops = compress(clean[index], tables[index, : sampling.components], sampling)
        kept[index], decoded[index] = crops.clean, crops.decoded
        tables[index, sampling.components :] = 1
    return Batch(kept / 255, decoded / 255, tables, samplings, to_device(drawn, device), seeds, rank * count, total)


def _generator_on(device: torch.device, random: torch.Generator) -> torch.Generator:
    """A generator on the device, seeded by the CPU generator; the CPU generator itself if the device is the CPU."""
    if device.type == "cpu":
        return random
    seed = int(torch.randint(2**62, (), generator=random))
    return torch.Generator(device).manual_seed(seed)
