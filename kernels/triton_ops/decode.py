"""decode: quantised coefficients → images, one launch.

x = RGB(upsample(limit(IDCT(q * step)))), limited to 0..255; chroma is upsampled by libjpeg's triangle filter

The filter weighs the nearer sample with three quarters and the farther with one. The samples around a block are decoded
again from its neighbours' coefficients, only the lines that touch it.

Shapes as in blocks.py: B blocks of G MCUs of C components; V and H, the sampling factors. The two chroma components lie
side by side: 2 B blocks are B blocks of Cb and then B of Cr.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling
from kernels.triton_ops.blocks import (
    apart,
    beside,
    chroma_plane,
    limit,
    load_blocks,
    load_table,
    locate_blocks,
    locate_chroma_blocks,
)
from kernels.triton_ops.colour import ycc_to_rgb
from kernels.triton_ops.dct import from_rows, idct8, idct_pass, inverse_dct8, pack, unpack
from kernels.triton_ops.edges import store_pixels
from kernels.triton_ops.launch import SIZES, Configuration, aligned, configured, launch, three


@triton.jit
def load_dequantised(plane, tables, component, blocks, shape, C: tl.constexpr):
    """q * step / 8 of blocks of a plane, [B, 8, 8]; zero beyond it."""
    image, row, column, valid = blocks
    valid = valid & (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    blocks = image, row, column, valid
    return load_blocks(plane, blocks, shape) * (load_table(tables, blocks, component, C) * 0.125)


@triton.jit
def limit_octet(x):
    """Samples less 128, limited to what a plane can hold."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (limit(x[k], -128.0, 127.0),)
    return octet


@triton.jit
def end_pass(f, end):
    """One sample of `idct_pass`: the first where `end` is 1, the last where it is -1."""
    even = f[0] + f[2] * 1.3065629648763766 + f[4] + f[6] * 0.5411961001461970
    odd = f[1] * 1.3870398453221475 + f[3] * 1.1758756024193588 + f[5] * 0.7856949583871022 + f[7] * 0.2758993792829431
    return even + end * odd


