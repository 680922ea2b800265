"""Splits images into tiles and assembles them again.

A tile is a core, which it contributes to the image, and a halo around it: context for the network, discarded
afterwards. Cores and tiles lie on the MCU grid, so that a tile's coefficients are a slice of the image's."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kernels import Coefficients
from model.generator import ALIGNMENT, Generator

CHROMA_REACH = 2
"""Pixels beyond a tile that the decoder's chroma filter reads."""

BATCH_SIDES = (128, 192, 256, 384, 512, 768, 1024, 1536)
"""Sides in pixels of a batch's tiles, for images smaller than a tile; the tile size itself is added."""

MAX_HALO = 160
"""Pixels. A network with a larger receptive field (the paper's: 1393) sees less context in a tile than in a whole
image; so far away it hardly changes a pixel."""


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in pixels of the image: the core is [start, stop), the tile [first, last)."""

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
        """(y, x) of the tile's top left corner in the image, pixels."""
        return self.rows.first, self.columns.first

    @property
    def core(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of the core in the image, pixels."""
        return self.rows.start, self.rows.stop, self.columns.start, self.columns.stop


def halo_of(generator: Generator) -> int:
    """The halo in pixels: the network's receptive field, so that tiles give bit for bit the image of a single pass; at
    most MAX_HALO."""
    return min(MAX_HALO, aligned(generator.receptive_radius + CHROMA_REACH))


def plan(size: tuple[int, int], tile: int, halo: int, whole: bool = True) -> list[Tile]:
    """Tiles of at most `tile` pixels per side, halo included, whose cores partition the image; row by row.

    size: (height, width) in pixels.
    whole: along an axis longer than `tile`, all tiles have that size, for a device that prefers one shape; otherwise
        cores are equal, which is less work.

    Raises ValueError unless `tile` is a multiple of 16 and larger than twice the halo."""
    if tile % ALIGNMENT or tile <= 2 * halo:
        raise ValueError(f"tile {tile}: expected a multiple of {ALIGNMENT} above twice the halo of {halo} pixels")
    spans = _whole_spans if whole else _equal_spans
    return [Tile(r, c) for r in spans(size[0], tile, halo) for c in spans(size[1], tile, halo)]


def _equal_spans(length: int, tile: int, halo: int) -> list[Span]:
    """The fewest spans, with cores of equal length; the last may be shorter."""
    if length <= tile:
        return [Span(0, length, 0, length)]
    count = 1
    core = length
    while core + halo * min(2, count - 1) > tile:
        count += 1
        core = -(-length // (count * ALIGNMENT)) * ALIGNMENT
    starts = range(0, length, core)
    return [Span(s, min(s + core, length), max(0, s - halo), min(s + core + halo, length)) for s in starts]


def _whole_spans(length: int, tile: int, halo: int) -> list[Span]:
    """Spans of length `tile`; the last are moved inwards. An axis of at most `tile` pixels is one span."""
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
    """The coefficients of a rectangle of pixels [top, bottom) x [left, right). Its corners must lie on the MCU grid, on
    the image's edge, or on that of the last blocks."""
    planes = []
    height, width = c.sampling.mcu
    for component, plane in enumerate(c.planes):
        down, across = (8, 8) if component == 0 else (height, width)
        rows, columns = c.sampling.plane_blocks(component, (bottom - top, right - left))
        planes.append(plane[:, top // down : top // down + rows, left // across : left // across + columns])
    return Coefficients(tuple(planes), c.tables, c.sampling, (bottom - top, right - left))


def tile_coefficients(c: Coefficients, tile: Tile) -> Coefficients:
    """The coefficients of a tile, core and halo, with a size in whole blocks: they hold pixels beyond the image's edge,
    too, which tell the network more than repeated ones."""
    top, left = tile.origin
    bottom, right = (-(-span.last // 8) * 8 for span in (tile.rows, tile.columns))
    return slice_coefficients(c, top, bottom, left, right)


def aligned(length: int) -> int:
    """The next multiple of 16."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def input_size(size: tuple[int, int], tile: int | None) -> tuple[int, int]:
    """(height, width) in pixels of the network's input for a tile of `size`: the next multiples of 16, or, where tiles
    form batches, the next of few sides. tile: the largest tile's side in batches; None: no batches."""
    height, width = map(aligned, size)
    if tile is None:
        return height, width
    sides = [side for side in BATCH_SIDES if side < tile] + [tile]
    return min(s for s in sides if s >= height), min(s for s in sides if s >= width)


def pad(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """[N, C, H, W] → [N, C, *size], by repeating the last row and column. size: (height, width); None: the next
    multiples of 16, which the network needs."""
    height, width = size or (aligned(x.shape[2]), aligned(x.shape[3]))
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")


def cut_core(x: Tensor, tile: Tile) -> Tensor:
    """[N, C, H, W], a tile, padded or not → [N, C, h, w], its core. Contiguous, as the kernels require."""
    return x[:, :, tile.rows.core, tile.columns.core].contiguous()


def paste(image: Tensor, core: Tensor, tile: Tile) -> None:
    """Writes a core [C, h, w] into the image [C, H, W]."""
    top, bottom, left, right = tile.core
    image[:, top:bottom, left:right] = core
