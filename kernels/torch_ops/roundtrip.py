"""roundtrip: images → what JPEG leaves of them, differentiable.

y = limit(RGB(repeat(limit(IDCT(step round(DCT(downsample(YCC(x))) / step))))))

Shapes: images [N, C, H, W], gray levels 0..255; of a region of [rows, columns] MCUs, planes [N, rows, columns, P].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.coefficients import Subsampling, check_images
from kernels.torch_ops.blocks import Region, flat_regions, from_tiles, regions, to_tiles
from kernels.torch_ops.colour import rgb_to_ycc_adjoint, tile_planes, to_colours, ycc_to_rgb_adjoint
from kernels.torch_ops.dct import block_dct, forward_dct, round_half_away, steps_of, times
from kernels.torch_ops.sampling import averaging_adjoint, repeat_chroma, sum_under_samples


def roundtrip(x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """See kernels.roundtrip. In bands that stay in cache, there and back."""
    check_images(x, tables, sampling)
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Roundtrip.apply(x, tables, sampling)  # type: ignore[no-untyped-call]
        return result
    return _roundtrip(x, tables, sampling, None)


@dataclass(frozen=True)
class Inside:
    """Where a roundtrip's limits have changed nothing, so that a gradient passes. colours: [N, C, H, W] bool, of the
    result. planes: [N, rows, columns] bool for each component, of its decoded samples, in whole MCUs."""

    colours: Tensor
    planes: list[Tensor]

    @staticmethod
    def of(x: Tensor, sampling: Subsampling) -> Inside:
        size = (x.shape[2], x.shape[3])
        grids = (sampling.plane_blocks(component, size) for component in range(sampling.components))
        planes = [x.new_empty((len(x), 8 * rows, 8 * columns), dtype=torch.bool) for rows, columns in grids]
        return Inside(x.new_empty(x.shape, dtype=torch.bool), planes)

    def note_plane(self, component: int, region: Region, inside: Tensor) -> None:
        """[N, rows, columns, blocks of an MCU, 64] bool, of one region."""
        vertical, horizontal = (1, 1) if component else region.mcu.sampling.factors
        n, rows, columns = inside.shape[:3]
        blocks = inside.reshape(n, rows, columns, vertical, horizontal, 8, 8).permute(0, 1, 3, 5, 2, 4, 6)
        top, left = 8 * vertical * region.top, 8 * horizontal * region.left
        part = blocks.reshape(n, 8 * vertical * rows, 8 * horizontal * columns)
        self.planes[component][:, top : top + part.shape[1], left : left + part.shape[2]] = part


def _roundtrip(x: Tensor, tables: Tensor, sampling: Subsampling, inside: Inside | None) -> Tensor:
    """The images, and what is `inside` if that is asked for."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    result, (height, width) = torch.empty(x.shape, dtype=dtype, device=x.device), sampling.mcu
    for region in flat_regions(sampling, (x.shape[2], x.shape[3]), len(x)):
        tiles = to_tiles(x, region)
        tiles = tiles.to(torch.promote_types(tiles.dtype, torch.float32))
        idct = block_dct(tiles.device, tiles.dtype).T
        decoded = []
        for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
            steps = steps_of(tables, component, dct.dtype)
            plane = times(round_half_away(dct / steps) * steps, idct)
            limited = plane.clamp(-128, 127)
            if inside:
                inside.note_plane(component, region, plane == limited)
            decoded.append(repeat_chroma(limited, region) if component else limited.flatten(-2))
        colours = to_colours(decoded, 3)
        limited = colours.clamp(0, 255)
        down = slice(height * region.top, min(height * region.bottom, x.shape[2]))
        across = slice(width * region.left, min(width * region.right, x.shape[3]))
        result[:, :, down, across] = from_tiles(limited.to(dtype), region)
        if inside:
            inside.colours[:, :, down, across] = from_tiles(colours == limited, region)
    return result


def _roundtrip_gradient(gradient: Tensor, inside: Inside, sampling: Subsampling, dtype: torch.dtype) -> Tensor:
    """dL/dx = YCC^T downsample^T ([plane inside] repeat^T RGB^T ([colour inside] dL/dy)), ^T the transpose of a linear
    map. The rounding counts as the identity; DCT and steps, with their inverses, then cancel."""
    result, wide = torch.empty_like(gradient, dtype=dtype), torch.promote_types(gradient.dtype, torch.float32)
    (height, width), mcu_height = (gradient.shape[2], gradient.shape[3]), sampling.mcu[0]
    for row in regions(sampling, (height, width), len(gradient)):
        top, bottom = mcu_height * row[0].top, min(mcu_height * row[0].bottom, height)
        given = gradient[:, :, top:bottom].to(wide)
        channels = torch.where(inside.colours[:, :, top:bottom], given, 0).unbind(1)
        planes = channels if len(channels) == 1 else ycc_to_rgb_adjoint(*channels)
        luma = torch.where(inside.planes[0][:, top:bottom, :width], planes[0], 0)
        if len(planes) == 1:
            result[:, 0, top:bottom] = luma
            continue
        chroma = []
        for plane, flags in zip(planes[1:], inside.planes[1:], strict=True):
            samples, first = sum_under_samples(plane, sampling), top // sampling.factors[0]
            passed = flags[:, first : first + samples.shape[1], : samples.shape[2]]
            chroma.append(averaging_adjoint(torch.where(passed, samples, 0), sampling, (bottom - top, width)))
        for channel, part in enumerate(rgb_to_ycc_adjoint(luma, *chroma)):
            result[:, channel, top:bottom] = part
    return result


class _Roundtrip(torch.autograd.Function):
    """Keeps where limits have changed nothing: at most 6 bytes a pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
        inside = Inside.of(x, sampling)
        ctx.save_for_backward(inside.colours, *inside.planes)
        ctx.sampling, ctx.dtype = sampling, x.dtype
        return _roundtrip(x, tables, sampling, inside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        colours, *planes = ctx.saved_tensors
        return _roundtrip_gradient(gradient, Inside(colours, planes), ctx.sampling, ctx.dtype), None, None
