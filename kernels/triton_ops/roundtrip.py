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
    dct,
    idct,
    load_steps,
    load_ycc,
    luma_rows,
    repeat_samples,
    round_half_away,
    spot,
    sum_under_samples,
    to_rgb,
)
from kernels.triton_ops.edges import averaging_adjoint, load_inside, store_rgb
from kernels.triton_ops.launch import check_layout, launch, tuned


@triton.jit
def limit(x, low, high):
    """Octets between two limits; what is not a number stays so."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.clamp(x[k], low, high, propagate_nan=tl.PropagateNan.ALL),)
    return octet


@triton.jit
def passed(gradient, x, low, high):
    """What `limit` lets through of a gradient: nothing where x lies outside."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.where((x[k] >= low) & (x[k] <= high), gradient[k], 0.0),)
    return octet


@triton.jit
def decoded(x, SAMPLES: tl.constexpr, tables, image, valid, COMPONENT: tl.constexpr, C: tl.constexpr):
    """A component's blocks, each value the sum of SAMPLES → IDCT(step round(DCT / step)), not limited."""
    f = dct(x)
    steps = load_steps(tables, image, valid, COMPONENT, C)
    rounded = ()
    for k in tl.static_range(8):
        rounded = rounded + (round_half_away(f[k] / (8.0 * SAMPLES * steps[k])) * (steps[k] * 0.125),)
    return idct(rounded)


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
    """Octets of the decoded planes less 128, not limited: luma's [V G H, 8], the differences' samples [G, 8]."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    luma, blueness, redness = load_ycc(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma = decoded(luma_rows(luma, row, height, V), 1, tables, image, valid, 0, C)
    if C == 3:
        image, row, column, valid = spot(mcus, rows, columns, 1, G, 1)
        blueness = decoded(sum_under_samples(blueness, V, G, H), V * H, tables, image, valid, 1, C)
        redness = decoded(sum_under_samples(redness, V, G, H), V * H, tables, image, valid, 2, C)
    return luma, blueness, redness


@triton.jit
def decoded_colours(luma, blueness, redness, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Octets of decoded planes → of (R, G, B) at each pixel, the planes limited, the colours not yet; of gray, thrice
    the same."""
    lifted = ()
    for k in tl.static_range(8):
        lifted = lifted + (tl.clamp(luma[k], -128.0, 127.0, propagate_nan=tl.PropagateNan.ALL) + 128.0,)
    if C == 1:
        return lifted, lifted, lifted
    else:
        blueness = repeat_samples(limit(blueness, -128.0, 127.0), V, G, H)
        redness = repeat_samples(limit(redness, -128.0, 127.0), V, G, H)
        return to_rgb(lifted, blueness, redness)


@tuned((4, 1), (8, 1), (16, 4))
@triton.jit
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
    luma, blueness, redness = decoded_planes(
        x, tables, stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width, C, V, G, H
    )
    red, green, blue = decoded_colours(luma, blueness, redness, C, V, G, H)
    red, green, blue = limit(red, 0.0, 255.0), limit(green, 0.0, 255.0), limit(blue, 0.0, 255.0)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    store_rgb(
        out, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@triton.jit
def load_passed(gradient, colour, image, row, column, valid, height, width, stride_n, stride_h, stride_w):
    """Of one channel's gradient, what the limits of its colour let through; zero beyond the image."""
    octet = load_inside(gradient, image, row, column, valid, height, width, stride_n, stride_h, stride_w)
    return passed(octet, colour, 0.0, 255.0)


@triton.jit
def to_rgb_adjoint(red, green, blue, C: tl.constexpr):
    """Octets of the gradient of (R, G, B) → of (Y, Cb, Cr), the transpose of blocks.to_rgb; of gray, the same."""
    if C == 1:
        return red, red, red
    else:
        luma, blueness, redness = (), (), ()
        for k in tl.static_range(8):
            luma = luma + (red[k] + green[k] + blue[k],)
            blueness = blueness + (1.772 * blue[k] - (0.114 * 1.772 / 0.587) * green[k],)
            redness = redness + (1.402 * red[k] - (0.299 * 1.402 / 0.587) * green[k],)
        return luma, blueness, redness


@triton.jit
def to_ycc_adjoint(luma, blueness, redness, C: tl.constexpr):
    """Octets of the gradient of (Y, Cb, Cr) → of (R, G, B), the transpose of blocks.to_ycc; of gray, the same."""
    if C == 1:
        return luma, luma, luma
    else:
        red, green, blue = (), (), ()
        for k in tl.static_range(8):
            b, r = blueness[k] * (1 / 1.772), redness[k] * (1 / 1.402)
            y = luma[k] - b - r
            red = red + (0.299 * y + r,)
            green = green + (0.587 * y,)
            blue = blue + (0.114 * y + b,)
        return red, green, blue


@tuned((4, 1), (8, 1), (16, 4))
@triton.jit
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
    luma, blueness, redness = decoded_planes(
        x, tables, stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width, C, V, G, H
    )
    red, green, blue = decoded_colours(luma, blueness, redness, C, V, G, H)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    n, c, h, w = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    for_red = load_passed(gradient, red, image, row, column, valid, height, width, n, h, w)
    for_green, for_blue = for_red, for_red
    if C == 3:
        for_green = load_passed(gradient + c, green, image, row, column, valid, height, width, n, h, w)
        for_blue = load_passed(gradient + 2 * c, blue, image, row, column, valid, height, width, n, h, w)
    for_luma, for_blueness, for_redness = to_rgb_adjoint(for_red, for_green, for_blue, C)
    for_luma = passed(for_luma, luma, -128.0, 127.0)
    if C == 3:
        for_blueness = passed(sum_under_samples(for_blueness, V, G, H), blueness, -128.0, 127.0)
        for_redness = passed(sum_under_samples(for_redness, V, G, H), redness, -128.0, 127.0)
        for_blueness = averaging_adjoint(for_blueness, row, column, height, width, V, G, H)
        for_redness = averaging_adjoint(for_redness, row, column, height, width, V, G, H)
    red, green, blue = to_ycc_adjoint(for_luma, for_blueness, for_redness, C)
    store_rgb(
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
    check_layout(x)
    result: Tensor = _roundtrip(x, tables.contiguous(), sampling.label)
    return result
