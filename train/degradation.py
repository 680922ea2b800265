"""Clean crops → the JPEGs that training sees, by our own operators: random tables and samplings, `encode`, `decode`.

All is drawn for the crops of a whole step, and each rank takes its own, so that the number of ranks changes nothing.
Tables are drawn and made on the device; of the samplings, which decide the shapes, the CPU must know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import log

import torch
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, encode, quality_to_tables
from model.generator import three_tables
from train.checks import expect
from train.distributed import Ranks, on_device

SAMPLINGS = list(Subsampling)


@dataclass(frozen=True)
class DegradationConfig:
    """Which JPEGs the crops become."""

    quality: tuple[int, int] = (5, 95)  # libjpeg's scale, both ends included
    quality_mean: float = 30.0  # inside `quality`; half of all crops lie below it
    perturbed: float = 0.25  # share of crops whose tables are not Annex K's
    samplings: dict[str, float] = field(  # weights
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
class Pair:
    """Crops of one sampling. clean: [n, 3, h, w], 0..255, gray repeated. coefficients: theirs. decoded: [n, 3, h, w],
    0..255, what an ordinary decoder shows."""

    clean: Tensor
    coefficients: Coefficients
    decoded: Tensor

    def sampling_index(self) -> Tensor:
        """[n] int64: the generator's sampling argument."""
        return torch.full((len(self.clean),), SAMPLINGS.index(self.coefficients.sampling), device=self.clean.device)


