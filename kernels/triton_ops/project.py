"""project: images → the nearest whose coefficients lie in given intervals (equation 11 of arXiv 2211.11827),
differentiable; one launch each way.

y = x + RGB(back(nearest(f) - f)),  f = DCT(downsample(YCC(x))),  nearest(f) = f limited to (q ± half) step
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.triton_ops.blocks import (
    dct,
    idct,
    load_coefficients,
    load_steps,
    luma_rows,
    repeat_samples,
    spot,
    sum_under_samples,
    to_rgb,
    to_ycc,
)
from kernels.triton_ops.edges import (
    load_rgb,
    mean_of_places,
    share_among_places,
    store_rgb,
    sum_of_places,
    touches_edge,
)
from kernels.triton_ops.launch import check_layout, launch, three, tuned
from kernels.triton_ops.roundtrip import empty_image, to_rgb_adjoint, to_ycc_adjoint


@triton.jit
def to_planes(red, green, blue, C: tl.constexpr):
    """Octets of channels → of Y - 128 and the two differences; of gray, luma thrice."""
    if C == 3:
        return to_ycc(red, green, blue)
    else:
        luma = ()
        for k in tl.static_range(8):
            luma = luma + (red[k] - 128.0,)
        return luma, luma, luma


@triton.jit
def add(x, y):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k] + y[k],)
    return octet


@triton.jit
def intervals(plane, tables, half, image, row, column, valid, rows, columns, COMPONENT: tl.constexpr, C: tl.constexpr):
    """The lower and upper ends of blocks' intervals, eight columns [B, 8] each."""
    steps = load_steps(tables, image, valid, COMPONENT, C)
    quantised = load_coefficients(plane, image, row, column, valid, rows, columns)
    low, high = (), ()
    for k in tl.static_range(8):
        low = low + (quantised[k] * steps[k] - half * steps[k],)
        high = high + (quantised[k] * steps[k] + half * steps[k],)
    return low, high


@triton.jit
def correction(x, low, high, SAMPLES: tl.constexpr):
    """IDCT(nearest(f) - f) of blocks, each value the sum of SAMPLES."""
    f = dct(x)
    change = ()
    for k in tl.static_range(8):
        c = f[k] * (0.125 / SAMPLES)
        change = change + ((tl.minimum(tl.maximum(c, low[k]), high[k]) - c) * 0.125,)
    return idct(change)


@triton.jit
def correction_adjoint(gradient, x, low, high, SAMPLES: tl.constexpr):
    """IDCT(([f in its interval] - 1) DCT(gradient)) / SAMPLES of blocks x, each value the sum of SAMPLES."""
    f, g = dct(x), dct(gradient)
    change = ()
    for k in tl.static_range(8):
        c = f[k] * (0.125 / SAMPLES)
        change = change + (tl.where((c >= low[k]) & (c <= high[k]), 0.0, g[k] * (-1 / 64 / SAMPLES)),)
    return idct(change)


