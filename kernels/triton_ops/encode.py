"""encode: images → quantised coefficients, one launch.

q = round(DCT(downsample(YCC(x))) / step), half away from zero
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.triton_ops.blocks import (
    beside,
    chroma_plane,
    coefficient_offsets,
    forward,
    load_table,
    luma_pixels,
    round_half_away,
    shrink,
    spot,
    spot_chroma,
    ycc,
)
from kernels.triton_ops.edges import load_pixels
from kernels.triton_ops.launch import SIZES, Configuration, check_precision, configured, launch, three


@triton.jit
def store_quantised(
    plane, f, scale, tables, component, image, row, column, valid, rows, columns, height, width, C: tl.constexpr
):
    """round(DCT / step) of a component's blocks; f is `scale` times the DCT. Blocks of padding: zero."""
    steps = load_table(tables, image, valid, component, C)
    q = tl.clamp(round_half_away(f / (scale * steps)), -32768.0, 32767.0)
    q = tl.where(((row * 8 < height) & (column * 8 < width))[:, None, None], q, 0.0)
    where = plane + coefficient_offsets(image, row, column, rows, columns)
    tl.store(where, tl.reshape(q.to(tl.int16), where.shape), mask=valid[:, None])


@configured(Configuration(8, 1), Configuration(32, 4))
@triton.jit(do_not_specialize=SIZES)
def encode_kernel(
    x,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    mcus,
    rows,
    columns,
    height,
    width,
    C: tl.constexpr,
    V: tl.constexpr,
    H: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One read of the pixels, one write of the coefficients."""
    G: tl.constexpr = BLOCKS // (V * H)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    red, green, blue = load_pixels(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = ycc(red, green, blue, C)
    f = forward(luma_pixels(luma, row, height, V))
    store_quantised(luma_plane, f, 8.0, tables, 0, image, row, column, valid, rows * V, columns * H, height, width, C)
    if C == 3:
        image, row, column, valid, component = spot_chroma(mcus, rows, columns, G, 1)
        height, width = (height + V - 1) // V, (width + H - 1) // H
        plane = chroma_plane(blue_plane, red_plane, component)
        f = forward(beside(shrink(blueness, V, G, H), shrink(redness, V, G, H)))
        scale: tl.constexpr = 8.0 * V * H
        store_quantised(plane, f, scale, tables, component, image, row, column, valid, rows, columns, height, width, C)


@torch.library.custom_op("jpeg_posterior::encode", mutates_args=())
def _encode(x: Tensor, tables: Tensor, sampling: str) -> list[Tensor]:
    kind, size = Subsampling.from_label(sampling), (x.shape[2], x.shape[3])
    planes = _empty_planes(x, tables, sampling)
    launch(encode_kernel, kind, size, len(x), x, *three(planes), tables, *x.stride())
    return planes


@_encode.register_fake
def _empty_planes(x: Tensor, tables: Tensor, sampling: str) -> list[Tensor]:
    kind, size = Subsampling.from_label(sampling), (x.shape[2], x.shape[3])
    grids = (kind.plane_blocks(component, size) for component in range(kind.components))
    return [x.new_empty((x.shape[0], *grid, 8, 8), dtype=torch.int16) for grid in grids]


def encode(x: Tensor, tables: Tensor, sampling: Subsampling) -> Coefficients:
    """See kernels.encode. It rounds what a float32 arithmetic of another order gives: a coefficient that lies within
    its last bits of a tie may fall to the other side."""
    check_images(x, tables, sampling)
    check_precision(x)
    planes = _encode(x, tables.contiguous(), sampling.label)
    return Coefficients(tuple(planes), tables, sampling, (x.shape[2], x.shape[3]))
