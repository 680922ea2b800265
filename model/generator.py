"""The generator: decoded image + quantisation tables (+ noise) → restored image.

A trunk on a 4x pixel-unshuffled image, FiLM-conditioned on the tables (the paper conditions on a quality number). It
knows where it is in the JPEG grid: a learned bias for each position in a 16x16 MCU. What it computes is a change of the
decoded image. Two trunks: plain residual blocks, small and fast, deterministic, whose samples come from a noise head
(model/noise_head.py) beside the regression's output; and the paper's RRDB, with noise injected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.coefficients import Subsampling
from model.noise import gaussian
from model.noise_head import NoiseHead
from model.rrdb import RRDB, Upsampler

SCALE = 4
"""Pixels of one side of a trunk position (pixel unshuffle)."""

ALIGNMENT = 16
"""Pixels to which inputs must be aligned, in size and in place: the grid of the largest MCU."""


TRUNKS = ("residual", "rrdb")


@dataclass(frozen=True)
class GeneratorConfig:
    """features: width of the trunk. blocks: at a quarter of the resolution; half of the residual ones lie before and
    half after the inner ones. inner_features, inner_blocks: residual blocks at an eighth (0: none). embedding: width of
    the conditioning. noise: draw samples. trunk: `residual` or `rrdb`. growth: channels that a convolution
    of `rrdb` adds.

    Raises ValueError for another trunk, for inner blocks in `rrdb`, and for widths and counts below their least."""

    features: int = 64
    blocks: int = 8
    inner_features: int = 128
    inner_blocks: int = 0
    embedding: int = 64
    noise: bool = False
    trunk: str = "residual"
    growth: int = 32

    def __post_init__(self) -> None:
        for name in ("features", "inner_features", "embedding", "growth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("blocks", "inner_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.trunk not in TRUNKS:
            raise ValueError(f"trunk {self.trunk!r}: expected {' or '.join(TRUNKS)}")
        if self.trunk == "rrdb" and self.inner_blocks:
            raise ValueError(f"inner_blocks {self.inner_blocks}: the trunk rrdb has none, expected 0")

    @property
    def has_head(self) -> bool:
        """Whether samples come from a noise head, beside a regression's output."""
        return self.noise and self.trunk == "residual"

    @property
    def regresses(self) -> bool:
        """Whether there is an output without noise."""
        return not self.noise or self.has_head


PAPER = GeneratorConfig(trunk="rrdb", blocks=23, features=64, growth=32, noise=True)
"""The paper's size: 17 million parameters."""


SILENT, LOUD = 12.0, 29.0
"""Mean luma steps, those of libjpeg's qualities 90 and 75: up to the first the generator draws nothing, for a sample
would be less like the original than the plain decode; from the second on its noise is whole."""


EXTREME = 2.0
"""Gaussian noise beyond it is cut off: at its rare extremes networks drew hatching, as they had seen too few of them to
learn otherwise."""


NOISE = 3
"""The version of what a seed means: another gives other samples. 1: without `EXTREME`, and a seed's complement had
noise of its own. 2: Gaussian noise in residual blocks, at a quarter of the resolution."""


@dataclass(frozen=True)
class Noise:
    """Which noise to draw: seeds [N, K] int64, for K samples of each input, and the place [N, 2] int64 (y, x), in
    pixels, of each input's corner in its image, on the MCU grid like the inputs themselves."""

    seeds: Tensor
    origins: Tensor


@dataclass(frozen=True)
class Layers:
    """The Gaussian noise of one sample of each input: seeds [N], origins as in `Noise`, and the amplitude [N, 1, 1, 1],
    see `noise_amplitude`."""

    seeds: Tensor
    origins: Tensor
    amplitude: Tensor

    def draw(self, first: int, count: int, scale: int, size: tuple[int, int]) -> Tensor:
        """[N, count, h, w] float32: layers `first` and on, on a grid of every `scale` pixels."""
        origins = self.origins // scale
        return gaussian(self.seeds, first, count, origins, size, limit=EXTREME, amplitude=self.amplitude)


class Drawn(NamedTuple):
    """samples: [N, K, 3, H, W]. mean: [N, 3, H, W], the regression's output; None of `rrdb`. Samples have the mean's
    value in them, not its gradient: what they are trained for leaves the regression's tail alone."""

    samples: Tensor
    mean: Tensor | None

    def at(self, strength: float) -> Tensor:
        """[N, K, 3, H, W] on the straight line from the mean (0) to the samples (1)."""
        if strength == 1:
            return self.samples
        assert self.mean is not None
        return torch.lerp(self.mean[:, None], self.samples, strength)


