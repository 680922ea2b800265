"""Images ⇄ tiles. A tile is a core, its own part of the image, and a halo around it: context that the network sees and
that is thrown away. Cores and tiles lie on the MCU grid, so that a tile's coefficients are a slice of the image's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Coefficients
from model.generator import ALIGNMENT

HALO = 96
"""Pixels of context on each side of a core: more than the shipped network sees (4 for each of its 20 convolutions in a
row, and 2 of the decoder's chroma filter), so that its images are the same, bit for bit, in tiles and whole."""


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in pixels of the image: the core from `start` to `stop`, the tile from `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def core(self) -> slice:
        """The core within the tile."""
        return slice(self.start - self.first, self.stop - self.first)


@dataclass(frozen=True)
class Tile:
    rows: Span
    columns: Span

    @property
    def origin(self) -> tuple[int, int]:
        """(y, x) of the tile's corner in the image."""
        return self.rows.first, self.columns.first


def plan(size: tuple[int, int], tile: int, halo: int = HALO) -> list[Tile]:
    """Tiles of at most `tile` pixels each way, halo included, whose cores cover the image once, row by row. Raises
    ValueError unless `tile` is a multiple of 16 that leaves room for a core."""
    if tile % ALIGNMENT or tile <= 2 * halo:
        raise ValueError(f"tile {tile}: expected a multiple of {ALIGNMENT} above twice the halo of {halo} pixels")
    return [Tile(r, c) for r in _spans(size[0], tile, halo) for c in _spans(size[1], tile, halo)]


def _spans(length: int, tile: int, halo: int) -> list[Span]:
    """Equal tiles; the last are moved inwards, so that they too are whole. A short axis is one tile."""
    if length <= tile:
        return [Span(0, length, 0, length)]
    aligned = -(-length // ALIGNMENT) * ALIGNMENT
    spans, start = [], 0
    while start < length:
        first = min(max(0, start - halo), aligned - tile)
        stop = length if first + tile >= length else first + tile - halo
        spans.append(Span(start, stop, first, min(first + tile, length)))
        start = stop
    return spans


def slice_coefficients(c: Coefficients, top: int, bottom: int, left: int, right: int) -> Coefficients:
    """The coefficients of a rectangle of pixels whose corner lies on the MCU grid, and its far corner too or on the
    image's edge."""
    planes = []
    height, width = c.sampling.mcu
    for component, plane in enumerate(c.planes):
        down, across = (8, 8) if component == 0 else (height, width)
        rows, columns = c.sampling.plane_blocks(component, (bottom - top, right - left))
        planes.append(plane[:, top // down : top // down + rows, left // across : left // across + columns])
    return Coefficients(tuple(planes), c.tables, c.sampling, (bottom - top, right - left))


def tile_coefficients(c: Coefficients, tile: Tile) -> Coefficients:
    """Core and halo."""
    return slice_coefficients(c, tile.rows.first, tile.rows.last, tile.columns.first, tile.columns.last)


def core_coefficients(c: Coefficients, tile: Tile) -> Coefficients:
    """The core alone."""
    return slice_coefficients(c, tile.rows.start, tile.rows.stop, tile.columns.start, tile.columns.stop)


def pad(x: Tensor) -> Tensor:
    """[N, C, H, W] widened to multiples of 16 by repeating its last row and column: what the network takes."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % ALIGNMENT, 0, -height % ALIGNMENT), mode="replicate")


def cut_core(x: Tensor, tile: Tile) -> Tensor:
    """[N, C, H, W] of a tile, padded or not → its core, contiguous: a view is a layout that kernels do not take."""
    return x[:, :, tile.rows.core, tile.columns.core].contiguous()


def canvas(images: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Empty uint8 images [K, C, H, W] whose memory is [K, H, W, C], as encoders of image files take it."""
    return torch.empty(images, *size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)


def paste(image: Tensor, core: Tensor, tile: Tile) -> None:
    """Writes a core [C, h, w] into its place of the image."""
    image[:, tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop] = core
