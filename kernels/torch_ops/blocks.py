"""Images and coefficient planes as minimum coded units (MCUs); all but decode's chroma filter is local to one.

Shapes: N images, [rows, columns] MCUs of a region, C components, P pixels of an MCU, B blocks of one component of it.

A tile tensor is [N, rows, columns, C, P]: for each MCU and component its P pixels, block after block and row after row
within a block, so that `tile.unflatten(-1, (-1, 64))` are its 8x8 blocks without moving memory. Edges follow
libjpeg-turbo (T.81, A.2.4 leaves them free): an MCU that extends beyond the image repeats the last column and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling

BAND_PIXELS = 1 << 16
"""Pixels that are worked on at a time: a band's float planes stay in a core's cache."""

GPU_BAND_PIXELS = 1 << 24
"""The same on a GPU, which has no time for many small operations, and memory for 400 MB in float64."""


@dataclass(frozen=True)
class Mcu:
    """One kind of MCU: its sampling and how many of its rows and columns lie inside the image."""

    sampling: Subsampling
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        height, width = self.sampling.mcu
        return height * width

    @property
    def whole(self) -> bool:
        return (self.rows, self.columns) == self.sampling.mcu

    @property
    def true_luma_blocks(self) -> list[bool]:
        """For each luma block, in tile order, whether it holds pixels of the image."""
        vertical, horizontal = self.sampling.factors
        return [8 * v < self.rows and 8 * h < self.columns for v in range(vertical) for h in range(horizontal)]

    def blocks(self, components: int) -> list[int]:
        """How many blocks each component has."""
        return [len(self.true_luma_blocks), 1, 1][:components]

    def _block_order(self, index: Tensor) -> Tensor:
        """[height, width] of an MCU → [P] in tile order."""
        vertical, horizontal = self.sampling.factors
        return index.reshape(vertical, 8, horizontal, 8).transpose(1, 2).reshape(-1)

    def luma_source(self) -> Tensor:
        """[P] int64: the pixel, as a tile index, that each place of the luma plane repeats."""
        return self._source(torch.arange(self.sampling.mcu[0]).clamp(max=self.rows - 1))

    def chroma_source(self) -> Tensor:
        """[P] int64: the same for the plane from which chroma is averaged. Full-resolution rows repeat only up to the
        vertical factor; below that the last *averaged* row repeats, that is, its whole group of rows."""
        height, vertical = self.sampling.mcu[0], self.sampling.factors[0]
        row = torch.arange(height)
        last_group = (self.rows - 1) // vertical * vertical
        row = torch.where(row < last_group + vertical, row, last_group + row % vertical)
        return self._source(row.clamp(max=self.rows - 1))

    def _source(self, row: Tensor) -> Tensor:
        height, width = self.sampling.mcu
        column = torch.arange(width).clamp(max=self.columns - 1)
        tile_index = torch.empty(height * width, dtype=torch.int64)
        raster = self._block_order(torch.arange(height * width).reshape(height, width))
        tile_index[raster] = torch.arange(height * width)
        return tile_index[self._block_order(row[:, None] * width + column)]

    def chroma_samples(self) -> Tensor:
        """[P, 64] float32 of 0 and 1: which chroma sample each place lies under."""
        height, width = self.sampling.mcu
        vertical, horizontal = self.sampling.factors
        row, column = torch.arange(height) // vertical, torch.arange(width) // horizontal
        return F.one_hot(self._block_order(row[:, None] * 8 + column), 64).float()

    def chroma_sums(self) -> Tensor:
        """[P, 64] float32 of 0 and 1 (more where an edge repeats): pixels → their sums under each chroma sample."""
        return torch.zeros(self.pixels, 64, dtype=torch.float32).index_add_(
            0, self.chroma_source(), self.chroma_samples()
        )


@dataclass(frozen=True)
class Region:
    """A rectangle of MCUs of one kind: rows `top` to `bottom` and columns `left` to `right`, ends exclusive."""

    mcu: Mcu
    top: int
    bottom: int
    left: int
    right: int


def regions(
    sampling: Subsampling, size: tuple[int, int], images: int, banded: bool = True, on_gpu: bool = False
) -> list[list[Region]]:
    """The image cut into rows of regions, each row a list from left to right: bands of whole MCUs with the MCUs at the
    right edge beside them, then those at the bottom."""
    rows, columns = sampling.mcu_grid(size)
    height, width = sampling.mcu
    full_rows, full_columns = size[0] // height, size[1] // width
    most = GPU_BAND_PIXELS if on_gpu else BAND_PIXELS
    step = max(1, most // (columns * height * width * images)) if banded else rows
    bands = [(top, min(top + step, full_rows), height) for top in range(0, full_rows, step)]
    if rows > full_rows:
        bands.append((full_rows, rows, size[0] - full_rows * height))
    spans = [(0, full_columns, width)] if full_columns else []
    if columns > full_columns:
        spans.append((full_columns, columns, size[1] - full_columns * width))
    return [
        [Region(Mcu(sampling, inside_h, inside_w), top, bottom, left, right) for left, right, inside_w in spans]
        for top, bottom, inside_h in bands
    ]


def flat_regions(sampling: Subsampling, size: tuple[int, int], images: int, on_gpu: bool = False) -> Iterator[Region]:
    """All regions, bands first to last."""
    for row in regions(sampling, size, images, on_gpu=on_gpu):
        yield from row


def map_regions(
    function: Callable[[Region], Tensor], sampling: Subsampling, size: tuple[int, int], images: int, banded: bool
) -> Tensor:
    """An image put together from `function(region)`, each [N, C, h, w]. Without bands it is at most four regions, which
    is what autograd wants."""
    grid = regions(sampling, size, images, banded)
    return torch.cat([torch.cat([function(region) for region in row], dim=3) for row in grid], dim=2)


def to_tiles(x: Tensor, region: Region) -> Tensor:
    """[N, C, H, W] → [N, rows, columns, C, P] of one region; places beyond the image are zero."""
    height, width = region.mcu.sampling.mcu
    vertical, horizontal = region.mcu.sampling.factors
    x = x[:, :, region.top * height : region.bottom * height, region.left * width : region.right * width]
    if not region.mcu.whole:
        x = F.pad(x, (0, width - region.mcu.columns, 0, height - region.mcu.rows))
    x = x.reshape(*x.shape[:2], -1, vertical, 8, x.shape[3] // width, horizontal, 8)
    return x.permute(0, 2, 5, 1, 3, 6, 4, 7).flatten(4)


def from_tiles(tiles: Tensor, region: Region) -> Tensor:
    """The inverse: [N, rows, columns, C, P] → [N, C, H, W] of the region, cut to the image."""
    vertical, horizontal = region.mcu.sampling.factors
    n, rows, columns, channels, _ = tiles.shape
    height, width = region.mcu.sampling.mcu
    x = tiles.reshape(n, rows, columns, channels, vertical, horizontal, 8, 8).permute(0, 3, 1, 4, 6, 2, 5, 7)
    x = x.reshape(n, channels, rows * height, columns * width)
    return x[:, :, : (rows - 1) * height + region.mcu.rows, : (columns - 1) * width + region.mcu.columns]


def blocks_of(plane: Tensor, component: int, region: Region) -> Tensor:
    """A component's plane [N, rows, columns, 8, 8] → [N, rows, columns, blocks of an MCU, 64] of one region."""
    vertical, horizontal = (1, 1) if component else region.mcu.sampling.factors
    part = plane[
        :,
        region.top * vertical : region.bottom * vertical,
        region.left * horizontal : region.right * horizontal,
    ]
    n, rows, columns = part.shape[:3]
    part = part.reshape(n, rows // vertical, vertical, columns // horizontal, horizontal, 64)
    return part.transpose(2, 3).flatten(3, 4)


def put_blocks(plane: Tensor, component: int, region: Region, blocks: Tensor) -> None:
    """Writes [N, rows, columns, blocks of an MCU, 64] into its place of `plane`, the inverse of `blocks_of`."""
    vertical, horizontal = (1, 1) if component else region.mcu.sampling.factors
    n, rows, columns = blocks.shape[:3]
    blocks = blocks.unflatten(3, (vertical, horizontal)).transpose(2, 3)
    plane[
        :,
        region.top * vertical : region.bottom * vertical,
        region.left * horizontal : region.right * horizontal,
    ] = blocks.reshape(n, rows * vertical, columns * horizontal, 8, 8)


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