def noise_amplitude(tables: Tensor) -> Tensor:
    """[N, 1 or 3, 8, 8] → [N, 1, 1, 1]: the noise's amplitude, 0 for fine luma tables and 1 for coarse ones, linear in
    the logarithm of the mean step between."""
    steps = tables[:, :1].float().mean((1, 2, 3), keepdim=True)
    return ((steps / SILENT).log() / log(LOUD / SILENT)).clamp(0, 1)


def three_tables(tables: Tensor) -> Tensor:
    """Gray's [N, 1, 8, 8] → [N, 3, 8, 8], steps of one standing for the chroma tables that it lacks."""
    return F.pad(tables, (0, 0, 0, 0, 0, 3 - tables.shape[1]), value=1)


class Conditioning(nn.Module):
    """log2 of all table entries and the sampling → an embedding [N, embedding]."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * 64 + len(Subsampling), embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )

    def forward(self, tables: Tensor, sampling: Tensor) -> Tensor:
        """tables: [N, 1 or 3, 8, 8] int32. sampling: [N] int64, positions in `Subsampling`."""
        logs = three_tables(tables).float().log2().flatten(1) / 4 - 1
        embedded: Tensor = self.layers(torch.cat((logs, F.one_hot(sampling, len(Subsampling)).float()), dim=1))
        return embedded


class ResidualBlock(nn.Module):
    """x + conv(relu(film(conv(x))))."""

    def __init__(self, features: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * features)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        gain, shift = self.film(embedded)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        h = F.relu(torch.addcmul(shift, self.first(x), 1 + gain), inplace=True)
        change: Tensor = self.second(h)
        return change.add_(x)  # in place: the sum costs as much as a tenth of a convolution


class Generator(nn.Module):
    """See the module. Without `config.noise` it is a regression network; with it, it draws samples, and of residual
    blocks it is both."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning = Conditioning(config.embedding)
        self.head = nn.Conv2d(3 * SCALE**2, config.features, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, config.features, ALIGNMENT // SCALE, ALIGNMENT // SCALE))
        if config.trunk == "rrdb":
            self._build_rrdb(config)
        else:
            self._build_residual(config)

    def _build_residual(self, config: GeneratorConfig) -> None:
        channels = 3 * SCALE**2

        def stage(features: int, blocks: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(features, config.embedding) for _ in range(blocks))

        self.before = stage(config.features, config.blocks // 2)
        self.inner = stage(config.inner_features, config.inner_blocks)
        self.after = stage(config.features, config.blocks - config.blocks // 2)
        if config.inner_blocks:
            self.down = nn.Conv2d(config.features, config.inner_features, 2, stride=2)
            self.up = nn.Conv2d(config.inner_features, 4 * config.features, 1)
        self.tail = nn.Conv2d(config.features, channels, 3, padding=1)
        self.gain = nn.Linear(config.embedding, 1)
        start_small(self.tail)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)
        if config.noise:
            self.noise_head = NoiseHead(config.features)

    def _build_rrdb(self, config: GeneratorConfig) -> None:
        self.dense = nn.ModuleList(
            RRDB(config.features, config.growth, config.embedding, config.noise) for _ in range(config.blocks)
        )
        self.body = nn.Conv2d(config.features, config.features, 3, padding=1)
        self.upsampler = Upsampler(config.features, config.noise)
        start_small(self.upsampler.tail)

    @property
    def reach(self) -> int:
        """Pixels: what lies further than this outside a tile, itself on the MCU grid, cannot change a pixel in it; so
        many of context make tiles and the whole image agree."""
        config = self.config
        if config.trunk == "rrdb":
            return SCALE * (2 + RRDB.draws * config.blocks) + Upsampler.reach
        inner = 4 * config.inner_blocks + 1 if config.inner_blocks else 0
        head = -(-NoiseHead.reach // SCALE) if config.noise else 0
        return SCALE * (2 + 2 * config.blocks + inner + head)

    def convolve_in(self, dtype: torch.dtype) -> Generator:
        """For inference: convolutions (and their inputs) in `dtype`, channels last; the conditioning stays as it is."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        return self

    def forward(self, decoded: Tensor, tables: Tensor, sampling: Tensor, noise: Noise | None = None) -> Tensor | Drawn:
        """decoded: [N, 3, H, W], 0..1, H and W multiples of 16, its corner on the MCU grid. tables: [N, 1 or 3, 8, 8].
        sampling: [N] int64, positions in `Subsampling`. Returns the regression's output [N, 3, H, W], or with noise
        what is drawn, in the input's dtype, not limited to 0..1. Residual blocks run once for all samples.

        Raises ValueError for other shapes, and for noise that is missing or not wanted."""
        self._check(decoded, noise)
        embedded = self.conditioning(tables, sampling)
        x = F.pixel_unshuffle(decoded - 0.5, SCALE).to(self.head.weight.dtype, memory_format=torch.channels_last)
        x = self.head(x)
        x = x + self.place.to(x.dtype).repeat(1, 1, *(side // ALIGNMENT for side in decoded.shape[2:]))
        if self.config.trunk == "rrdb":
            if noise is None:
                return decoded + self._rrdb(x, embedded, None).to(decoded.dtype)
            changes = self._rrdb_drawn(x, embedded, noise, noise_amplitude(tables))
            return Drawn(decoded[:, None] + changes.to(decoded.dtype), None)
        x = self._residual(x, embedded)
        change = self.tail(x) * self.gain(embedded).exp()[:, :, None, None].to(x.dtype)
        change = F.pixel_shuffle(change, SCALE).to(decoded.dtype)
        mean = decoded + change
        if noise is None:
            return mean
        texture = self.noise_head(x, decoded, change.detach(), noise.seeds, noise.origins).to(decoded.dtype)
        return Drawn(torch.addcmul(mean.detach()[:, None], noise_amplitude(tables)[:, None], texture), mean)

    def _check(self, decoded: Tensor, noise: Noise | None) -> None:
        if decoded.dim() != 4 or decoded.shape[1] != 3 or any(side % ALIGNMENT for side in decoded.shape[2:]):
            raise ValueError(
                f"the generator takes [N, 3, H, W], H and W multiples of {ALIGNMENT} pixels, got {list(decoded.shape)}"
            )
        if noise is None and not self.config.regresses:
            raise ValueError("the trunk rrdb has no output without noise, when it was built with it: it needs noise")
        if noise is not None and not self.config.noise:
            raise ValueError("a regression network takes no noise")

    def _residual(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Head's features [N, features, h, w] → the residual trunk's last, of the same shape."""
        for block in self.before:
            x = block(x, embedded)
        if self.config.inner_blocks:
            y = self.down(x)
            for block in self.inner:
                y = block(y, embedded)
            x = x + F.pixel_shuffle(self.up(y), 2)
        for block in self.after:
            x = block(x, embedded)
        return x

    def _rrdb_drawn(self, x: Tensor, embedded: Tensor, noise: Noise, amplitude: Tensor) -> Tensor:
        """Head's features → changes [N, K, 3, H, W]: all dense blocks run for each sample."""
        layers = [Layers(seeds, noise.origins, amplitude) for seeds in noise.seeds.unbind(1)]
        return torch.stack([self._rrdb(x, embedded, one) for one in layers], 1)

    def _rrdb(self, x: Tensor, embedded: Tensor, layers: Layers | None) -> Tensor:
        """Head's features [N, features, h, w] → change [N, 3, H, W]. Layers of noise are numbered in their order."""
        height, width = x.shape[2:]

        def drawn(first: int, count: int, scale: int) -> Tensor | None:
            size = (height * SCALE // scale, width * SCALE // scale)
            return None if layers is None else layers.draw(first, count, scale, size)

        y, layer = x, 0
        for block in self.dense:
            y = block(y, embedded, drawn(layer, RRDB.draws, SCALE))
            layer += RRDB.draws
        change: Tensor = self.upsampler(x + self.body(y), drawn(layer, 1, SCALE // 2), drawn(layer + 1, 1, 1))
        return change


def start_small(tail: nn.Conv2d) -> None:
    """A last convolution whose output begins near zero."""
    with torch.no_grad():
        tail.weight.mul_(0.1)
    assert tail.bias is not None
    nn.init.zeros_(tail.bias)


def inherit(generator: Generator, trained: Generator) -> None:
    """Takes over all weights of a trained generator of the same width. What draws a noisy one's samples stays as it is
    where the trained one has none: so a sampler starts from a regression network. A deeper one, of residual blocks, has
    the trained blocks at both ends and new ones in the middle, which change nothing at first. Raises ValueError where
    it cannot be."""
    ours, theirs = generator.config, trained.config
    deeper = ours.trunk == "residual" and not ours.inner_blocks and ours.blocks >= theirs.blocks
    grown = replace(theirs, noise=theirs.noise or ours.noise, blocks=ours.blocks if deeper else theirs.blocks)
    if grown != ours:
        raise ValueError(f"a generator of {ours} cannot take over the weights of {trained.config}")
    tensors = {_grown(name, ours, theirs): tensor for name, tensor in trained.state_dict().items()}
    for name, tensor in generator.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros_like(tensor) if ".second." in name else tensor
    generator.load_state_dict(tensors)


def _grown(name: str, ours: GeneratorConfig, theirs: GeneratorConfig) -> str:
    """Of a trained tensor, the name in a deeper trunk: blocks of the second half are counted from the end."""
    stage, _, rest = name.partition(".")
    if stage != "after":
        return name
    number, _, tensor = rest.partition(".")
    added = (ours.blocks - ours.blocks // 2) - (theirs.blocks - theirs.blocks // 2)
    return f"{stage}.{int(number) + added}.{tensor}"
