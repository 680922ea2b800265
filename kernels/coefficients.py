"""What a JPEG file says, no more and no less: its quantised DCT coefficients and what is needed to read them.

Geometry follows ITU-T T.81, section A.1 (components and sampling factors) and A.2 (MCUs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Subsampling(Enum):
    """The five modelled layouts; the value is (components, vertical, horizontal), the last two how many luma samples,
    down and across, share one chroma sample."""

    GRAY = (1, 1, 1)
    S444 = (3, 1, 1)
    S422 = (3, 1, 2)
    S440 = (3, 2, 1)
    S420 = (3, 2, 2)

    def __init__(self, components: int, vertical: int, horizontal: int) -> None:
        if not {vertical, horizontal} <= {1, 2}:
            raise ValueError("the operators know sampling factors of 1 and 2: CONTRIBUTING.md says what others need")
        self.components = components
        self.factors = (vertical, horizontal)
        """(vertical, horizontal) luma samples for one chroma sample."""
        self.mcu = (8 * vertical, 8 * horizontal)
        """(height, width) of a minimum coded unit in pixels."""

    @property
    def label(self) -> str:
        """`gray`, `4:4:4`, `4:2:2`, `4:4:0` or `4:2:0`."""
        return "gray" if self is Subsampling.GRAY else ":".join(self.name[1:])

    @classmethod
    def from_label(cls, label: str) -> Subsampling:
        """The inverse of `label`. Raises ValueError for anything else."""
        for sampling in cls:
            if sampling.label == label:
                return sampling
        raise ValueError(f"unknown chroma sampling {label!r}: expected one of {', '.join(s.label for s in cls)}")

    def mcu_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of MCUs that cover an image of `size` (height, width) pixels."""
        (height, width), (mcu_height, mcu_width) = size, self.mcu
        return -(-height // mcu_height), -(-width // mcu_width)

    def component_size(self, component: int, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in samples of a component of an image of `size` pixels (T.81, A.1.1)."""
        vertical, horizontal = self.factors if component else (1, 1)
        return -(-size[0] // vertical), -(-size[1] // horizontal)

    def true_blocks(self, component: int, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of blocks that hold samples of the image; the others of a plane are padding."""
        height, width = self.component_size(component, size)
        return -(-height // 8), -(-width // 8)

    def plane_blocks(self, component: int, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of blocks of a component's plane: whole MCUs."""
        (rows, columns), (vertical, horizontal) = self.mcu_grid(size), self.factors
        return (rows, columns) if component else (rows * vertical, columns * horizontal)


def _images_of(tables: Tensor, sampling: Subsampling) -> int:
    """N, when tables are [N, components, 8, 8] int32 and N is at least 1. Raises ValueError otherwise."""
    if not isinstance(sampling, Subsampling):
        raise ValueError(f"sampling: expected a Subsampling, such as Subsampling.from_label('4:2:0'), got {sampling!r}")
    n = tables.shape[0] if tables.ndim else 0
    if n < 1 or tuple(tables.shape) != (n, sampling.components, 8, 8) or tables.dtype != torch.int32:
        raise ValueError(
            f"tables: expected [N, {sampling.components}, 8, 8] int32 for {sampling.label}, N at least 1, "
            f"got {list(tables.shape)} {tables.dtype}"
        )
    return n


def check_images(x: Tensor, tables: Tensor, sampling: Subsampling, size: tuple[int, int] | None = None) -> None:
    """Raises ValueError unless `x` are images that go with `tables` and `sampling` (and have `size`, where given):
    [N, components, H, W], floating point or uint8, contiguous or channels_last, on the tables' device. (The CPU could
    read any layout, kernels could not: what works on one device works on the other.)"""
    n, components = _images_of(tables, sampling), sampling.components
    height, width = size or (tuple(x.shape[2:]) if x.ndim == 4 and x.numel() else ("H", "W"))
    if list(x.shape) != [n, components, height, width]:
        raise ValueError(
            f"images: expected [{n}, {components}, {height}, {width}] for {n} x {sampling.label}, got {list(x.shape)}"
        )
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise ValueError(f"images: expected floating point or uint8, got {x.dtype}")
    if x.device != tables.device:
        raise ValueError(f"images are on {x.device}, the tables on {tables.device}")
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(
            f"images: expected contiguous or channels_last, got strides {list(x.stride())} for {list(x.shape)}; "
            "call .contiguous()"
        )


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Quantised DCT coefficients of N images that share sampling and geometry.

    planes: one per component, [N, rows, columns, 8, 8] int16 in natural (row, column) order, covering whole MCUs.
        Blocks beyond a component's true blocks are padding and zero.
    tables: [N, components, 8, 8] int32, the quantisation steps, 1..65535, natural order.
    size: (height, width) in pixels.

    Raises ValueError when the shapes, dtypes or devices contradict each other. (Values are not read: that would wait
    for a GPU. `check_values` does.)
    """

    planes: tuple[Tensor, ...]
    tables: Tensor
    sampling: Subsampling
    size: tuple[int, int]

    def __post_init__(self) -> None:
        sampling = self.sampling
        object.__setattr__(self, "size", tuple(self.size))
        if self.size[0] < 1 or self.size[1] < 1:
            raise ValueError(f"image size {self.size} is empty")
        n = _images_of(self.tables, sampling)
        if len(self.planes) != sampling.components:
            raise ValueError(f"{sampling.label} has {sampling.components} planes, got {len(self.planes)}")
        for component, plane in enumerate(self.planes):
            expected = (n, *sampling.plane_blocks(component, self.size), 8, 8)
            if tuple(plane.shape) != expected or plane.dtype != torch.int16:
                raise ValueError(
                    f"plane {component}: expected {list(expected)} int16 for {sampling.label} at size {self.size}, "
                    f"got {list(plane.shape)} {plane.dtype}"
                )
            if plane.device != self.tables.device:
                raise ValueError(f"plane {component} is on {plane.device}, the tables on {self.tables.device}")

    def check_steps(self) -> None:
        """Raises ValueError for a quantisation step below 1 (T.81, B.2.4.1)."""
        if int(self.tables.min()) < 1:
            raise ValueError("a quantisation table holds a step below 1")

    def check_values(self) -> None:
        """Raises ValueError for a quantisation step below 1 or a padding block that is not zero."""
        self.check_steps()
        for component, plane in enumerate(self.planes):
            rows, columns = self.sampling.true_blocks(component, self.size)
            if plane[:, rows:].any() or plane[:, :, columns:].any():
                raise ValueError(f"plane {component} has padding blocks that are not zero")

    @classmethod
    def cat(cls, several: Sequence[Coefficients]) -> Coefficients:
        """The images of all of them, which must have one sampling, size and device; a copy, if there are several.
        Raises ValueError, also for none."""
        if not several:
            raise ValueError("there are no coefficients to join")
        first = several[0]
        if len(several) == 1:
            return first
        if any((c.sampling, c.size) != (first.sampling, first.size) for c in several):
            raise ValueError("only coefficients of one sampling and size can be joined")
        planes = tuple(torch.cat(planes) for planes in zip(*(c.planes for c in several), strict=True))
        return cls(planes, torch.cat([c.tables for c in several]), first.sampling, first.size)

    def __len__(self) -> int:
        return int(self.tables.shape[0])

    @property
    def device(self) -> torch.device:
        return self.tables.device

    @property
    def count(self) -> int:
        """How many coefficients one image constrains: 64 for each true block of each component."""
        blocks = (self.sampling.true_blocks(c, self.size) for c in range(self.sampling.components))
        return sum(64 * rows * columns for rows, columns in blocks)

    def to(self, device: torch.device | str) -> Coefficients:
        planes = tuple(plane.to(device) for plane in self.planes)
        return Coefficients(planes, self.tables.to(device), self.sampling, self.size)

    def mismatches(self, other: Coefficients) -> Tensor:
        """[N] int64: how many true coefficients differ from `other`'s, which must have the same geometry."""
        if (self.sampling, self.size, len(self)) != (other.sampling, other.size, len(other)):
            raise ValueError("only coefficients of one sampling, size and number of images can be compared")
        total = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        for component, (mine, theirs) in enumerate(zip(self.planes, other.planes, strict=True)):
            rows, columns = self.sampling.true_blocks(component, self.size)
            total += (mine[:, :rows, :columns] != theirs[:, :rows, :columns]).flatten(1).sum(1)
        return total
