"""What both halves of project_exact's search do with MCUs in registers: examine a candidate, and keep what is better.

`here` is what blocks.spot says of luma's blocks, `there` of chroma's: their image, row, column, and whether they exist.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import from_rows, load_coefficients, load_steps
from kernels.triton_ops.edges import store_pixels


@triton.jit
def load_intervals(
    plane,
    tables,
    place,
    rows,
    columns,
    height,
    width,
    COMPONENT: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    H: tl.constexpr,
):
    """Of one component's blocks: the intervals' middles, float32, the steps, and which blocks hold pixels [B, 1].

    They come out of the cache in every pass: registers are scarcer. V, H: blocks of the component in an MCU."""
    image, row, column, valid = place
    quantised = load_coefficients(plane, image, row, column, valid, rows * V, columns * H)
    steps, centre = load_steps(tables, image, valid, COMPONENT, C), ()
    for k in tl.static_range(8):
        centre = centre + (quantised[k] * steps[k],)
    return centre, steps, ((row * 8 < height) & (column * 8 < width) & valid)[:, None]


@triton.jit
def excess(found, intervals, near):
    """How far 8 times the DCT is beyond the ends of the file's intervals, these drawn in by `near`; signed, and zero in
    padding. libjpeg rounds half away from zero: the end nearer to zero is inside."""
    centre, steps, shown = intervals
    beyond = ()
    for k in tl.static_range(8):
        sign = tl.where(centre[k] > 0, 0.5, tl.where(centre[k] < 0, -0.5, 0.0))
        off = found[k].to(tl.float32) - 8.0 * centre[k] + sign
        over = tl.maximum(tl.abs(off) - (4.0 * steps[k] - 0.5) + near, 0.0)
        beyond = beyond + (tl.where(shown, tl.where(off < 0, -over, over), 0.0),)
    return beyond


@triton.jit
def per_mcu(values, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Sums of [B, 8] over each MCU: [G]."""
    return tl.sum(tl.sum(tl.reshape(tl.sum(values, axis=1), [V, G, H]), axis=2), axis=0)


@triton.jit
def count_wrong(beyond, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Excess of one component → [G], how many of an MCU's coefficients have any."""
    wrong = tl.zeros_like(beyond[0])
    for k in tl.static_range(8):
        wrong += tl.where(beyond[k] != 0, 1.0, 0.0)
    return per_mcu(wrong, V, G, H)


@triton.jit
def sum_excess(beyond, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Excess of one component → [G], its sum over an MCU; exact: all are multiples of a half."""
    total = tl.zeros_like(beyond[0])
    for k in tl.static_range(8):
        total += tl.abs(beyond[k])
    return per_mcu(total, V, G, H)


@triton.jit
def choose(chosen, x, y):
    """Octets of x where `chosen`, else of y."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.where(chosen, x[k], y[k]),)
    return octet


@triton.jit
def pack_channels(red, green, blue, C: tl.constexpr):
    """Octets of int32, 0..255 → one octet with a byte for each channel."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (red[k] | (green[k] << 8) | (blue[k] << 16) if C == 3 else red[k],)
    return octet


@triton.jit
def unpack_channels(packed, C: tl.constexpr):
    """The inverse; of gray, the one thrice."""
    if C == 1:
        return packed, packed, packed
    else:
        red, green, blue = (), (), ()
        for k in tl.static_range(8):
            red, green = red + (packed[k] & 255,), green + ((packed[k] >> 8) & 255,)
            blue = blue + (packed[k] >> 16,)
        return red, green, blue


@triton.jit
def store_packed(out, packed, here, height, width, C: tl.constexpr):
    """Writes packed octets into contiguous uint8 images."""
    image, row, column, valid = here
    area = height.to(tl.int64) * width
    channels = unpack_channels(packed, C)
    red, green, blue = from_rows(channels[0]), from_rows(channels[1]), from_rows(channels[2])
    store_pixels(out, red, green, blue, image, row, column, valid, height, width, C * area, area, width, 1, C)
