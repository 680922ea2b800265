"""The blocks of the paper's generator (arXiv 2211.11827): residual-in-residual dense blocks (Wang et al., "ESRGAN",
2018) and the upsampling, with the paper's noise injection: one noise channel, times a learned weight, is concatenated
to the input of a convolution.

Blocks take their noise as z [N, noise_channels, h, w], one standard normal channel for each convolution.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""

RESIDUAL_SCALE = 0.2
"""Factor of the residual branch of a dense block and of an RRDB."""

CONVOLUTIONS = 5
"""Convolutions of a dense block."""

CHANNEL_MULTIPLE = 8
"""Input channels are padded to a multiple of this number, as a GPU's matrix units need it."""


class NoiseConv2d(nn.Conv2d):
    """A 3x3 convolution of its input and one noise channel, with padding 1. Without noise it is an ordinary
    convolution with the same other parameters."""

    def __init__(self, features: int, out_features: int, noise: bool) -> None:
        super().__init__(features, out_features, 3, padding=1)
        self.noise = noise
        if noise:
            self.noise_kernel = nn.Parameter(torch.empty(out_features, 1, 3, 3))
            self.noise_weight = nn.Parameter(torch.ones(1))
            bound = 1 / sqrt(9 * (features + 1))  # as PyTorch initialises the other channels
            nn.init.uniform_(self.noise_kernel, -bound, bound)

    def with_noise(self, inputs: list[Tensor], z: Tensor | None) -> Tensor:
        """inputs: [N, c, h, w] each, concatenated to all input channels. z: [N, 1, h, w], or None without noise.
        Returns [N, out_channels, h, w]."""
        if z is None:
            out: Tensor = self(torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0])
            return out
        padding = -(self.in_channels + 1) % CHANNEL_MULTIPLE
        z = F.pad(z.to(inputs[0].dtype) * self.noise_weight.to(inputs[0].dtype), (0, 0, 0, 0, 0, padding))
        kernel = F.pad(torch.cat((self.weight, self.noise_kernel), 1), (0, 0, 0, 0, 0, padding))
        x = torch.cat((*inputs, z.contiguous(memory_format=torch.channels_last)), 1)  # else cat changes the layout
        return F.conv2d(x, kernel, self.bias, padding=1)

    def initialise_as_esrgan(self) -> None:
        """Kaiming normal initialisation times 0.1, biases 0."""
        for kernel in (self.weight, self.noise_kernel) if self.noise else (self.weight,):
            nn.init.normal_(kernel, std=0.1 * sqrt(2 / (9 * (self.in_channels + self.noise))))
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class DenseBlock(nn.Module):
    """x + 0.2 · the last of five convolutions, each of x and the outputs of all convolutions before it."""

    def __init__(self, features: int, growth: int, noise: bool) -> None:
        super().__init__()
        out_features = [growth] * (CONVOLUTIONS - 1) + [features]
        convolutions = [NoiseConv2d(features + n * growth, out_features[n], noise) for n in range(CONVOLUTIONS)]
        for convolution in convolutions:
            convolution.initialise_as_esrgan()
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        """x: [N, features, h, w]. z: [N, 5, h, w], or None without noise. Returns the shape of x."""
        outputs = [x]
        for number, convolution in enumerate(self.convolutions):
            assert isinstance(convolution, NoiseConv2d)
            out = convolution.with_noise(outputs, None if z is None else z[:, number : number + 1])
            outputs.append(F.leaky_relu(out, NEGATIVE_SLOPE, inplace=True) if number < CONVOLUTIONS - 1 else out)
        return torch.add(x, outputs[-1], alpha=RESIDUAL_SCALE)


class RRDB(nn.Module):
    """x + 0.2 · three consecutive dense blocks of film(x)."""

    noise_channels = 3 * CONVOLUTIONS

    def __init__(self, features: int, growth: int, embedding: int, noise: bool) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * features)
        self.dense = nn.ModuleList(DenseBlock(features, growth, noise) for _ in range(3))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedded: Tensor, z: Tensor | None) -> Tensor:
        """x: [N, features, h, w]. embedded: [N, embedding]. z: [N, 15, h, w], or None. Returns the shape of x."""
        gain, shift = self.film(embedded)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        out = torch.addcmul(shift, x, 1 + gain)
        for number, block in enumerate(self.dense):
            out = block(out, None if z is None else z[:, CONVOLUTIONS * number : CONVOLUTIONS * (number + 1)])
        return torch.add(x, out, alpha=RESIDUAL_SCALE)


class Upsampler(nn.Module):
    """A quarter of the resolution → three channels at full resolution: twice nearest-neighbour upsampling, a
    convolution and a leaky ReLU, then two more convolutions."""

    receptive_radius = 5  # pixels: one for each convolution at full resolution, two for that at half resolution

    def __init__(self, features: int, noise: bool) -> None:
        super().__init__()
        self.to_half = NoiseConv2d(features, features, noise)
        self.to_full = NoiseConv2d(features, features, noise)
        self.fine = nn.Conv2d(features, features, 3, padding=1)
        self.tail = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor, z_half: Tensor | None, z_full: Tensor | None) -> Tensor:
        """x: [N, features, h, w]. z_half: [N, 1, 2h, 2w], z_full: [N, 1, 4h, 4w]. Returns [N, 3, 4h, 4w]."""
        x = F.leaky_relu(self.to_half.with_noise([upsample(x)], z_half), NEGATIVE_SLOPE, inplace=True)
        x = F.leaky_relu(self.to_full.with_noise([upsample(x)], z_full), NEGATIVE_SLOPE, inplace=True)
        change: Tensor = self.tail(F.leaky_relu(self.fine(x), NEGATIVE_SLOPE, inplace=True))
        return change


def upsample(x: Tensor) -> Tensor:
    """[N, C, h, w] → [N, C, 2h, 2w], nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