@tuned((4, 1), (8, 1), (16, 4))
@triton.jit
def project_kernel(
    x,
    out32,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    half,
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
    """One read of the pixels and of the coefficients, one write. `back` repeats chroma's samples, and gives a pixel the
    mean of what comes to the places that show it."""
    G: tl.constexpr = BLOCKS // (V * H)
    edge = touches_edge(mcus, rows, columns, height, width, V, G, H)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    red, green, blue = load_rgb(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = to_planes(red, green, blue, C)
    low, high = intervals(luma_plane, tables, half, image, row, column, valid, rows * V, columns * H, 0, C)
    luma = correction(luma_rows(luma, row, height, V), low, high, 1)
    if edge:
        luma = mean_of_places(luma, row, column, column, height, width, 1, V * G * H, 1)
    if C == 1:
        red = add(red, luma)
    else:
        image_, row_, column_, valid_ = spot(mcus, rows, columns, 1, G, 1)
        low, high = intervals(blue_plane, tables, half, image_, row_, column_, valid_, rows, columns, 1, C)
        blue_samples = correction(sum_under_samples(blueness, V, G, H), low, high, V * H)
        low, high = intervals(red_plane, tables, half, image_, row_, column_, valid_, rows, columns, 2, C)
        red_samples = correction(sum_under_samples(redness, V, G, H), low, high, V * H)
        if edge:
            blueness = mean_of_places(blue_samples, row_, column_, column, height, width, V, G, H)
            redness = mean_of_places(red_samples, row_, column_, column, height, width, V, G, H)
        else:
            blueness = repeat_samples(blue_samples, V, G, H)
            redness = repeat_samples(red_samples, V, G, H)
        for_red, for_green, for_blue = to_rgb(luma, blueness, redness)
        red, green, blue = add(red, for_red), add(green, for_green), add(blue, for_blue)
    store_rgb(
        out32, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@tuned((4, 1), (16, 4))
@triton.jit
def project_backward_kernel(
    x,
    gradient32,
    out,
    luma_plane,
    blue_plane,
    red_plane,
    tables,
    half,
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
    """dL/dx = g + YCC^T downsample^T DCT^T (([f in its interval] - 1) back^T RGB^T g),  g = dL/dy

    where the bracket is 1 where it holds and 0 elsewhere, and ^T transposes a linear map. downsample^T sums over the
    places that show a pixel, back^T shares among them. f is computed again: one read of the pixels, of the gradient and
    of the coefficients, one write.
    """
    G: tl.constexpr = BLOCKS // (V * H)
    edge = touches_edge(mcus, rows, columns, height, width, V, G, H)
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    red, green, blue = load_rgb(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = to_planes(red, green, blue, C)
    n, c, h, w = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    red, green, blue = load_rgb(gradient32, image, row, column, valid, height, width, n, c, h, w, C, V)
    for_luma, for_blueness, for_redness = to_rgb_adjoint(red, green, blue, C)
    for_luma = luma_rows(for_luma, row, height, V)
    if edge:
        for_luma = share_among_places(for_luma, row, column, height, width, 1, 1)
        for_blueness = share_among_places(for_blueness, row, column, height, width, V, H)
        for_redness = share_among_places(for_redness, row, column, height, width, V, H)
    low, high = intervals(luma_plane, tables, half, image, row, column, valid, rows * V, columns * H, 0, C)
    for_luma = correction_adjoint(for_luma, luma_rows(luma, row, height, V), low, high, 1)
    if edge:
        for_luma = mean_of_places(for_luma, row, column, column, height, width, 1, V * G * H, 1)
        for_luma = sum_of_places(for_luma, row, column, height, width, 1, 1)
    if C == 1:
        red = add(red, for_luma)
    else:
        image_, row_, column_, valid_ = spot(mcus, rows, columns, 1, G, 1)
        low, high = intervals(blue_plane, tables, half, image_, row_, column_, valid_, rows, columns, 1, C)
        for_samples, samples = sum_under_samples(for_blueness, V, G, H), sum_under_samples(blueness, V, G, H)
        blue_samples = correction_adjoint(for_samples, samples, low, high, V * H)
        low, high = intervals(red_plane, tables, half, image_, row_, column_, valid_, rows, columns, 2, C)
        for_samples, samples = sum_under_samples(for_redness, V, G, H), sum_under_samples(redness, V, G, H)
        red_samples = correction_adjoint(for_samples, samples, low, high, V * H)
        if edge:
            for_blueness = mean_of_places(blue_samples, row_, column_, column, height, width, V, G, H)
            for_redness = mean_of_places(red_samples, row_, column_, column, height, width, V, G, H)
            for_blueness = sum_of_places(for_blueness, row, column, height, width, V, H)
            for_redness = sum_of_places(for_redness, row, column, height, width, V, H)
        else:
            for_blueness = repeat_samples(blue_samples, V, G, H)
            for_redness = repeat_samples(red_samples, V, G, H)
        for_red, for_green, for_blue = to_ycc_adjoint(for_luma, for_blueness, for_redness, C)
        red, green, blue = add(red, for_red), add(green, for_green), add(blue, for_blue)
    store_rgb(
        out, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@torch.library.custom_op("jpeg_posterior::project", mutates_args=())
def _project(x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, torch.float32)
    launch(project_kernel, kind, size, len(x), x, out, *three(planes), tables, 0.5 - margin, *x.stride())
    return out


@_project.register_fake
def _empty_result(x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float) -> Tensor:
    return empty_image(x, torch.float32)


@torch.library.custom_op("jpeg_posterior::project_backward", mutates_args=())
def _project_backward(
    gradient: Tensor, x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float
) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, x.dtype)
    inputs, strides = (x, gradient, out, *three(planes), tables), (*x.stride(), *gradient.stride())
    launch(project_backward_kernel, kind, size, len(x), *inputs, 0.5 - margin, *strides)
    return out


@_project_backward.register_fake
def _empty_gradient(
    gradient: Tensor, x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float
) -> Tensor:
    return empty_image(x, x.dtype)


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor], Tensor, str, float], output: Tensor) -> None:
    x, planes, tables, ctx.sampling, ctx.margin = inputs
    ctx.save_for_backward(x, tables, *planes)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[None], None, None, None]:
    x, tables, *planes = ctx.saved_tensors
    return (
        _project_backward(gradient, x, planes, tables, ctx.sampling, ctx.margin),
        [None] * len(planes),
        None,
        None,
        None,
    )


_project.register_autograd(_backward, setup_context=_save)


def project(x: Tensor, c: Coefficients, margin: float = 0.0) -> Tensor:
    """See kernels.project. float32 arithmetic; the result, float32, is laid out as x."""
    check_images(x, c.tables, c.sampling, c.size)
    check_layout(x)
    if not 0 <= margin <= 0.5:
        raise ValueError(f"margin: expected 0..0.5 of a step, got {margin}")
    planes = [plane.contiguous() for plane in c.planes]
    result: Tensor = _project(x, planes, c.tables.contiguous(), c.sampling.label, margin)
    return result
