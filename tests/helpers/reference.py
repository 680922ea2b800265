"""JPEG there and back once more, as the standard's formulas read: whole planes in float64, no bands, no tiles."""

from __future__ import annotations

from math import cos, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Coefficients, Subsampling

BASIS = torch.tensor(
    [[sqrt((1 if k == 0 else 2) / 8) * cos((2 * n + 1) * k * pi / 16) for n in range(8)] for k in range(8)],
    dtype=torch.float64,
)
FROM_RGB = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
        [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
    ],
    dtype=torch.float64,
)


def colour(x: Tensor, matrix: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else torch.einsum("dc,nchw->ndhw", matrix, x)


def repeated(x: Tensor, rows: int, columns: int) -> Tensor:
    """[N, 1, h, w] made larger by repeating its last row and column."""
    return F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2]), mode="replicate")


def planes_of(x: Tensor, sampling: Subsampling) -> list[Tensor]:
    """RGB or gray [N, C, H, W] → component planes less 128, [N, h, w] each, covering whole MCUs. Columns repeat before
    chroma is averaged, rows only up to the sampling factor; below that the averaged rows repeat."""
    (rows, columns), (height, width) = sampling.mcu_grid((x.shape[2], x.shape[3])), sampling.mcu
    full, planes = (rows * height, columns * width), []
    for component, plane in enumerate(colour(x.double(), FROM_RGB).split(1, dim=1)):
        vertical, horizontal = sampling.factors if component else (1, 1)
        even = repeated(plane, -(-plane.shape[2] // vertical) * vertical, full[1])
        averaged = F.avg_pool2d(even, (vertical, horizontal))
        planes.append(repeated(averaged, full[0] // vertical, full[1] // horizontal)[:, 0])
    if sampling is not Subsampling.GRAY:
        return [planes[0] - 128, *planes[1:]]
    return [planes[0] - 128]


def forward(plane: Tensor) -> Tensor:
    """[N, 8 r, 8 c] → DCT coefficients [N, r, c, 8, 8]."""
    blocks = plane.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3)
    return BASIS @ blocks @ BASIS.T


def backward(blocks: Tensor) -> Tensor:
    """The inverse of `forward`."""
    return (BASIS.T @ blocks @ BASIS).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def units(x: Tensor, tables: Tensor, sampling: Subsampling) -> list[Tensor]:
    """Each component's coefficients over their steps, not rounded: [N, r, c, 8, 8]."""
    planes = planes_of(x, sampling)
    return [forward(plane) / tables[:, i, None, None] for i, plane in enumerate(planes)]


def to_rgb(planes: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Planes less 128 → the image, chroma repeated. Not limited to 0..255."""
    height, width = planes[0].shape[1:]
    full = [p.repeat_interleave(height // p.shape[1], 1).repeat_interleave(width // p.shape[2], 2) for p in planes]
    full[0] = full[0] + 128
    image = colour(torch.stack(full, dim=1), torch.linalg.inv(FROM_RGB))
    return image[:, :, : size[0], : size[1]]


def roundtrip(x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """Compress and decompress, the planes limited, the colours not yet. The rounding's error counts as a constant, so
    autograd passes straight through it."""
    planes = []
    for i, unit in enumerate(units(x, tables, sampling)):
        rounded = unit + (unit.sign() * (unit.abs() + 0.5).floor() - unit).detach()
        planes.append(backward(rounded * tables[:, i, None, None]).clamp(-128, 127))
    return to_rgb(planes, (x.shape[2], x.shape[3]))


def decode_by_repetition(c: Coefficients) -> Tensor:
    """RGB or gray in float64, chroma repeated."""
    planes = [backward(plane * c.tables[:, i, None, None].double()) for i, plane in enumerate(c.planes)]
    return to_rgb([plane.clamp(-128, 127) for plane in planes], c.size).clamp(0, 255)


def outside(x: Tensor, c: Coefficients) -> float:
    """By how much of a step at most the image's coefficients lie outside c's intervals, true blocks only."""
    worst = -0.5
    for component, unit in enumerate(units(x, c.tables, c.sampling)):
        rows, columns = c.sampling.true_blocks(component, c.size)
        distance = (unit - c.planes[component]).abs()[:, :rows, :columns]
        worst = max(worst, float(distance.max()) - 0.5)
    return worst


def ycc_distance(x: Tensor, y: Tensor) -> Tensor:
    """[N]: squared distance in YCbCr."""
    return colour(x.double() - y.double(), FROM_RGB).square().flatten(1).sum(1)
