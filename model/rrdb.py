"""The blocks of the paper's generator: residual-in-residual dense blocks (Wang et al., "ESRGAN", 2018) and the way back
to full size, with the paper's noise: one channel, times a learned weight, joined to a convolution's input.

Blocks take the noise that they inject as z [N, draws, h, w], a standard normal channel for each convolution.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky ReLUs below zero."""

RESIDUAL = 0.2
"""What the change of a dense block, and of three in a row, counts for."""

DENSE = 5
"""Convolutions of a dense block."""

LANES = 8
"""Multiple of channels that a GPU's matrix units take without a copy."""


class JoinedConv2d(nn.Conv2d):
    """A 3x3 convolution that keeps the size, of its input with one noise channel joined to it. Without noise it is an
    ordinary one, and its other parameters are the same."""

    def __init__(self, features: int, wanted: int, noise: bool) -> None:
        super().__init__(features, wanted, 3, padding=1)
        self.noise = noise
        if noise:
            self.noise_kernel = nn.Parameter(torch.empty(wanted, 1, 3, 3))
            self.noise_weight = nn.Parameter(torch.ones(1))
            bound = 1 / sqrt(9 * (features + 1))  # as PyTorch draws the other channels
            nn.init.uniform_(self.noise_kernel, -bound, bound)

    def joined(self, parts: list[Tensor], z: Tensor | None) -> Tensor:
        """parts: [N, c, h, w] each, all input channels together. z: [N, 1, h, w], or None without noise."""
        if z is None:
            out: Tensor = self(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
            return out
        spare = -(self.in_channels + 1) % LANES
        z = F.pad(z.to(parts[0].dtype) * self.noise_weight.to(parts[0].dtype), (0, 0, 0, 0, 0, spare))
        kernel = F.pad(torch.cat((self.weight, self.noise_kernel), 1), (0, 0, 0, 0, 0, spare))
        x = torch.cat((*parts, z.contiguous(memory_format=torch.channels_last)), 1)  # else all of it is rearranged
        return F.conv2d(x, kernel, self.bias, padding=1)

    def start_as_esrgan(self) -> None:
        """He's normal distribution times 0.1, biases 0."""
        for kernel in (self.weight, self.noise_kernel) if self.noise else (self.weight,):
            nn.init.normal_(kernel, std=0.1 * sqrt(2 / (9 * (self.in_channels + self.noise))))
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class DenseBlock(nn.Module):
    """x + 0.2 · the last of five convolutions, each of which sees x and the outputs of all before it."""

    def __init__(self, features: int, growth: int, noise: bool) -> None:
        super().__init__()
        wanted = [growth] * (DENSE - 1) + [features]
        convolutions = [JoinedConv2d(features + n * growth, wanted[n], noise) for n in range(DENSE)]
        for convolution in convolutions:
            convolution.start_as_esrgan()
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        parts = [x]
        for number, convolution in enumerate(self.convolutions):
            assert isinstance(convolution, JoinedConv2d)
            out = convolution.joined(parts, None if z is None else z[:, number : number + 1])
            parts.append(F.leaky_relu(out, SLOPE, inplace=True) if number < DENSE - 1 else out)
        return torch.add(x, parts[-1], alpha=RESIDUAL)


class RRDB(nn.Module):
    """x + 0.2 · three dense blocks in a row of film(x)."""

    draws = 3 * DENSE

    def __init__(self, features: int, growth: int, embedding: int, noise: bool) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * features)
        self.dense = nn.ModuleList(DenseBlock(features, growth, noise) for _ in range(3))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedded: Tensor, z: Tensor | None) -> Tensor:
        gain, shift = self.film(embedded)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        out = torch.addcmul(shift, x, 1 + gain)
        for number, block in enumerate(self.dense):
            out = block(out, None if z is None else z[:, DENSE * number : DENSE * (number + 1)])
        return torch.add(x, out, alpha=RESIDUAL)


class Upsampler(nn.Module):
    """A quarter of the resolution → three channels at full size. Twice: each place repeated 2x2, a convolution and a
    leaky ReLU. Then two convolutions more."""

    reach = 5  # pixels of context: one for each convolution at full size, two for that at half

    def __init__(self, features: int, noise: bool) -> None:
        super().__init__()
        self.to_half = JoinedConv2d(features, features, noise)
        self.to_full = JoinedConv2d(features, features, noise)
        self.fine = nn.Conv2d(features, features, 3, padding=1)
        self.tail = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor, z_half: Tensor | None, z_full: Tensor | None) -> Tensor:
        """z_half, z_full: [N, 1, h, w] at a half and at full resolution."""
        x = F.leaky_relu(self.to_half.joined([repeated(x)], z_half), SLOPE, inplace=True)
        x = F.leaky_relu(self.to_full.joined([repeated(x)], z_full), SLOPE, inplace=True)
        change: Tensor = self.tail(F.leaky_relu(self.fine(x), SLOPE, inplace=True))
        return change


def repeated(x: Tensor) -> Tensor:
    """Each place as 2x2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