@triton.jit
def borders(planes, tables, grid, G: tl.constexpr, DOWN: tl.constexpr):
    """The lines of samples that touch 2 G blocks: above and below with DOWN, else left and right. An octet along the
    lines, [G / 2, 8] for (block, side): the lines of four blocks stand together as a block's rows do."""
    blocks, component = locate_chroma_blocks(grid, G, 2)
    image, row, column, valid = blocks
    side = column % 2 * 2 - 1
    column = column // 2
    if DOWN:
        row += side
    else:
        column += side
    plane = chroma_plane(planes, component)
    f = load_dequantised(plane, tables, component, (image, row, column, valid), (grid[1], grid[2]), 3)
    end = (tl.arange(0, 4 * G) % 2 * 2 - 1).to(tl.float32)
    lines = end_pass(unpack(tl.permute(f, (0, 2, 1)) if DOWN else f), end[:, None])
    return limit_octet(idct_pass(unpack(tl.reshape(lines, [G // 2, 8, 8]))))


@triton.jit
def corners(planes, tables, grid, G: tl.constexpr):
    """The samples that touch 2 G blocks at their corners: the left and the right ones, [G / 2, 8] each for (block,
    above or below)."""
    blocks, component = locate_chroma_blocks(grid, G, 4)
    image, row, column, valid = blocks
    row, column = row + column // 2 % 2 * 2 - 1, column // 4 + column % 2 * 2 - 1
    plane = chroma_plane(planes, component)
    f = load_dequantised(plane, tables, component, (image, row, column, valid), (grid[1], grid[2]), 3)
    corner = tl.arange(0, 8 * G)
    down, right = (corner // 2 % 2 * 2 - 1).to(tl.float32), (corner % 2 * 2 - 1).to(tl.float32)
    f = unpack(tl.reshape(end_pass(unpack(f), right[:, None]), [G, 8, 8]))
    samples = limit(end_pass(f, tl.reshape(down, [G, 8])), -128.0, 127.0)
    return tl.split(tl.reshape(samples, [G // 2, 8, 2]))


@triton.jit
def double(x, before, after, place, length, share):
    """The triangle filter across an octet and its two neighbours → the octets of the first and the second half; `share`
    is the farther sample's. x[0] is sample `place` of a line of `length`, whose ends repeat."""
    line = (tl.where(place > 0, before, x[0]), x[0])
    for k in tl.static_range(1, 9):
        line = line + (tl.where(place + k < length, after if k == 8 else x[k], line[k]),)
    wide = ()
    for k in tl.static_range(8):
        nearer = x[k] * (1 - share)
        wide = wide + (nearer + line[k] * share, nearer + line[k + 2] * share)
    return wide[:8], wide[8:]


@triton.jit
def both_sides(lines, G: tl.constexpr):
    """`borders` → the lines before and after 2 G blocks, [2 G, 8] each."""
    return tl.split(tl.permute(tl.reshape(pack(lines), [2 * G, 2, 8]), (0, 2, 1)))


@triton.jit
def wide_borders(planes, tables, grid, width, share, G: tl.constexpr):
    """The rows above and below 2 G blocks, doubled in width: [4 G, 8] each for (block, half)."""
    rows_beside = borders(planes, tables, grid, G, True)
    left, right = corners(planes, tables, grid, G)
    _, _, column, _ = locate_blocks(grid, 2, G, 2)
    first, second = double(rows_beside, left, right, tl.reshape(column // 2 * 8, [G // 2, 8]), width, share)
    both = tl.reshape(tl.join(pack(first), pack(second)), [2 * G, 2, 8, 2])
    above, below = tl.split(tl.permute(both, (0, 3, 2, 1)))
    return tl.reshape(above, [4 * G, 8]), tl.reshape(below, [4 * G, 8])


@triton.jit
def decode_chroma(planes, tables, grid, size, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """The chroma of G MCUs, less 128, at luma's places: an octet of rows [2 G H, 8] for each row of luma's blocks in an
    MCU. size: a chroma component's. A plane two samples wide or narrower is repeated, unless only its rows are to be
    doubled."""
    height, width = size
    share = tl.where((width > 2) | (H == 1), 0.25, 0.0)
    if V == 2:
        if H == 2:
            above, below = wide_borders(planes, tables, grid, width, share, G)
        else:
            above, below = both_sides(borders(planes, tables, grid, G, True), G)
    if H == 2:
        left, right = both_sides(borders(planes, tables, grid, G, False), G)
    blocks, component = locate_chroma_blocks(grid, G, 1)
    plane = chroma_plane(planes, component)
    f = load_dequantised(plane, tables, component, blocks, (grid[1], grid[2]), 3)
    if H == 1:
        x = limit_octet(idct8(unpack(f)))
    else:
        _, _, column, _ = locate_blocks(grid, 2, G, 1)
        x = limit_octet(idct8(unpack(tl.permute(f, (0, 2, 1)))))  # columns
        first, second = double(x, left, right, column[:, None] * 8, width, share)
        both = tl.permute(tl.join(pack(first), pack(second)), (0, 3, 2, 1))
        x = unpack(tl.reshape(both, [4 * G, 8, 8]))
    if V == 1:
        return (x,)
    else:
        _, row, _, _ = locate_blocks(grid, 2, G, H)
        return double(x, above, below, row[:, None] // 2 * 8, height, share)


@configured(Configuration(8, 1), Configuration(32, 4))
@triton.jit(do_not_specialize=SIZES)
def decode_kernel(
    luma_plane, cb_plane, cr_plane, tables, out32,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One read of the coefficients, but for the neighbours' chroma; one write of the pixels."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    if C == 3:
        chroma_size = (height + V - 1) // V, (width + H - 1) // H
        chroma = decode_chroma((cb_plane, cr_plane), tables, grid, chroma_size, V, G, H)
    blocks = locate_blocks(grid, V, G, H)
    f = load_dequantised(luma_plane, tables, 0, blocks, (rows * V, columns * H), C)
    red = limit(inverse_dct8(f), -128.0, 127.0) + 128.0
    green, blue = red, red
    if C == 3:
        cb, cr = apart(from_rows(chroma[0]))
        if V == 2:
            lower_cb, lower_cr = apart(from_rows(chroma[1]))
            cb, cr = beside(cb, lower_cb), beside(cr, lower_cr)
        red, green, blue = ycc_to_rgb(red, cb, cr)
    red, green, blue = limit(red, 0.0, 255.0), limit(green, 0.0, 255.0), limit(blue, 0.0, 255.0)
    store_pixels(out32, red, green, blue, blocks, size, strides, C)


@torch.library.custom_op("jpeg_posterior::decode", mutates_args=())
def _decode(planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int) -> Tensor:
    out = _empty_images(planes, tables, sampling, height, width)
    kind, size = Subsampling.from_label(sampling), (height, width)
    launch(decode_kernel, kind, size, len(tables), *three(aligned(planes)), tables, out, *out.stride())
    return out


@_decode.register_fake
def _empty_images(planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int) -> Tensor:
    return tables.new_empty((*tables.shape[:2], height, width), dtype=torch.float32)


def decode(c: Coefficients) -> Tensor:
    """See kernels.decode."""
    planes = [plane.contiguous() for plane in c.planes]
    return _decode(planes, c.tables.contiguous(), c.sampling.label, *c.size)
