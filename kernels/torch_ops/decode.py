"""decode: quantised coefficients → images.

x = RGB(upsample(limit(IDCT(q * step)))), limited to 0..255; chroma is upsampled by libjpeg's triangle filter

Shapes: coefficients [N, rows, columns, 8, 8] of each component; planes [N, h, w] of samples less 128; images
[N, C, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.coefficients import Coefficients
from kernels.torch_ops import blocks
from kernels.torch_ops.colour import to_rgb
from kernels.torch_ops.dct import block_dct, times


def decode(c: Coefficients) -> Tensor:
    """See kernels.decode. In bands that stay in cache."""
    chroma = [
        _component(c, component, 0, c.planes[component].shape[1]) for component in range(1, c.sampling.components)
    ]
    vertical = c.sampling.factors[0]
    bands = []
    band_rows = max(1, 2 * blocks.BAND_PIXELS // (8 * vertical * c.size[1] * len(c)))
    for top in range(0, c.planes[0].shape[1] // vertical, band_rows):
        luma = _component(c, 0, top * vertical, (top + band_rows) * vertical)
        first = 8 * vertical * top
        planes = [luma] + [upsample_rows(x, c, first, first + luma.shape[1]) for x in chroma]
        bands.append(to_rgb(planes, 1))
    return torch.cat(bands, dim=2)


def _component(c: Coefficients, component: int, top: int, bottom: int) -> Tensor:
    """Rows of blocks `top` to `bottom` of a component: [N, rows, columns] decoded samples less 128, cut to its size."""
    height, width = c.sampling.component_size(component, c.size)
    dct = c.planes[component][:, top:bottom].float().flatten(3) * c.tables[:, component].reshape(-1, 1, 1, 64)
    samples = times(dct, block_dct(c.device).T).clamp_(-128, 127).unflatten(3, (8, 8))
    plane: Tensor = samples.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return plane[:, : height - 8 * top, :width]


def upsample_rows(plane: Tensor, c: Coefficients, top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of the full-size plane that the triangle filter makes of a chroma plane [N, h, w]: three
    quarters of the nearer sample and a quarter of the farther, across and down; the ends repeat. A plane two samples
    wide or narrower is repeated across, and then (4:2:0) also down."""
    vertical, horizontal = c.sampling.factors
    smooth = horizontal == 1 or plane.shape[2] > 2
    if vertical == 2:
        first, last = top // 2, -(-bottom // 2)
        near = plane[:, first:last]
        if smooth:
            above, below = max(first - 1, 0), min(last, plane.shape[1] - 1)
            far = torch.cat((plane[:, above : above + 1], near, plane[:, below : below + 1]), 1)
            near = torch.stack((_blend(near, far[:, :-2]), _blend(near, far[:, 2:])), dim=2).flatten(1, 2)
        else:
            near = near.repeat_interleave(2, dim=1)
        plane = near[:, : bottom - top]
    else:
        plane = plane[:, top:bottom]
    if horizontal == 1:
        return plane
    if not smooth:
        return plane.repeat_interleave(2, dim=2)[:, :, : c.size[1]]
    padded = torch.cat((plane[..., :1], plane, plane[..., -1:]), 2)
    pair = torch.stack((_blend(plane, padded[..., :-2]), _blend(plane, padded[..., 2:])), dim=3)
    return pair.flatten(2)[:, :, : c.size[1]]


def _blend(near: Tensor, far: Tensor) -> Tensor:
    return torch.lerp(near, far, 0.25)
