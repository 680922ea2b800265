"""The noise head: what a sample has beyond the regression's output. White noise at full resolution, filtered and mixed
by amplitudes that the trunk's features decide. Nothing in it knows the trunk's grid of 4x4 pixels: noise that passes
through the pixel shuffle paints a lattice.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.noise import UNIFORM, uniform

FILTERS = 3
"""Of each noise channel."""

MAPS = FILTERS * UNIFORM
SIDE = 5
"""Pixels of a filter's side."""

WIDTH = 16
"""Features at full resolution."""

SLOPE = 0.2
"""Of the leaky ReLUs below zero."""

CHANGE = 4.0
"""What the regression's change is multiplied by where it is seen: it is smaller than the image."""

BLOCK = 192
"""Pixels of the sides of what a CPU works on at a time: its maps at full resolution stay in the cache, and of a whole
tile they would take 400 bytes a pixel."""

MARGIN = 4
"""Pixels beyond a block's border that are computed with it: half a filter, and one for each of two convolutions."""


class NoiseHead(nn.Module):
    """textured = filtered noise · amplitudes
    out = mix(textured) + output(act(texture(textured) + context(decoded, change)))"""

    reach = 2  # pixels further than its inputs' own reach: one for each of the two 3x3 convolutions

    def __init__(self, features: int) -> None:
        super().__init__()
        self.filters = nn.Conv2d(MAPS, MAPS, SIDE, padding=SIDE // 2, groups=MAPS, bias=False)
        self.amplitudes = nn.Conv2d(features, MAPS, 1)
        self.mix = nn.Conv2d(MAPS, 3, 1, bias=False)
        self.texture = nn.Conv2d(MAPS, WIDTH, 3, padding=1, bias=False)
        self.context = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.output = nn.Conv2d(WIDTH, 3, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.mul_(0.1)
            self.output.weight.mul_(0.1)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, decoded: Tensor, change: Tensor, seeds: Tensor, origins: Tensor) -> Tensor:
        """features: [N, F, h, w], the trunk's last. decoded, change: [N, 3, H, W], 0..1, H and W multiples of h and w.
        seeds: [N, K] int64. origins: [N, 2] int64, (y, x) of the first pixel. Returns [N, K, 3, H, W]."""
        height, width = decoded.shape[2:]
        if decoded.device.type != "cpu" or max(height, width) <= BLOCK:
            return self._block(features, decoded, change, seeds, origins)
        scale = height // features.shape[2]
        result = decoded.new_empty(*seeds.shape, 3, height, width)
        for y, x in product(range(0, height, BLOCK), range(0, width, BLOCK)):
            top, left = max(0, y - MARGIN), max(0, x - MARGIN)
            bottom, right = min(height, y + BLOCK + MARGIN), min(width, x + BLOCK + MARGIN)
            places = features[:, :, top // scale : bottom // scale, left // scale : right // scale]
            seen = [image[:, :, top:bottom, left:right] for image in (decoded, change)]
            corners = origins + torch.tensor([top, left])
            drawn = self._block(places, seen[0], seen[1], seeds, corners)
            result[..., y : y + BLOCK, x : x + BLOCK] = drawn[..., y - top :, x - left :][..., :BLOCK, :BLOCK]
        return result

    def _block(self, features: Tensor, decoded: Tensor, change: Tensor, seeds: Tensor, origins: Tensor) -> Tensor:
        size, dtype = (decoded.shape[2], decoded.shape[3]), self.output.weight.dtype
        amplitudes = self.amplitudes(F.leaky_relu(features, SLOPE))
        amplitudes = F.interpolate(amplitudes, size=size, mode="bilinear", align_corners=False)
        seen = torch.cat((decoded - 0.5, change.to(decoded.dtype) * CHANGE), 1)
        context = self.context(seen.to(dtype, memory_format=torch.channels_last))
        samples = []
        for seed in seeds.unbind(1):
            z = uniform(seed, origins, size).to(dtype)
            textured = self.filters(torch.cat([z] * FILTERS, 1)) * amplitudes
            hidden = F.leaky_relu(self.texture(textured) + context, SLOPE)
            samples.append(self.mix(textured) + self.output(hidden))
        return torch.stack(samples, 1)
