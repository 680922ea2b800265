"""The generator: decoded image + quantisation tables (+ noise) → restored image.

A trunk on the 4x pixel-unshuffled image computes a change of the decoded image. It is FiLM-conditioned on the tables
(the paper, arXiv 2211.11827, conditions on the quality factor), and a learned bias for each position in a 16x16 MCU
encodes the position in the JPEG grid. There are two trunks: residual blocks, small and deterministic, with a regression
output and a noise head for samples (model/noise_head.py); and the paper's RRDB with noise injection (model/rrdb.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.coefficients import Subsampling
from kernels.tables import tables_by_quality
from model.noise import gaussian
from model.noise_head import NoiseHead
from model.rrdb import RRDB, Upsampler

SCALE = 4
"""Factor of the pixel unshuffle: the trunk works at a quarter of the resolution."""

ALIGNMENT = 16
"""Pixels. Inputs are aligned to the grid of the largest MCU, in size and position."""


TRUNKS = ("residual", "rrdb")

SAMPLINGS = list(Subsampling)
"""In the order of the conditioning: the generator's argument `sampling` has positions in it."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of the generator. Raises ValueError for an unknown trunk, for inner blocks in `rrdb`, and for widths
    and counts that are too small."""

    features: int = 64  # channels of the trunk
    blocks: int = 8  # blocks at a quarter of the resolution; residual blocks: half before and half after the inner ones
    inner_features: int = 128  # channels of the inner blocks
    inner_blocks: int = 0  # residual blocks at an eighth of the resolution; of large networks, none that ships
    embedding: int = 64  # width of the conditioning
    noise: bool = False  # whether it draws samples
    noise_maps: int = 24  # residual: maps of filtered noise in the noise head, 24 in old files that do not say
    trunk: str = "residual"  # or rrdb
    growth: int = 32  # rrdb: channels that a convolution of a dense block adds
    finest_quality: int = 96  # finer tables condition it as those of this quality: at least the best in training

    def __post_init__(self) -> None:
        for name in ("features", "inner_features", "embedding", "growth", "noise_maps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("blocks", "inner_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 1 <= self.finest_quality <= 100:
            raise ValueError(f"finest_quality: expected 1 to 100, got {self.finest_quality}")
        if self.trunk not in TRUNKS:
            raise ValueError(f"trunk {self.trunk!r}: expected {' or '.join(TRUNKS)}")
        if self.trunk == "rrdb" and self.inner_blocks:
            raise ValueError(f"inner_blocks {self.inner_blocks}: the trunk rrdb has none, expected 0")

    @property
    def has_noise_head(self) -> bool:
        """Whether samples come from a noise head, in addition to a regression output."""
        return self.noise and self.trunk == "residual"

    @property
    def has_regression(self) -> bool:
        """Whether the generator has an output without noise."""
        return not self.noise or self.has_noise_head


NO_NOISE_STEP, FULL_NOISE_STEP = 12.0, 29.0
"""Mean quantisation steps of luma, those of libjpeg's qualities 90 and 75. Below the first the noise amplitude is 0,
because samples would be less similar to the original than the plain decode; above the second it is 1."""


NOISE_LIMIT = 2.0
"""Gaussian noise is clipped at this many standard deviations; rarer values produced hatching."""


NOISE_VERSION = 4
"""Version of the mapping from seeds to samples. 1: without NOISE_LIMIT, and without antithetic seeds. 2: Gaussian noise
in residual blocks, at a quarter of the resolution. 3: no noise beyond the edges of an image."""


@dataclass(frozen=True)
class Noise:
    """The noise to draw."""

    seeds: Tensor  # [N, K] int64, for K samples of each input
    origins: Tensor  # [N, 2] int64, (y, x) in pixels of each input's corner in its image, on the MCU grid


@dataclass(frozen=True)
class InjectedNoise:
    """The Gaussian noise of one sample of each input, for injection into the trunk `rrdb`."""

    seeds: Tensor  # [N] int64
    origins: Tensor  # [N, 2] int64, as in Noise
    amplitude: Tensor  # [N, 1, 1, 1] float32, see `noise_amplitude`

    def draw(self, first: int, count: int, scale: int, size: tuple[int, int]) -> Tensor:
        """Channels from `first` on, [N, count, h, w] float32. scale: pixels per position. size: (h, w)."""
        origins = self.origins // scale
        return gaussian(self.seeds, first, count, origins, size, limit=NOISE_LIMIT, amplitude=self.amplitude)


class Sampled(NamedTuple):
    """The output of a generator with noise, in the decoded image's dtype, not clamped. Samples are computed from the
    detached mean, so that their losses do not train the regression's last layers."""

    samples: Tensor  # [N, K, 3, H, W], 0..1
    mean: Tensor | None  # [N, 3, H, W], 0..1, the regression output; None for `rrdb`

    def at(self, strength: float) -> Tensor:
        """[N, K, 3, H, W]: linear interpolation from the mean (0) to the samples (1)."""
        if strength == 1:
            return self.samples
        assert self.mean is not None
        return torch.lerp(self.mean[:, None], self.samples, strength)


