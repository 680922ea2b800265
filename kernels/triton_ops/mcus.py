"""MCUs' geometry: their pixels and blocks, and how they are loaded from the image and from the file. The twin of
numba_ops/mcus.py, to the bit.

Shapes: a program works on G MCUs, numbered `mcus` [G]. K entries are those of G MCUs in order: V H blocks of luma or
two of chroma each. Pixels are [K, 8, 8, M] int32: the M = V H under each chroma sample, row by row. `size` are an MCU's
true rows and columns of pixels, [K] each, 0 where there is no MCU; empty where all MCUs are whole. Of an image, `shape`
is (height, width), `strides` are (n, c, h, w), and `grid` is (MCUs of a launch, MCUs down, MCUs across).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import exact as constants
from kernels.triton_ops.samples import PAIRED, expand, places

MAX_STEP = tl.constexpr(constants.MAX_STEP)


@triton.jit
def repeat(x, TIMES: tl.constexpr):
    """[G] → [G TIMES]."""
    return tl.reshape(tl.broadcast_to(x[:, None], [x.shape[0], TIMES]), [x.shape[0] * TIMES])


@triton.jit
def per_mcu(x, TIMES: tl.constexpr):
    """[G TIMES] → sums, [G]."""
    return tl.sum(tl.reshape(x, [x.shape[0] // TIMES, TIMES]), axis=1)


@triton.jit
def twice(x):
    """[K, ...] → [2 K, ...], each entry twice."""
    if len(x.shape) == 1:
        return repeat(x, 2)
    elif len(x.shape) == 2:
        return tl.reshape(tl.broadcast_to(x[:, None, :], [x.shape[0], 2, 8]), [2 * x.shape[0], 8])
    else:
        return tl.reshape(tl.broadcast_to(x[:, None, :, :], [x.shape[0], 2, 8, 8]), [2 * x.shape[0], 8, 8])


@triton.jit
def both_twice(x):
    """Of two tensors, or none."""
    if len(x) == 0:
        return ()
    else:
        return twice(x[0]), twice(x[1])


@triton.jit
def once(x):
    """The inverse of `twice`, of [2 K]."""
    return tl.max(tl.reshape(x, [x.shape[0] // 2, 2]), axis=1)


@triton.jit
def whole_mcus(n, grid, shape, V: tl.constexpr, H: tl.constexpr):
    """The numbers [G] of whole MCUs, the n-th [G] of all images' each."""
    _, rows, columns = grid
    height, width = shape
    full_rows, full_columns = height // (8 * V), width // (8 * H)
    image, n = n // (full_rows * full_columns), n % (full_rows * full_columns)
    return (image * rows + n // full_columns) * columns + n % full_columns


@triton.jit
def edge_mcus(n, grid, shape, V: tl.constexpr, H: tl.constexpr):
    """The same of those over the edge: of an image first the last column's, then the last row's."""
    _, rows, columns = grid
    height, width = shape
    full_rows, full_columns = height // (8 * V), width // (8 * H)
    count, right = rows * columns - full_rows * full_columns, full_rows * (columns - full_columns)
    image, n = n // count, n % count
    place = tl.where(n < right, n * columns + columns - 1, full_rows * columns + n - right)
    return image * rows * columns + place


@triton.jit
def sizes(mcus, there, grid, shape, V: tl.constexpr, H: tl.constexpr):
    """The true rows and columns [G] of the MCUs that are `there` [G]."""
    _, rows, columns = grid
    height, width = shape
    down = tl.minimum(height - mcus // columns % rows * (8 * V), 8 * V)
    across = tl.minimum(width - mcus % columns * (8 * H), 8 * H)
    return tl.where(there, down, 0), tl.where(there, across, 0)


@triton.jit
def nothing(turns):
    """0, but not for the compiler: what follows from numbers with it added is computed again instead of kept in
    registers through a loop. turns: [G], a count that changes in the loop."""
    return tl.min(tl.minimum(turns, 0), axis=0)


@triton.jit
def shifted(x, zero):
    """Two tensors, or none, with it added."""
    if len(x) == 0:
        return ()
    else:
        return x[0] + zero, x[1] + zero


@triton.jit
def luma_slots(size, V: tl.constexpr, H: tl.constexpr):
    """Sizes of MCUs [G] → rows and columns of slots of their luma blocks, [G V H]."""
    if len(size) == 0:
        return ()
    else:
        down, across = repeat(size[0], V * H), repeat(size[1], V * H)
        n = tl.arange(0, down.shape[0]) % (V * H)
        down, across = down - 8 * (n // H), across - 8 * (n % H)
        return tl.minimum(tl.maximum(down, 0), 8), tl.minimum(tl.maximum(across, 0), 8)


@triton.jit
def chroma_slots(size, V: tl.constexpr, H: tl.constexpr):
    """Rows and columns of slots of MCUs' chroma blocks. Beyond the samples that average pixels of their own, if chroma
    is halved across, all average the last true column alone: one slot stands for them. But where they are the halves of
    a sum T of two of its pixels there are two; not if there is one such sample, nor in a single row, which has no odd
    sums."""
    if len(size) == 0:
        return ()
    else:
        inner = size[1] // H
        outer = (H == 2) & (size[1] < 16)
        twice = outer & (V == 2) & (inner < 7) & (size[0] > 1)
        return (size[0] + V - 1) // V, inner + outer.to(tl.int32) + twice.to(tl.int32) * (1 + PAIRED)


@triton.jit
def coordinates(size, V: tl.constexpr, H: tl.constexpr):
    """Of MCUs' pixels: row [K, 8, 1, M] and column [K, 1, 8, M]; K is 1 where all MCUs are whole."""
    at, m = tl.arange(0, 8), tl.arange(0, V * H)
    down, across = at[None, :, None, None], at[None, None, :, None]
    if len(size) > 0:  # depends on it, as `nothing` explains
        zero = per_pixel(tl.minimum(size[0], 0))
        down, across = down + zero, across + zero
    return V * down + m // H, H * across + m % H


@triton.jit
def per_pixel(x):
    """[K] → [K, 1, 1, 1]."""
    return x[:, None, None, None]


@triton.jit
def to_blocks(x, V: tl.constexpr, H: tl.constexpr):
    """Pixels [G, 8, 8, M] → luma blocks [G V H, 8, 8]."""
    if V * H == 1:
        return tl.reshape(x, [x.shape[0], 8, 8])
    else:
        x = tl.permute(tl.reshape(x, [x.shape[0], 8, 8, V, H]), (0, 1, 3, 2, 4))
        x = tl.permute(tl.reshape(x, [x.shape[0], V, 8, H, 8]), (0, 1, 3, 2, 4))
        return tl.reshape(x, [x.shape[0] * V * H, 8, 8])


@triton.jit
def from_blocks(x, V: tl.constexpr, H: tl.constexpr):
    """The inverse."""
    if V * H == 1:
        return tl.reshape(x, [x.shape[0], 8, 8, 1])
    else:
        x = tl.permute(tl.reshape(x, [x.shape[0] // (V * H), V, H, 8, 8]), (0, 1, 3, 2, 4))
        x = tl.permute(tl.reshape(x, [x.shape[0], 8, V, 8, H]), (0, 1, 3, 2, 4))
        return tl.reshape(x, [x.shape[0], 8, 8, V * H])


@triton.jit
def pair(cb, cr):
    """Two planes' pixels [G, 8, 8, M] → [2 G, 8, 8, M], an MCU's side by side."""
    x = tl.permute(tl.join(cb, cr), (0, 4, 1, 2, 3))
    return tl.reshape(x, [2 * cb.shape[0], 8, 8, cb.shape[3]])


@triton.jit
def unpair(x):
    """The inverse."""
    x = tl.reshape(x, [x.shape[0] // 2, 2, 8, 8, x.shape[3]])
    return tl.split(tl.permute(x, (0, 2, 3, 4, 1)))


@triton.jit
def load_intervals(plane, tables, image, place, component, C: tl.constexpr):
    """Blocks' coefficients → what libjpeg's quantiser, rounding half away from zero, takes for them, of 8 times the
    DCT: low and high [K, 8, 8]. plane: [K] pointers. place: which block of the plane. component: [K], or one of all.
    Hints as in `addresses`."""
    steps = tables + (expand((image * C + component) * 64) + places())
    values = expand(plane + place.to(tl.int64) * 64) + places()
    step = tl.load(tl.max_contiguous(steps, [1, 2, 8]))
    value = tl.load(tl.max_contiguous(values, [1, 2, 8])).to(tl.int32)
    step = tl.minimum(step, MAX_STEP)
    value = tl.where(step == MAX_STEP, tl.minimum(tl.maximum(value, -1), 1), value)
    middle = 8 * value * step
    low, high = middle - 4 * step + (value <= 0).to(tl.int32), middle + 4 * step - (value >= 0).to(tl.int32)
    limit: tl.constexpr = 1 << 20
    return tl.minimum(tl.maximum(low, -limit), limit), tl.minimum(tl.maximum(high, -limit), limit)


@triton.jit
def luma_intervals(plane, tables, mcus, grid, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """Of MCUs' luma blocks."""
    _, rows, columns = grid
    of = repeat(mcus, V * H)
    n = tl.arange(0, of.shape[0]) % (V * H)
    place = (of // columns * V + n // H).to(tl.int64) * (columns * H) + of % columns * H + n % H
    return load_intervals(plane + tl.zeros_like(of), tables, of // (rows * columns), place, 0, C)


@triton.jit
def chroma_intervals(cb_plane, cr_plane, tables, mcus, grid, C: tl.constexpr):
    """Of MCUs' chroma blocks, two each."""
    of = repeat(mcus, 2)
    red = tl.arange(0, of.shape[0]) % 2 == 1
    plane = tl.where(red, cr_plane, cb_plane)
    return load_intervals(plane, tables, of // (grid[1] * grid[2]), of, 1 + red.to(tl.int32), C)


@triton.jit
def load_channel(x, inside):
    """Values limited to 0..255, in sixteenths; 0 beyond the image and for what is no number."""
    value = tl.load(x, mask=inside, other=0).to(tl.float32)
    value = tl.minimum(tl.where(value > 0, value, 0.0), 255.0)
    return (value * 16.0 + 0.5).to(tl.int32)


@triton.jit
def addresses(x, mcus, size, grid, strides, V: tl.constexpr, H: tl.constexpr):
    """Pointers [G, 8, 8, M] to the first channel's pixels of MCUs. The hints are an order, as in `edges.addresses`:
    neighbouring threads have what comes last. Where no order is known, Triton before 3.9 would take the reverse."""
    _, rows, columns = grid
    stride_n, _, stride_h, stride_w = strides
    row, column = coordinates(size, V, H)
    row = per_pixel(mcus // columns % rows * (8 * V)) + row
    column = per_pixel(mcus % columns * (8 * H)) + column
    corner = x + per_pixel((mcus // (rows * columns)).to(tl.int64) * stride_n)
    where = corner + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    return tl.multiple_of(tl.max_contiguous(where, [1, 1, 2, 4]), [1, 1, 1, 1])


@triton.jit
def inside_image(size, V: tl.constexpr, H: tl.constexpr):
    """[K, 8, 8, M]: which pixels the image has; [1, 8, 8, M] where all MCUs are whole."""
    if len(size) == 0:
        return tl.full([1, 8, 8, V * H], 1, tl.int1)
    else:
        row, column = coordinates(size, V, H)
        return (row < per_pixel(size[0])) & (column < per_pixel(size[1]))


@triton.jit
def swap(x):
    """An MCU's two planes [2 G, 8, 8, M] the other way round."""
    blue, red = unpair(x)
    return pair(red, blue)


@triton.jit
def load_pixels(x, mcus, size, grid, strides, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """The channels [G, 8, 8, M] of MCUs, in sixteenths; of gray images the one thrice."""
    where, inside, stride_c = addresses(x, mcus, size, grid, strides, V, H), inside_image(size, V, H), strides[1]
    red = load_channel(where, inside)
    if C == 1:
        return red, red, red
    else:
        return red, load_channel(where + stride_c, inside), load_channel(where + stride_c + stride_c, inside)


@triton.jit
def store_pixels(
    out, red, green, blue, chosen, mcus, size, grid, shape, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr
):
    """Writes the pixels of MCUs `chosen` [G] into contiguous uint8 images."""
    area = shape[0].to(tl.int64) * shape[1]
    where = addresses(out, mcus, size, grid, (C * area, area, shape[1], 1), V, H)
    mask = inside_image(size, V, H) & per_pixel(chosen)
    tl.store(where, red.to(tl.uint8), mask=mask)
    if C == 3:
        tl.store(where + area, green.to(tl.uint8), mask=mask)
        tl.store(where + area + area, blue.to(tl.uint8), mask=mask)
