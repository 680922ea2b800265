"""excess: by how many quantisation steps, at most, an image's coefficients lie outside given intervals.

max |f / step - q| - 1/2, at least 0,  f = DCT(downsample(YCC(x)))

Shapes: images [N, C, H, W], gray levels; coefficients [N, rows, columns, 8, 8] of each component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.coefficients import Coefficients, check_images
from kernels.torch_ops.blocks import blocks_of, flat_regions, to_tiles
from kernels.torch_ops.colour import tile_planes
from kernels.torch_ops.dct import forward_dct, steps_of


@torch.no_grad()
def excess(x: Tensor, c: Coefficients) -> Tensor:
    """See kernels.excess. In bands, which on the CPU stay in cache."""
    check_images(x, c.tables, c.sampling, c.size)
    largest = torch.zeros(len(c), dtype=torch.float64, device=x.device)
    for region in flat_regions(c.sampling, c.size, len(c), x.is_cuda):
        tiles = to_tiles(x, region)
        exact = torch.float64 if tiles.is_cuda else torch.float32  # where float32 may mean TF32
        tiles = tiles.to(torch.promote_types(tiles.dtype, exact))
        for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
            quotient = dct / steps_of(c.tables, component, dct.dtype)
            beyond = (quotient - blocks_of(c.planes[component], component, region)).abs() - 0.5
            largest = torch.maximum(largest, beyond.flatten(1).amax(1).double())
    return largest
