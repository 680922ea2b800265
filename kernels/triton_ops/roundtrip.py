"""roundtrip: images → what JPEG leaves of them, differentiable; one launch each way.

y = limit(RGB(repeat(limit(IDCT(step round(DCT(downsample(YCC(x))) / step))))))

Shapes as in blocks.py: B blocks of G MCUs of C components; V and H, the sampling factors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Subsampling, check_images
from kernels.triton_ops.blocks import (
    apart,
    beside,
    limit,
    load_table,
    locate_blocks,
    locate_chroma_blocks,
    luma_pixels,
)
from kernels.triton_ops.colour import rgb_to_ycc, rgb_to_ycc_adjoint, ycc_to_rgb, ycc_to_rgb_adjoint
from kernels.triton_ops.dct import forward_dct8, inverse_dct8, round_half_away
from kernels.triton_ops.edges import load_inside, load_pixels, store_pixels
from kernels.triton_ops.launch import SIZES, Configuration, check_precision, configured, launch
from kernels.triton_ops.sampling import averaging_adjoint, repeat_chroma, sum_under_samples


@triton.jit
def passed(gradient, x, low, high):
    """What `limit` lets through of a gradient: nothing where x lies outside."""
    return tl.where((x >= low) & (x <= high), gradient, 0.0)


@triton.jit
def decoded(x, SAMPLES: tl.constexpr, tables, component, blocks, C: tl.constexpr):
    """Blocks, each value the sum of SAMPLES → IDCT(step round(DCT / step)), not limited."""
    steps = load_table(tables, blocks, component, C)
    return inverse_dct8(round_half_away(forward_dct8(x) / (8.0 * SAMPLES * steps)) * (steps * 0.125))


@triton.jit
def decoded_planes(x, tables, strides, grid, size, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """The decoded planes less 128, not limited: luma [8, V G H, 8], both chroma components' samples [8, 2 G, 8]."""
    blocks = locate_blocks(grid, V, G, H)
    red, green, blue = load_pixels(x, blocks, size, strides, C, V)
    luma, cb, cr = rgb_to_ycc(red, green, blue, C)
    luma = decoded(luma_pixels(luma, blocks[1], size[0], V), 1, tables, 0, blocks, C)
    if C == 1:
        return luma, luma
    else:
        blocks, component = locate_chroma_blocks(grid, G, 1)
        samples = beside(sum_under_samples(cb, V, G, H), sum_under_samples(cr, V, G, H))
        return luma, decoded(samples, V * H, tables, component, blocks, C)


@triton.jit
def decoded_colours(luma, chroma, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Decoded planes → (R, G, B) at each pixel, the planes limited, the colours not yet; of gray, thrice the same."""
    luma = limit(luma, -128.0, 127.0) + 128.0
    if C == 1:
        return luma, luma, luma
    else:
        cb, cr = apart(limit(chroma, -128.0, 127.0))
        return ycc_to_rgb(luma, repeat_chroma(cb, V, G, H), repeat_chroma(cr, V, G, H))


@configured(Configuration(4, 1), Configuration(32, 4))
@triton.jit(do_not_specialize=SIZES)
def roundtrip_kernel(
    x, out, tables,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One read of the pixels, one write, both laid out alike."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    luma, chroma = decoded_planes(x, tables, strides, grid, size, C, V, G, H)
    red, green, blue = decoded_colours(luma, chroma, C, V, G, H)
    red, green, blue = limit(red, 0.0, 255.0), limit(green, 0.0, 255.0), limit(blue, 0.0, 255.0)
    store_pixels(out, red, green, blue, locate_blocks(grid, V, G, H), size, strides, C)


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
def roundtrip_backward_kernel(
    x, gradient, out, tables, stride_n, stride_c, stride_h, stride_w,
    gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """dL/dx = YCC^T downsample^T ([-128 <= plane <= 127] repeat^T RGB^T ([0 <= colour <= 255] dL/dy))

    where plane and colour are what `limit` is given, a bracket is 1 where it holds and 0 elsewhere, and ^T transposes a
    linear map. The rounding counts as the identity; DCT and step, with their inverses, then cancel. The forward pass is
    computed again for the brackets: one read of the pixels and of the gradient, one write.
    """
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    gradient_strides = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    luma, chroma = decoded_planes(x, tables, strides, grid, size, C, V, G, H)
    red, green, blue = decoded_colours(luma, chroma, C, V, G, H)
    blocks = locate_blocks(grid, V, G, H)
    for_red, for_green, for_blue = load_inside(gradient, blocks, size, gradient_strides, C)
    for_red, for_green = passed(for_red, red, 0.0, 255.0), passed(for_green, green, 0.0, 255.0)
    for_blue = passed(for_blue, blue, 0.0, 255.0)
    for_luma, for_cb, for_cr = ycc_to_rgb_adjoint(for_red, for_green, for_blue, C)
    for_luma = passed(for_luma, luma, -128.0, 127.0)
    if C == 3:
        samples = beside(sum_under_samples(for_cb, V, G, H), sum_under_samples(for_cr, V, G, H))
        for_cb, for_cr = apart(passed(samples, chroma, -128.0, 127.0))
        for_cb = averaging_adjoint(for_cb, blocks, size, V, G, H)
        for_cr = averaging_adjoint(for_cr, blocks, size, V, G, H)
    red, green, blue = rgb_to_ycc_adjoint(for_luma, for_cb, for_cr, C)
    store_pixels(out, red, green, blue, blocks, size, strides, C)


def empty_image(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One of x's shape and layout."""
    if x.is_contiguous():
        return x.new_empty(x.shape, dtype=dtype)
    n, channels, height, width = x.shape
    return x.new_empty((n, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


@torch.library.custom_op("jpeg_posterior::roundtrip", mutates_args=())
def _roundtrip(x: Tensor, tables: Tensor, sampling: str) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), _empty_result(x, tables, sampling)
    launch(roundtrip_kernel, kind, size, len(x), x, out, tables, *x.stride())
    return out


@_roundtrip.register_fake
def _empty_result(x: Tensor, tables: Tensor, sampling: str) -> Tensor:
    return empty_image(x, x.dtype if x.is_floating_point() else torch.float32)


@torch.library.custom_op("jpeg_posterior::roundtrip_backward", mutates_args=())
def _roundtrip_backward(gradient: Tensor, x: Tensor, tables: Tensor, sampling: str) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, x.dtype)
    launch(roundtrip_backward_kernel, kind, size, len(x), x, gradient, out, tables, *x.stride(), *gradient.stride())
    return out


@_roundtrip_backward.register_fake
def _empty_gradient(gradient: Tensor, x: Tensor, tables: Tensor, sampling: str) -> Tensor:
    return empty_image(x, x.dtype)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    x, tables, ctx.sampling = inputs
    ctx.save_for_backward(x, tables)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    x, tables = ctx.saved_tensors
    return _roundtrip_backward(gradient, x, tables, ctx.sampling), None, None


_roundtrip.register_autograd(_backward, setup_context=_save)


def roundtrip(x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """See kernels.roundtrip. float32 arithmetic; the result is laid out as x. A coefficient that lies within its last
    bits of a tie may be rounded to the other side, and with it its block differs."""
    check_images(x, tables, sampling)
    check_precision(x)
    result: Tensor = _roundtrip(x, tables.contiguous(), sampling.label)
    return result
