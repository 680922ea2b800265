"""encode: images → quantised coefficients, one launch.

q = round(DCT(downsample(YCC(x))) / step), half away from zero

Shapes as in blocks.py: B blocks of G MCUs of C components; V and H, the sampling factors.
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
    load_table,
    locate_blocks,
    locate_chroma_blocks,
    luma_pixels,
)
from kernels.triton_ops.colour import rgb_to_ycc
from kernels.triton_ops.dct import forward_dct8, round_half_away
from kernels.triton_ops.edges import load_pixels
from kernels.triton_ops.launch import SIZES, Configuration, check_precision, configured, launch, three
from kernels.triton_ops.sampling import sum_under_samples


@triton.jit
def store_quantised(plane, f, scale, tables, component, blocks, shape, size, C: tl.constexpr):
    """round(DCT / step) of a component's blocks; f [B, 8, 8] is `scale` times the DCT. Blocks of padding: zero."""
    image, row, column, valid = blocks
    steps = load_table(tables, blocks, component, C)
    q = tl.clamp(round_half_away(f / (scale * steps)), -32768.0, 32767.0)
    q = tl.where(((row * 8 < size[0]) & (column * 8 < size[1]))[:, None, None], q, 0.0)
    where = plane + coefficient_offsets(image, row, column, shape)
    tl.store(where, tl.reshape(q.to(tl.int16), where.shape), mask=valid[:, None])


@configured(Configuration(8, 1), Configuration(32, 4))
@triton.jit(do_not_specialize=SIZES)
def encode_kernel(
    x, luma_plane, cb_plane, cr_plane, tables,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One read of the pixels, one write of the coefficients."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    blocks = locate_blocks(grid, V, G, H)
    red, green, blue = load_pixels(x, blocks, size, strides, C, V)
    luma, cb, cr = rgb_to_ycc(red, green, blue, C)
    f = forward_dct8(luma_pixels(luma, blocks[1], height, V))
    store_quantised(luma_plane, f, 8.0, tables, 0, blocks, (rows * V, columns * H), size, C)
    if C == 3:
        blocks, component = locate_chroma_blocks(grid, G, 1)
        size = (height + V - 1) // V, (width + H - 1) // H
        plane = chroma_plane((cb_plane, cr_plane), component)
        f = forward_dct8(beside(sum_under_samples(cb, V, G, H), sum_under_samples(cr, V, G, H)))
        store_quantised(plane, f, 8.0 * V * H, tables, component, blocks, (rows, columns), size, C)


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
