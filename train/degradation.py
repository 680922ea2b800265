"""Clean crops → the JPEGs that training sees, by our own operators: random tables and samplings, `encode`, `decode`."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, encode, quality_to_tables
from train.config import DegradationConfig

SAMPLINGS = list(Subsampling)


@dataclass(frozen=True)
class Pair:
    """Crops of one sampling. clean: [n, 3, h, w], 0..255, gray repeated. coefficients: theirs. decoded: [n, 3, h, w],
    0..255, what an ordinary decoder shows."""

    clean: Tensor
    coefficients: Coefficients
    decoded: Tensor

    def sampling_index(self) -> Tensor:
        """[n] int64: the generator's sampling argument."""
        return torch.full((len(self.clean),), SAMPLINGS.index(self.coefficients.sampling), device=self.clean.device)


def random_quality(config: DegradationConfig, random: torch.Generator) -> int:
    """Log-uniform on both sides of `quality_mean`, half of the draws on each: artefacts change with the logarithm."""
    (low, high), middle = config.quality, config.quality_mean
    side, place = torch.rand(2, generator=random).tolist()
    ends = (low, middle) if side < 0.5 else (middle, high)
    return round(exp(log(ends[0]) + place * (log(ends[1]) - log(ends[0]))))


def perturb(tables: Tensor, random: torch.Generator) -> Tensor:
    """Tables [C, 8, 8] as other encoders write them: tilted across frequencies, chroma coarser or finer, scattered."""
    down, across, chroma, scatter = (torch.randn(4, generator=random) * torch.tensor([0.5, 0.5, 0.3, 0.05])).tolist()
    frequency = torch.linspace(-0.5, 0.5, 8)
    tilt = down * frequency[:, None] + across * frequency
    factor = tilt + scatter * torch.randn(tables.shape, generator=random)
    factor[1:] += chroma
    perturbed: Tensor = tables * factor.exp()
    return perturbed.round().clamp(1, 255).int()


def random_tables(sampling: Subsampling, config: DegradationConfig, random: torch.Generator) -> Tensor:
    """[C, 8, 8] int32."""
    tables = quality_to_tables(random_quality(config, random), sampling.components)
    if float(torch.rand((), generator=random)) < config.perturbed:
        tables = perturb(tables, random)
    return tables


def compress(clean: Tensor, tables: Tensor, sampling: Subsampling) -> Pair:
    """Crops [n, 3, h, w], 0..255, of one sampling → a Pair. Gray takes their luma."""
    if sampling is Subsampling.GRAY:
        luma = (clean * torch.tensor([0.299, 0.587, 0.114], device=clean.device)[:, None, None]).sum(1, keepdim=True)
        coefficients = encode(luma, tables, sampling)
        return Pair(luma.expand(-1, 3, -1, -1), coefficients, decode(coefficients).expand(-1, 3, -1, -1))
    coefficients = encode(clean, tables, sampling)
    return Pair(clean, coefficients, decode(coefficients))


def degrade(clean: Tensor, config: DegradationConfig, random: torch.Generator) -> list[Pair]:
    """Crops [N, 3, h, w], 0..255, each compressed with its own tables and sampling; a Pair for each sampling drawn."""
    weights = torch.tensor([config.samplings.get(s.label, 0.0) for s in SAMPLINGS])
    drawn = torch.multinomial(weights, len(clean), replacement=True, generator=random)
    pairs = []
    for number, sampling in enumerate(SAMPLINGS):
        chosen = (drawn == number).nonzero().flatten()
        if len(chosen):
            tables = torch.stack([random_tables(sampling, config, random) for _ in chosen]).to(clean.device)
            pairs.append(compress(clean[chosen.to(clean.device)], tables, sampling))
    return pairs