def noise_amplitude(tables: Tensor) -> Tensor:
    """Tables [N, 1 or 3, 8, 8] → amplitude of the noise [N, 1, 1, 1] float32: 0 for fine luma tables, 1 for coarse
    ones, and linear in the logarithm of the mean step in between."""
    steps = tables[:, :1].float().mean((1, 2, 3), keepdim=True)
    return ((steps / NO_NOISE_STEP).log() / log(FULL_NOISE_STEP / NO_NOISE_STEP)).clamp(0, 1)


def three_tables(tables: Tensor) -> Tensor:
    """Tables [N, 1 or 3, 8, 8] → [N, 3, 8, 8]; the missing chroma tables of gray are filled with ones."""
    return F.pad(tables, (0, 0, 0, 0, 0, 3 - tables.shape[1]), value=1)


class Conditioning(nn.Module):
    """Embeds libjpeg's tables of a quality for luma and of one for chroma, and the one-hot sampling.

    The qualities are those, up to `finest_quality`, whose mean steps are nearest the file's, so that libjpeg's files
    are conditioned on their own tables. Conditioned on tables unlike those of training, networks did worse than the
    plain decode: by 1 dB with MozJPEG's at quality 90, and 0.5 with libjpeg's at 100."""

    annex_k: Tensor  # [2, Q, 8, 8] int32: luma's and chroma's tables at the qualities 1 to Q
    limits: Tensor  # [2, Q - 1] float32: sums of steps between those of two qualities; above the first, it is quality 1

    def __init__(self, embedding: int, finest_quality: int) -> None:
        super().__init__()
        tables = tables_by_quality()[:finest_quality].transpose(0, 1).contiguous()
        sums = tables.sum((2, 3)).double()
        self.register_buffer("annex_k", tables, persistent=False)
        self.register_buffer("limits", (sums[:, 1:] * sums[:, :-1]).sqrt().float(), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(3 * 64 + len(Subsampling), embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )

    def forward(self, tables: Tensor, sampling: Tensor) -> Tensor:
        """tables: [N, 1 or 3, 8, 8] int32. sampling: [N] int64, positions in SAMPLINGS. Returns [N, embedding]."""
        luma, *chroma = three_tables(tables).unbind(1)
        gray = (sampling == SAMPLINGS.index(Subsampling.GRAY))[:, None, None]  # whose chroma tables are ones
        nearest = [self.nearest(luma, 0), *(torch.where(gray, table, self.nearest(table, 1)) for table in chroma)]
        logs = torch.stack(nearest, 1).float().log2().flatten(1) / 4 - 1
        embedded: Tensor = self.layers(torch.cat((logs, F.one_hot(sampling, len(Subsampling)).float()), dim=1))
        return embedded

    def nearest(self, tables: Tensor, chroma: int) -> Tensor:
        """Tables [N, 8, 8] → those of the quality whose mean step is nearest, by its logarithm. chroma: 0 or 1."""
        steps = tables.sum((1, 2)).float()[:, None]
        return self.annex_k[chroma, (steps < self.limits[chroma]).sum(1)]


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
        """x: [N, features, h, w]. embedded: [N, embedding]. Returns [N, features, h, w]."""
        gain, shift = self.film(embedded).chunk(2, dim=1)
        gain = 1 + gain
        if len(x) == 1 and not torch.is_grad_enabled():  # film in the convolution's weights: a tenth of the time less
            weight, bias = self.first.weight * gain.reshape(-1, 1, 1, 1), (self.first.bias * gain + shift)[0]
            h = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)
        else:
            gain, shift = (film[:, :, None, None].to(x.dtype) for film in (gain, shift))
            h = torch.addcmul(shift, self.first(x), gain)
        change: Tensor = self.second(F.relu(h, inplace=True))
        return change.add_(x)  # in place: the sum costs as much as a tenth of a convolution


