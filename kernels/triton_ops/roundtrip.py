"""roundtrip: images → what JPEG leaves of them, differentiable; one launch each way.

y = limit(RGB(repeat(limit(IDCT(step round(DCT(downsample(YCC(x))) / step))))))
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
    forward,
    grow,
    inverse,
    limit,
    load_table,
    luma_pixels,
    rgb,
    round_half_away,
    shrink,
    spot,
    spot_chroma,
    ycc,
)
from kernels.triton_ops.edges import averaging_adjoint, load_inside, load_pixels, store_pixels
from kernels.triton_ops.launch import SIZES, Configuration, check_precision, configured, launch


@triton.jit
def passed(gradient, x, low, high):
    """What `limit` lets through of a gradient: nothing where x lies outside."""
    return tl.where((x >= low) & (x <= high), gradient, 0.0)


@triton.jit
def decoded(x, SAMPLES: tl.constexpr, tables, component, image, valid, C: tl.constexpr):
    """Blocks, each value the sum of SAMPLES → IDCT(step round(DCT / step)), not limited."""
    steps = load_table(tables, image, valid, component, C)
    return inverse(round_half_away(forward(x) / (8.0 * SAMPLES * steps)) * (steps * 0.125))


@triton.jit
def decoded_planes(
    x,
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
    G: tl.constexpr,
    H: tl.constexpr,
):
    """The decoded planes less 128, not limited: luma [8, V G H, 8], both differences' samples [8, 2 G, 8]."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    red, green, blue = load_pixels(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = ycc(red, green, blue, C)
    luma = decoded(luma_pixels(luma, row, height, V), 1, tables, 0, image, valid, C)
    if C == 1:
        return luma, luma
    else:
        image, row, column, valid, component = spot_chroma(mcus, rows, columns, G, 1)
        samples = beside(shrink(blueness, V, G, H), shrink(redness, V, G, H))
        return luma, decoded(samples, V * H, tables, component, image, valid, C)


@triton.jit
def decoded_colours(luma, chroma, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Decoded planes → (R, G, B) at each pixel, the planes limited, the colours not yet; of gray, thrice the same."""
    luma = limit(luma, -128.0, 127.0) + 128.0
    if C == 1:
        return luma, luma, luma
    else:
        blueness, redness = apart(limit(chroma, -128.0, 127.0))
        return rgb(luma, grow(blueness, V, G, H), grow(redness, V, G, H))


@configured(Configuration(4, 1), Configuration(32, 4))
@triton.jit(do_not_specialize=SIZES)
def roundtrip_kernel(
    x,
    out,
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
    """One read of the pixels, one write, both laid out alike."""
    G: tl.constexpr = BLOCKS // (V * H)
    luma, chroma = decoded_planes(
        x, tables, stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width, C, V, G, H
    )
    red, green, blue = decoded_colours(luma, chroma, C, V, G, H)
    red, green, blue = limit(red, 0.0, 255.0), limit(green, 0.0, 255.0), limit(blue, 0.0, 255.0)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    store_pixels(
        out, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@triton.jit
def rgb_adjoint(red, green, blue, C: tl.constexpr):
    """The gradient of (R, G, B) → of (Y, Cb, Cr), the transpose of blocks.rgb; of gray, the same."""
    if C == 1:
        return red, red, red
    else:
        blueness = 1.772 * blue - (0.114 * 1.772 / 0.587) * green
        return red + green + blue, blueness, 1.402 * red - (0.299 * 1.402 / 0.587) * green


@triton.jit
def ycc_adjoint(luma, blueness, redness, C: tl.constexpr):
    """The gradient of (Y, Cb, Cr) → of (R, G, B), the transpose of blocks.ycc; of gray, the same."""
    if C == 1:
        return luma, luma, luma
    else:
        b, r = blueness * (1 / 1.772), redness * (1 / 1.402)
        y = luma - b - r
        return 0.299 * y + r, 0.587 * y, 0.114 * y + b


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
def roundtrip_backward_kernel(
    x,
    gradient,
    out,
    tables,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    gradient_stride_n,
    gradient_stride_c,
    gradient_stride_h,
    gradient_stride_w,
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
    """dL/dx = YCC^T downsample^T ([-128 <= plane <= 127] repeat^T RGB^T ([0 <= colour <= 255] dL/dy))

    where plane and colour are what `limit` is given, a bracket is 1 where it holds and 0 elsewhere, and ^T transposes a
    linear map. The rounding counts as the identity; DCT and step, with their inverses, then cancel. The forward pass is
    computed again for the brackets: one read of the pixels and of the gradient, one write.
    """
    G: tl.constexpr = BLOCKS // (V * H)
    luma, chroma = decoded_planes(
        x, tables, stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width, C, V, G, H
    )
    red, green, blue = decoded_colours(luma, chroma, C, V, G, H)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    n, c, h, w = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    for_red, for_green, for_blue = load_inside(gradient, image, row, column, valid, height, width, n, c, h, w, C)
    for_red, for_green = passed(for_red, red, 0.0, 255.0), passed(for_green, green, 0.0, 255.0)
    for_blue = passed(for_blue, blue, 0.0, 255.0)
    for_luma, for_blueness, for_redness = rgb_adjoint(for_red, for_green, for_blue, C)
    for_luma = passed(for_luma, luma, -128.0, 127.0)
    if C == 3:
        samples = beside(shrink(for_blueness, V, G, H), shrink(for_redness, V, G, H))
        for_blueness, for_redness = apart(passed(samples, chroma, -128.0, 127.0))
        for_blueness = averaging_adjoint(for_blueness, row, column, height, width, V, G, H)
        for_redness = averaging_adjoint(for_redness, row, column, height, width, V, G, H)
    red, green, blue = ycc_adjoint(for_luma, for_blueness, for_redness, C)
    store_pixels(
        out, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


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
