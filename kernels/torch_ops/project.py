"""project: images → the nearest whose coefficients lie in given intervals (equation 11 of arXiv 2211.11827).

y = x + RGB(back(nearest(f) - f)),  f = DCT(downsample(YCC(x))),  nearest(f) = f limited to (q ± (1/2 - margin)) step

Shapes: images [N, C, H, W], gray levels; coefficients [N, rows, columns, 8, 8] of each component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.coefficients import Coefficients, check_images
from kernels.torch_ops.blocks import Region, blocks_of, from_tiles, map_regions, to_tiles
from kernels.torch_ops.colour import tile_planes, ycc_to_rgb
from kernels.torch_ops.dct import forward_dct, mcu_matrices, steps_of, times


def project(x: Tensor, c: Coefficients, margin: float = 0.0) -> Tensor:
    """See kernels.project. In bands that stay in cache, unless there is a gradient to compute.

    Raises ValueError for another margin, and as all operators do."""
    check_images(x, c.tables, c.sampling, c.size)
    if not 0 <= margin <= 0.5:
        raise ValueError(f"margin: expected 0..0.5 of a step, got {margin}")

    def one(region: Region) -> Tensor:
        tiles = to_tiles(x, region)
        tiles = tiles.to(torch.promote_types(tiles.dtype, torch.float32))
        matrices = mcu_matrices(region.mcu, tiles.device, tiles.dtype)
        backs = (matrices.luma_back, matrices.chroma_back, matrices.chroma_back)
        changes = []
        for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
            steps = steps_of(c.tables, component, dct.dtype)
            centre = blocks_of(c.planes[component], component, region).to(dct.dtype) * steps
            low, high = centre - (0.5 - margin) * steps, centre + (0.5 - margin) * steps
            nearest = torch.minimum(torch.maximum(dct, low), high)
            if dct.requires_grad:  # at an end of the interval none: minimum and maximum would pass a part of it
                nearest = torch.where((dct > low) & (dct < high), dct, nearest.detach())
            changes.append(times((nearest - dct).flatten(-2), backs[component]))
        if len(changes) == 1:
            return from_tiles(tiles + changes[0][:, :, :, None], region)
        return from_tiles(tiles + torch.stack(ycc_to_rgb(*changes), dim=3), region)

    return map_regions(one, c.sampling, c.size, len(c), banded=not (x.requires_grad and torch.is_grad_enabled()))
