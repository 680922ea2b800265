"""The noise head: the difference between a sample and the regression's output. White noise at full resolution is
filtered, multiplied by amplitude maps from the trunk's features, and mixed to RGB. No part of it is tied to the trunk's
grid of 4x4 pixels: noise that passed through the pixel shuffle produced a lattice.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.noise import UNIFORM_CHANNELS, uniform

KERNEL = 5
"""Height and width of the filters, pixels."""

WIDTH = 16
"""Features at full resolution."""

NEGATIVE_SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""

CHANGE_SCALE = 4.0
"""Factor of the regression's change as an input, because it is smaller than the image."""

TILE = 192
"""Height and width, in pixels, of the tiles that a CPU computes one by one: their full-resolution maps, up to
400 bytes per pixel, stay in the cache."""

HALO = 4
"""Pixels around a tile that are computed with it: two for the interpolation of the amplitudes, and one for each of two
convolutions."""


class NoiseHead(nn.Module):
    """textured = filtered noise, which does not end at the image's edges, · amplitudes
    out = mix(textured) + output(act(texture(textured) + context(decoded, change)))"""

    receptive_radius = 2  # pixels beyond that of its inputs: one for each of the two 3x3 convolutions

    def __init__(self, features: int, maps: int) -> None:
        """features: channels of the trunk. maps: number of maps of filtered noise."""
        super().__init__()
        self.filters = nn.Conv2d(UNIFORM_CHANNELS, maps, KERNEL, bias=False)  # of noise beyond the image's edges, too
        self.amplitudes = nn.Conv2d(features, maps, 1)
        self.mix = nn.Conv2d(maps, 3, 1, bias=False)
        self.texture = nn.Conv2d(maps, WIDTH, 3, padding=1, bias=False)
        self.context = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.output = nn.Conv2d(WIDTH, 3, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.mul_(0.1)
            self.output.weight.mul_(0.1)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, decoded: Tensor, change: Tensor, seeds: Tensor, origins: Tensor) -> Tensor:
        """features: [N, F, h, w], the trunk's last. decoded: [N, 3, H, W], 0..1, with H and W multiples of h and w.
        change: [N, 3, H, W], the regression's output minus `decoded`. seeds: [N, K] int64. origins: [N, 2] int64, (y,
        x) of the first pixel. Returns [N, K, 3, H, W]."""
        height, width = decoded.shape[2:]
        if decoded.device.type != "cpu" or max(height, width) <= TILE:
            return self._forward_tile(features, decoded, change, seeds, origins)
        scale = height // features.shape[2]
        result = decoded.new_empty(*seeds.shape, 3, height, width)
        for y, x in product(range(0, height, TILE), range(0, width, TILE)):
            top, left = max(0, y - HALO), max(0, x - HALO)
            bottom, right = min(height, y + TILE + HALO), min(width, x + TILE + HALO)
            part = features[:, :, top // scale : bottom // scale, left // scale : right // scale]
            images = [image[:, :, top:bottom, left:right] for image in (decoded, change)]
            samples = self._forward_tile(part, images[0], images[1], seeds, origins + torch.tensor([top, left]))
            result[..., y : y + TILE, x : x + TILE] = samples[..., y - top :, x - left :][..., :TILE, :TILE]
        return result

    def _forward_tile(
        self, features: Tensor, decoded: Tensor, change: Tensor, seeds: Tensor, origins: Tensor
    ) -> Tensor:
        """See `forward`."""
        (height, width), dtype, reach = decoded.shape[2:], self.output.weight.dtype, KERNEL // 2
        amplitudes = self.amplitudes(F.leaky_relu(features, NEGATIVE_SLOPE))
        amplitudes = F.interpolate(amplitudes, size=(height, width), mode="bilinear", align_corners=False)
        inputs = torch.cat((decoded - 0.5, change.to(decoded.dtype) * CHANGE_SCALE), 1)
        context = self.context(inputs.to(dtype, memory_format=torch.channels_last))
        samples = []
        for seed in seeds.unbind(1):
            z = uniform(seed, origins - reach, (height + 2 * reach, width + 2 * reach)).to(dtype)
            textured = self.filters(z) * amplitudes
            hidden = F.leaky_relu(self.texture(textured) + context, NEGATIVE_SLOPE)
            samples.append(self.mix(textured) + self.output(hidden))
        return torch.stack(samples, 1)

    def largest_maps(self, maps: int) -> dict[str, Tensor]:
        """The weights of a head of fewer maps: those maps whose filters, amplitudes and outgoing weights have the
        largest product of norms."""

        def power(weight: Tensor) -> Tensor:
            return weight.flatten(1).square().sum(1)

        outgoing = power(self.mix.weight.transpose(0, 1)) + power(self.texture.weight.transpose(0, 1))
        size = power(self.filters.weight) * power(self.amplitudes.weight) * outgoing
        kept = size.topk(maps).indices.sort().values
        weights: dict[str, Tensor] = self.state_dict()
        for name in ("filters.weight", "amplitudes.weight", "amplitudes.bias"):
            weights[name] = weights[name][kept]
        for name in ("mix.weight", "texture.weight"):
            weights[name] = weights[name][:, kept]
        return weights


def dense_filters(weight: Tensor) -> Tensor:
    """Filters [M, 1, 5, 5] of older weights, of which the n-th sees channel n mod 8 only → [M, 8, 5, 5]."""
    maps = len(weight)
    dense = weight.new_zeros(maps, UNIFORM_CHANNELS, KERNEL, KERNEL)
    dense[torch.arange(maps), torch.arange(maps) % UNIFORM_CHANNELS] = weight[:, 0]
    return dense