class Generator(nn.Module):
    """See the module's docstring. Without `config.noise` it is a regression network; with it, it draws samples, and
    with the trunk `residual` it does both."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning = Conditioning(config.embedding, config.finest_quality)
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
        initialise_near_zero(self.tail)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)
        if config.noise:
            self.noise_head = NoiseHead(config.features, config.noise_maps)

    def _build_rrdb(self, config: GeneratorConfig) -> None:
        self.dense = nn.ModuleList(
            RRDB(config.features, config.growth, config.embedding, config.noise) for _ in range(config.blocks)
        )
        self.body = nn.Conv2d(config.features, config.features, 3, padding=1)
        self.upsampler = Upsampler(config.features, config.noise)
        initialise_near_zero(self.upsampler.tail)

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field in pixels, for a tile on the MCU grid: with as much context around it a tile is
        restored as in the whole image."""
        config = self.config
        if config.trunk == "rrdb":
            return SCALE * (2 + RRDB.noise_channels * config.blocks) + Upsampler.receptive_radius
        inner = 4 * config.inner_blocks + 1 if config.inner_blocks else 0
        head = -(-NoiseHead.receptive_radius // SCALE) if config.noise else 0
        return SCALE * (2 + 2 * config.blocks + inner + head)

    def convolve_in(self, dtype: torch.dtype) -> Generator:
        """For inference: converts the convolutions to `dtype` and channels-last, not the conditioning. Returns
        itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        return self

    def forward(
        self, decoded: Tensor, tables: Tensor, sampling: Tensor, noise: Noise | None = None
    ) -> Tensor | Sampled:
        """decoded: [N, 3, H, W] float, 0..1, H and W multiples of 16, with its corner on the MCU grid. tables:
        [N, 1 or 3, 8, 8] int32. sampling: [N] int64, positions in SAMPLINGS.

        Returns the regression output [N, 3, H, W] in the dtype of `decoded`, not clamped, or with noise a Sampled. The
        trunk `residual` runs once for all samples, `rrdb` once for each.

        Raises ValueError for other shapes, and for noise that is missing or not supported."""
        self._check(decoded, noise)
        embedded = self.conditioning(tables, sampling)
        centred = (decoded - 0.5).to(self.head.weight.dtype, memory_format=torch.channels_last)
        x = self.head(F.pixel_unshuffle(centred, SCALE))
        side = ALIGNMENT // SCALE
        place = self.place.to(x.dtype, memory_format=torch.channels_last)[:, :, None, :, None, :]
        x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).add_(place)  # in place: a fraction of the sum's time
        if self.config.trunk == "rrdb":
            if noise is None:
                return decoded + self._rrdb(x, embedded, None).to(decoded.dtype)
            changes = self._rrdb_samples(x, embedded, noise, noise_amplitude(tables))
            return Sampled(decoded[:, None] + changes.to(decoded.dtype), None)
        x = self._residual(x, embedded)
        change = self.tail(x) * self.gain(embedded).exp()[:, :, None, None].to(x.dtype)
        change = F.pixel_shuffle(change, SCALE).to(decoded.dtype)
        mean = decoded + change
        if noise is None:
            return mean
        texture = self.noise_head(x, decoded, change.detach(), noise.seeds, noise.origins).to(decoded.dtype)
        return Sampled(torch.addcmul(mean.detach()[:, None], noise_amplitude(tables)[:, None], texture), mean)

    def _check(self, decoded: Tensor, noise: Noise | None) -> None:
        if decoded.dim() != 4 or decoded.shape[1] != 3 or any(side % ALIGNMENT for side in decoded.shape[2:]):
            raise ValueError(
                f"the generator takes [N, 3, H, W], H and W multiples of {ALIGNMENT} pixels, got {list(decoded.shape)}"
            )
        if noise is None and not self.config.has_regression:
            raise ValueError("a sampler with the trunk rrdb has no output without noise: pass noise")
        if noise is not None and not self.config.noise:
            raise ValueError("a regression network takes no noise")

    def _residual(self, x: Tensor, embedded: Tensor) -> Tensor:
        """The residual trunk: [N, features, h, w] → [N, features, h, w]."""
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

    def _rrdb_samples(self, x: Tensor, embedded: Tensor, noise: Noise, amplitude: Tensor) -> Tensor:
        """The trunk `rrdb` for K samples: [N, features, h, w] → changes [N, K, 3, H, W]."""
        injected = [InjectedNoise(seeds, noise.origins, amplitude) for seeds in noise.seeds.unbind(1)]
        return torch.stack([self._rrdb(x, embedded, one) for one in injected], 1)

    def _rrdb(self, x: Tensor, embedded: Tensor, noise: InjectedNoise | None) -> Tensor:
        """The trunk `rrdb`: [N, features, h, w] → change [N, 3, H, W]. Noise channels are numbered in order of use."""
        height, width = x.shape[2:]

        def draw(first: int, count: int, scale: int) -> Tensor | None:
            size = (height * SCALE // scale, width * SCALE // scale)
            return None if noise is None else noise.draw(first, count, scale, size)

        y, channel = x, 0
        for block in self.dense:
            y = block(y, embedded, draw(channel, RRDB.noise_channels, SCALE))
            channel += RRDB.noise_channels
        change: Tensor = self.upsampler(x + self.body(y), draw(channel, 1, SCALE // 2), draw(channel + 1, 1, 1))
        return change


def initialise_near_zero(tail: nn.Conv2d) -> None:
    """Initialises a last convolution for outputs near zero."""
    with torch.no_grad():
        tail.weight.mul_(0.1)
    assert tail.bias is not None
    nn.init.zeros_(tail.bias)


def initialise_from(generator: Generator, trained: Generator) -> None:
    """Copies the weights of a trained generator of the same width.

    A sampler can be initialised from a regression network: its noise head or noise weights keep their values. A noise
    head with fewer maps gets the largest. A deeper residual trunk gets the trained blocks at both ends, and new blocks
    in the middle that start as the identity. Raises ValueError for other differences."""
    ours, theirs = generator.config, trained.config
    fewer = theirs.has_noise_head and ours.noise and ours.noise_maps < theirs.noise_maps
    deeper = ours.trunk == "residual" and not ours.inner_blocks and ours.blocks >= theirs.blocks
    grown = replace(
        theirs,
        noise=theirs.noise or ours.noise,
        noise_maps=theirs.noise_maps if theirs.noise and not fewer else ours.noise_maps,
        blocks=ours.blocks if deeper else theirs.blocks,
        finest_quality=ours.finest_quality,
    )
    if grown != ours:
        wanted, given = asdict(ours), asdict(grown)
        differing = ", ".join(f"{key}={wanted[key]}, not {given[key]}" for key in wanted if wanted[key] != given[key])
        raise ValueError(f"a generator with {differing} cannot be initialised with these weights")
    tensors = {_renumbered(name, ours, theirs): tensor for name, tensor in trained.state_dict().items()}
    if fewer:
        head = trained.noise_head.largest_maps(ours.noise_maps)
        tensors |= {f"noise_head.{name}": tensor for name, tensor in head.items()}
    for name, tensor in generator.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros_like(tensor) if ".second." in name else tensor
    generator.load_state_dict(tensors)


def _renumbered(name: str, ours: GeneratorConfig, theirs: GeneratorConfig) -> str:
    """The name of a trained tensor in a deeper trunk: blocks of the second half are numbered from the end."""
    stage, _, rest = name.partition(".")
    if stage != "after":
        return name
    number, _, tensor = rest.partition(".")
    added = (ours.blocks - ours.blocks // 2) - (theirs.blocks - theirs.blocks // 2)
    return f"{stage}.{int(number) + added}.{tensor}"
