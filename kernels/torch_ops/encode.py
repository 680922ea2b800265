"""encode: images → quantised coefficients.

q = round(DCT(downsample(YCC(x))) / step), half away from zero

Shapes: images [N, C, H, W], gray levels 0..255; coefficients [N, rows, columns, 8, 8] of each component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.torch_ops.blocks import empty_planes, flat_regions, keep_true_blocks, put_blocks, to_tiles
from kernels.torch_ops.colour import tile_planes
from kernels.torch_ops.dct import forward_dct, round_half_away, steps_of


def encode(x: Tensor, tables: Tensor, sampling: Subsampling) -> Coefficients:
    """See kernels.encode. In bands that stay in cache."""
    check_images(x, tables, sampling)
    images, size = x.shape[0], (x.shape[2], x.shape[3])
    planes = empty_planes(sampling, size, images, x.device)
    for region in flat_regions(sampling, size, images):
        tiles = to_tiles(x, region).float()
        for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
            quantised = round_half_away(dct / steps_of(tables, component, dct.dtype)).clamp(-32768, 32767)
            put_blocks(planes[component], component, region, quantised.to(torch.int16))
    return keep_true_blocks(Coefficients(planes, tables, sampling, size))