@dataclass(frozen=True)
class Batch:
    """Crops of any samplings, as networks and losses take them.

    clean, decoded: [n, 3, h, w] float32, 0..1, gray repeated. tables: [n, 3, 8, 8] int32, ones where gray has none.
    samplings: of each. sampling_index: [n] int64, the generator's argument. seeds: [n, draws] int64, of the noise.
    first, total: the number of the first crop among all that the ranks see in the step.
    """

    clean: Tensor
    decoded: Tensor
    tables: Tensor
    samplings: list[Subsampling]
    sampling_index: Tensor
    seeds: Tensor
    first: int
    total: int

    def __len__(self) -> int:
        return len(self.samplings)

    def take(self, places: list[int]) -> Batch:
        """The crops at these places, however often each is named."""
        index = on_device(torch.tensor(places), self.clean.device)
        return replace(self.tensors(index), samplings=[self.samplings[place] for place in places])

    def split(self, parts: int) -> list[Batch]:
        """Parts of equal length, without a copy."""
        length = len(self) // parts
        slices = [slice(start, start + length) for start in range(0, len(self), length)]
        return [
            replace(self.tensors(own), samplings=self.samplings[own], first=self.first + own.start) for own in slices
        ]

    def tensors(self, index: slice | Tensor) -> Batch:
        """With each tensor indexed."""
        names = ("clean", "decoded", "tables", "sampling_index", "seeds")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def spread(self, count: int) -> list[int]:
        """Which of its crops are among `count` that lie evenly spread in the whole step."""
        chosen = {number * self.total // count for number in range(count)}
        return [place for place in range(len(self)) if self.first + place in chosen]

    def groups(self) -> Iterator[tuple[Subsampling, Tensor]]:
        """Each sampling that occurs, and the places of its crops, int64 on the device."""
        yield from groups(self.samplings, self.clean.device)


def groups(samplings: list[Subsampling], device: torch.device) -> Iterator[tuple[Subsampling, Tensor]]:
    for sampling in SAMPLINGS:
        places = [place for place, one in enumerate(samplings) if one is sampling]
        if places:
            yield sampling, on_device(torch.tensor(places), device)


def random_qualities(config: DegradationConfig, uniform: Tensor) -> Tensor:
    """[n] int64 from uniform numbers [n, 2]: log-uniform on both sides of `quality_mean`, half of the draws on each:
    artefacts change with the logarithm."""
    low, middle, high = (log(quality) for quality in (config.quality[0], config.quality_mean, config.quality[1]))
    below = uniform[:, 0] < 0.5
    bottom, span = torch.where(below, low, middle), torch.where(below, middle - low, high - middle)
    return (bottom + uniform[:, 1] * span).exp().round().long().clamp(*config.quality)


def perturbed(tables: Tensor, normal: Tensor) -> Tensor:
    """Tables [n, 3, 8, 8] as other encoders write them: tilted across frequencies, chroma coarser or finer, scattered.
    normal: [n, 3 + 3 · 64] standard normal numbers."""
    down, across, chroma = (normal[:, :3] * on_device(torch.tensor([0.5, 0.5, 0.3]), normal.device)).unbind(1)
    frequency = torch.linspace(-0.5, 0.5, 8, device=tables.device)
    tilt = down[:, None, None] * frequency[:, None] + across[:, None, None] * frequency
    coarser = torch.stack((torch.zeros_like(chroma), chroma, chroma), 1)[:, :, None, None]
    factor = tilt[:, None] + coarser + 0.05 * normal[:, 3:].reshape(-1, 3, 8, 8)
    return (tables * factor.exp()).round().clamp(1, 255).int()


def random_tables(config: DegradationConfig, count: int, random: torch.Generator) -> Tensor:
    """[count, 3, 8, 8] int32 on the generator's device."""
    uniform = torch.rand(count, 3, generator=random, device=random.device, dtype=torch.float64)
    normal = torch.randn(count, 3 + 3 * 64, generator=random, device=random.device)
    tables = _annex_k(random.device)[random_qualities(config, uniform) - 1]
    others = uniform[:, 2] < config.perturbed
    return torch.where(others[:, None, None, None], perturbed(tables, normal), tables)


@cache
def _annex_k(device: torch.device) -> Tensor:
    """[100, 3, 8, 8] int32: those of each quality."""
    return torch.stack([quality_to_tables(quality, 3) for quality in range(1, 101)]).to(device)


def compress(clean: Tensor, tables: Tensor, sampling: Subsampling) -> Pair:
    """Crops [n, 3, h, w], 0..255, of one sampling → a Pair. Gray takes their luma."""
    if sampling is Subsampling.GRAY:
        luma = 0.299 * clean[:, :1] + 0.587 * clean[:, 1:2] + 0.114 * clean[:, 2:]
        coefficients = encode(luma, tables, sampling)
        return Pair(luma.expand(-1, 3, -1, -1), coefficients, decode(coefficients).expand(-1, 3, -1, -1))
    coefficients = encode(clean, tables, sampling)
    return Pair(clean, coefficients, decode(coefficients))


def as_batch(pair: Pair, seeds: Tensor) -> Batch:
    """A whole step's batch of one sampling."""
    count, sampling = len(pair.clean), pair.coefficients.sampling
    tables = three_tables(pair.coefficients.tables)
    index = pair.sampling_index()
    return Batch(pair.clean / 255, pair.decoded / 255, tables, [sampling] * count, index, seeds, 0, count)


def degrade(
    clean: Tensor, config: DegradationConfig, random: torch.Generator, ranks: Ranks | None = None, draws: int = 0
) -> Batch:
    """This rank's crops [n, 3, h, w], 0..255, each compressed with its own tables and sampling. `random`, on the CPU,
    is to be in the same state on all ranks. draws: noise seeds for each crop."""
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    count, total, device = len(clean), len(clean) * size, clean.device
    own = slice(rank * count, (rank + 1) * count)
    weights = torch.tensor([config.samplings.get(s.label, 0.0) for s in SAMPLINGS])
    drawn = torch.multinomial(weights, total, replacement=True, generator=random)[own]
    samplings = [SAMPLINGS[number] for number in drawn.tolist()]
    random = _on(device, random)
    tables = random_tables(config, total, random)[own]
    seeds = torch.randint(2**62, (total, draws), generator=random, device=device)[own]

    clean = clean.float()
    kept, decoded = torch.empty_like(clean), torch.empty_like(clean)
    for sampling, places in groups(samplings, device):
        pair = compress(clean[places], tables[places, : sampling.components], sampling)
        kept[places], decoded[places] = pair.clean, pair.decoded
        tables[places, sampling.components :] = 1
    return Batch(kept / 255, decoded / 255, tables, samplings, on_device(drawn, device), seeds, rank * count, total)


def _on(device: torch.device, random: torch.Generator) -> torch.Generator:
    """A generator on the device, decided by the one on the CPU; the CPU's own where that is the device."""
    if device.type == "cpu":
        return random
    seed = int(torch.randint(2**62, (), generator=random))
    return torch.Generator(device).manual_seed(seed)
