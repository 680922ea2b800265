"""The operators in plain PyTorch: the CPU path, and the oracle of the tests. float32, any device, differentiable where
operators.py says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.colour import BLUE, BLUE_RANGE, GREEN, RED, RED_RANGE, differences_to_rgb, rgb_to_ycc
from kernels.mcu import (
    Region,
    block_dct,
    blocks_of,
    flat_regions,
    from_tiles,
    map_regions,
    mcu_matrices,
    put_blocks,
    regions,
    to_tiles,
)

FEW_ROWS = 16
"""Below so many rows, a matrix product is made larger: MKL multiplies three rows or fewer by another kernel, which sums
in another order, and an image's last bits would depend on what is in the batch beside it."""


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """[..., k * B] @ [B, D] → [..., k * D]: each run of B values times the matrix, to the same bits whatever is beside
    it."""
    runs = x.reshape(-1, matrix.shape[0])
    missing = max(0, FEW_ROWS - len(runs))
    product = (F.pad(runs, (0, 0, 0, missing)) if missing else runs) @ matrix
    return product[: len(runs)].reshape(*x.shape[:-1], x.shape[-1] // matrix.shape[0] * matrix.shape[1])


def tile_planes(tiles: Tensor) -> tuple[Tensor, ...]:
    """[N, rows, columns, C, P] RGB or gray, 0..255 → component planes [N, rows, columns, P], less 128."""
    if tiles.shape[3] == 1:
        return (tiles[:, :, :, 0] - 128,)
    return rgb_to_ycc(*tiles.unbind(3))


def forward_dct(planes: tuple[Tensor, ...], region: Region) -> list[Tensor]:
    """Component planes of tiles → coefficients [N, rows, columns, blocks, 64], unquantised."""
    matrices = mcu_matrices(region.mcu, planes[0].device, planes[0].dtype)
    maps = (matrices.luma, matrices.chroma, matrices.chroma)
    return [times(p, m).unflatten(-1, (-1, 64)) for p, m in zip(planes, maps, strict=False)]


def steps_of(tables: Tensor, component: int, dtype: torch.dtype) -> Tensor:
    """One component's quantisation steps as [N, 1, 1, 1, 64], to divide tiles' coefficients by."""
    return tables[:, component].reshape(-1, 1, 1, 1, 64).to(dtype)


def round_half_away(x: Tensor) -> Tensor:
    """To the nearest integer, ties away from zero, as JPEG encoders round."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def empty_planes(sampling: Subsampling, size: tuple[int, int], images: int, device: torch.device) -> tuple[Tensor, ...]:
    """Zero coefficient planes, int16."""
    grids = (sampling.plane_blocks(component, size) for component in range(sampling.components))
    return tuple(torch.zeros(images, *grid, 8, 8, dtype=torch.int16, device=device) for grid in grids)


def keep_true_blocks(coefficients: Coefficients) -> Coefficients:
    """Sets the padding blocks to zero, in place."""
    for component, plane in enumerate(coefficients.planes):
        rows, columns = coefficients.sampling.true_blocks(component, coefficients.size)
        plane[:, rows:] = 0
        plane[:, :, columns:] = 0
    return coefficients


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
        planes = channels if len(channels) == 1 else to_rgb_adjoint(*channels)
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


def to_rgb_adjoint(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of colour.differences_to_rgb: a gradient of (R, G, B) → of (Y, Cb, Cr)."""
    blueness = (blue * BLUE_RANGE).add_(green, alpha=-BLUE * BLUE_RANGE / GREEN)
    redness = (red * RED_RANGE).add_(green, alpha=-RED * RED_RANGE / GREEN)
    return (red + green).add_(blue), blueness, redness


def rgb_to_ycc_adjoint(luma: Tensor, blueness: Tensor, redness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of colour.rgb_to_ycc's linear part: a gradient of (Y, Cb, Cr) → of (R, G, B)."""
    blue, red = blueness / BLUE_RANGE, redness / RED_RANGE
    luma = (luma - blue).sub_(red)
    return red.add_(luma, alpha=RED), luma * GREEN, blue.add_(luma, alpha=BLUE)


def sum_under_samples(plane: Tensor, sampling: Subsampling) -> Tensor:
    """[N, H, W] → [N, h, w]: the sum over the pixels under each chroma sample, the transpose of repetition."""
    vertical, horizontal = sampling.factors
    plane = F.pad(plane, (0, -plane.shape[2] % horizontal, 0, -plane.shape[1] % vertical))
    if vertical == 2:
        plane = plane[:, ::2] + plane[:, 1::2]
    return plane[:, :, ::2] + plane[:, :, 1::2] if horizontal == 2 else plane


def averaging_adjoint(samples: Tensor, sampling: Subsampling, size: tuple[int, int]) -> Tensor:
    """[N, h, w] → [N, H, W]: the transpose of averaging. A last column or row that is half of a sample's is averaged
    with itself."""
    vertical, horizontal = sampling.factors
    if (vertical, horizontal) == (1, 1):
        return samples
    n, rows, columns = samples.shape
    shares = (samples / (vertical * horizontal))[:, :, None, :, None].expand(n, rows, vertical, columns, horizontal)
    pixels = shares.reshape(n, rows * vertical, columns * horizontal)[:, : size[0], : size[1]]
    if size[0] % vertical:
        pixels[:, -1] *= 2
    if size[1] % horizontal:
        pixels[:, :, -1] *= 2
    return pixels


def repeat_chroma(plane: Tensor, region: Region) -> Tensor:
    """A chroma block for each MCU, [N, rows, columns, 1, 64] → its samples repeated over it [N, rows, columns, P]."""
    vertical, horizontal = region.mcu.sampling.factors
    x = plane.reshape(*plane.shape[:3], vertical, 8 // vertical, 1, horizontal, 8 // horizontal, 1)
    x = x.expand(*x.shape[:5], vertical, horizontal, 8 // horizontal, horizontal)
    return x.movedim(6, 4).flatten(3)


def to_colours(planes: list[Tensor], dim: int) -> Tensor:
    """Component planes less 128 → an image with its channels at `dim`, not limited."""
    luma = planes[0] + 128
    channels = (luma,) if len(planes) == 1 else differences_to_rgb(luma, planes[1], planes[2])
    return torch.stack(channels, dim=dim)


def to_rgb(planes: list[Tensor], dim: int) -> Tensor:
    """The same, limited to 0..255."""
    return to_colours(planes, dim).clamp_(0, 255)


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
            half = (0.5 - margin) * steps
            nearest = torch.minimum(torch.maximum(dct, centre - half), centre + half)
            changes.append(times((nearest - dct).flatten(-2), backs[component]))
        if len(changes) == 1:
            return from_tiles(tiles + changes[0][:, :, :, None], region)
        return from_tiles(tiles + torch.stack(differences_to_rgb(*changes), dim=3), region)

    return map_regions(one, c.sampling, c.size, len(c), banded=not x.requires_grad)


def excess(x: Tensor, c: Coefficients) -> Tensor:
    """See kernels.excess. In bands that stay in cache."""
    check_images(x, c.tables, c.sampling, c.size)
    largest = torch.zeros(len(c), dtype=torch.float64, device=x.device)
    for region in flat_regions(c.sampling, c.size, len(c)):
        tiles = to_tiles(x, region)
        tiles = tiles.to(torch.promote_types(tiles.dtype, torch.float32))
        for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
            quotient = dct / steps_of(c.tables, component, dct.dtype)
            beyond = (quotient - blocks_of(c.planes[component], component, region)).abs() - 0.5
            largest = torch.maximum(largest, beyond.flatten(1).amax(1).double())
    return largest


def decode(c: Coefficients) -> Tensor:
    """See kernels.decode. In bands that stay in cache."""
    chroma = [
        _component(c, component, 0, c.planes[component].shape[1]) for component in range(1, c.sampling.components)
    ]
    vertical = c.sampling.factors[0]
    bands = []
    band_rows = max(1, (1 << 17) // (8 * vertical * c.size[1] * len(c)))
    for top in range(0, c.planes[0].shape[1] // vertical, band_rows):
        luma = _component(c, 0, top * vertical, (top + band_rows) * vertical)
        first = 8 * vertical * top
        planes = [luma] + [upsample_rows(x, c, first, first + luma.shape[1]) for x in chroma]
        bands.append(to_rgb(planes, 1))
    return torch.cat(bands, dim=2)


def _component(c: Coefficients, component: int, top: int, bottom: int) -> Tensor:
    """Rows of blocks `top` to `bottom` of a component: [N, rows, columns] decoded samples less 128, cut to its size."""
    height, width = c.sampling.component_size(component, c.size)
    blocks = c.planes[component][:, top:bottom].float().flatten(3) * c.tables[:, component].reshape(-1, 1, 1, 64)
    samples = times(blocks, block_dct(c.device).T).clamp_(-128, 127).unflatten(3, (8, 8))
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
            rows = torch.arange(first - 1, last + 1, device=plane.device).clamp(0, plane.shape[1] - 1)
            far = plane[:, rows]
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
    padded = F.pad(plane, (1, 1), mode="replicate")
    pair = torch.stack((_blend(plane, padded[..., :-2]), _blend(plane, padded[..., 2:])), dim=3)
    return pair.flatten(2)[:, :, : c.size[1]]


def _blend(near: Tensor, far: Tensor) -> Tensor:
    return torch.lerp(near, far, 0.25)
