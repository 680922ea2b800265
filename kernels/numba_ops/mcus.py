"""An MCU's geometry: what its blocks' slots stand for, and how it is loaded from the image and from the file.

Shapes: P pixels of an MCU, flat, by row, also where the image ends before; C components; 64 slots of a block, flat.
"""

from __future__ import annotations

import numpy as np
from numba import int32
from numpy.typing import NDArray

from kernels.exact import MAX_STEP, PAIRED
from kernels.numba_ops.compiler import jit
from kernels.numba_ops.samples import Ints

Geometry = tuple[int, int, int, int]
"""Of an MCU: its vertical and horizontal sampling factors, its true rows and columns of pixels."""


@jit
def load_intervals(coefficients: NDArray[np.int16], steps: Ints, low: Ints, high: Ints) -> None:
    """A block's coefficients [64] and steps [64] → what libjpeg's quantiser, rounding half away from zero, takes for
    them, of 8 times the DCT."""
    for i in range(64):
        step, value = min(steps[i], MAX_STEP), int32(coefficients[i])
        value = min(max(value, -1), 1) if step == MAX_STEP else value
        middle = 8 * value * step
        low[i] = min(max(middle - 4 * step + int32(value <= 0), -(1 << 20)), 1 << 20)
        high[i] = min(max(middle + 4 * step - int32(value >= 0), -(1 << 20)), 1 << 20)


@jit
def load_pixels(x: NDArray[np.float32], top: int, left: int, rows: int, columns: int, width: int, rgb: Ints) -> None:
    """The pixels of [C, H, W] under an MCU, limited to 0..255, in sixteenths; 0 beyond the image."""
    for component in range(x.shape[0]):
        if rows * columns < rgb.shape[1]:
            for p in range(rgb.shape[1]):
                rgb[component, p] = 0
        for r in range(rows):
            for c in range(columns):
                value = x[component, top + r, left + c]
                value = min(value if value > 0 else np.float32(0), np.float32(255))  # 0 also for what is no number
                rgb[component, r * width + c] = int32(value * np.float32(16) + np.float32(0.5))


@jit
def place_of(p: int, vertical: int, horizontal: int) -> tuple[int, int, int]:
    """Of pixel p of an MCU: its luma block, its place there, and the chroma sample over it."""
    width = 8 * horizontal
    y, x = p // width, p % width
    return (y >> 3) * horizontal + (x >> 3), 8 * (y & 7) + (x & 7), 8 * (y // vertical) + x // horizontal


@jit
def first_pixel(n: int, horizontal: int) -> int:
    """Where luma block n begins."""
    return 64 * horizontal * (n // horizontal) + 8 * (n % horizontal)


@jit
def chroma_slots(geometry: Geometry) -> tuple[int, int, int]:
    """Of an MCU's chroma blocks: how many rows and columns of slots they have, and how many of the columns average
    pixels of their own. Beyond these, if chroma is halved across, all samples average the last true column alone: one
    slot stands for them. But where they are the halves of a sum T of two of its pixels there are two, see samples.py;
    not if there is one such sample, nor in a single row, which has no odd sums."""
    vertical, horizontal, rows, columns = geometry
    inner = columns // horizontal
    outer = 1 if horizontal == 2 and columns < 16 else 0
    if outer and vertical == 2 and inner < 7 and rows > 1:
        outer = 2
    return (rows + vertical - 1) // vertical, inner + outer, inner


@jit
def slots_of(n: int, geometry: Geometry) -> tuple[int, int]:
    """How many rows and columns of slots block n of an MCU has, luma's first, counted as in samples.py; none of a block
    of padding."""
    vertical, horizontal, rows, columns = geometry
    if n >= vertical * horizontal:
        slot_rows, slot_columns, inner = chroma_slots(geometry)
        return slot_rows, slot_columns + (PAIRED if slot_columns == inner + 2 else 0)
    top, left = 8 * (n // horizontal), 8 * (n % horizontal)
    return min(max(rows - top, 0), 8), min(max(columns - left, 0), 8)
