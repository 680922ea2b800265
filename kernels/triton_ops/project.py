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
    apart,
    beside,
    chroma_plane,
    forward,
    grow,
    inverse,
    load_blocks,
    load_table,
    luma_pixels,
    rgb,
    shrink,
    spot,
    spot_chroma,
    ycc,
)
from kernels.triton_ops.edges import load_pixels, mean_of_places, showings, store_pixels, touches_edge
from kernels.triton_ops.launch import SIZES, Configuration, aligned, check_precision, configured, launch, three
from kernels.triton_ops.roundtrip import empty_image, rgb_adjoint, ycc_adjoint


@triton.jit
def intervals(plane, tables, half, image, row, column, valid, rows, columns, component, C: tl.constexpr):
    """The lower and upper ends of blocks' intervals, [B, 8, 8] each."""
    steps = load_table(tables, image, valid, component, C)
    centre = load_blocks(plane, image, row, column, valid, rows, columns) * steps
    return centre - half * steps, centre + half * steps


@triton.jit
def correction(x, low, high, SAMPLES: tl.constexpr):
    """IDCT(nearest(f) - f) of blocks, each value the sum of SAMPLES."""
    f = forward(x) * (0.125 / SAMPLES)
    return inverse((tl.minimum(tl.maximum(f, low), high) - f) * 0.125)


@triton.jit
def correction_adjoint(gradient, x, low, high, SAMPLES: tl.constexpr):
    """IDCT(([f in its interval] - 1) DCT(gradient)) / SAMPLES of blocks x, each value the sum of SAMPLES."""
    f = forward(beside(x, gradient))
    f, g = tl.split(tl.permute(tl.reshape(f, [2, x.shape[1], 8, 8]), (1, 2, 3, 0)))
    f *= 0.125 / SAMPLES
    return inverse(tl.where((f >= low) & (f <= high), 0.0, g * (-1 / 64 / SAMPLES)))


@triton.jit
def spread(
    samples, edge, mcus, rows, columns, pixel_column, height, width, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr
):
    """Both differences' samples [8, 2 G, 8] → what each pixel has of them, [8, V G H, 8] each: the sample's value; at
    the edge, if any is here, the mean of what comes to the places that show the pixel."""
    blue_samples, red_samples = apart(samples)
    if edge:
        _, row, column, _ = spot(mcus, rows, columns, 1, G, 1)
        blueness = mean_of_places(blue_samples, row, column, pixel_column, height, width, V, G, H)
        redness = mean_of_places(red_samples, row, column, pixel_column, height, width, V, G, H)
    else:
        blueness, redness = grow(blue_samples, V, G, H), grow(red_samples, V, G, H)
    return blueness, redness


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
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
    red, green, blue = load_pixels(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = ycc(red, green, blue, C)
    low, high = intervals(luma_plane, tables, half, image, row, column, valid, rows * V, columns * H, 0, C)
    luma = correction(luma_pixels(luma, row, height, V), low, high, 1)
    if edge:
        luma = mean_of_places(luma, row, column, column, height, width, 1, V * G * H, 1)
    if C == 1:
        red += luma
    else:
        image_, row_, column_, valid_, component = spot_chroma(mcus, rows, columns, G, 1)
        plane = chroma_plane(blue_plane, red_plane, component)
        low, high = intervals(plane, tables, half, image_, row_, column_, valid_, rows, columns, component, C)
        samples = correction(beside(shrink(blueness, V, G, H), shrink(redness, V, G, H)), low, high, V * H)
        blueness, redness = spread(samples, edge, mcus, rows, columns, column, height, width, V, G, H)
        for_red, for_green, for_blue = rgb(luma, blueness, redness)
        red, green, blue = red + for_red, green + for_green, blue + for_blue
    store_pixels(
        out32, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
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
    red, green, blue = load_pixels(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    luma, blueness, redness = ycc(red, green, blue, C)
    n, c, h, w = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    red, green, blue = load_pixels(gradient32, image, row, column, valid, height, width, n, c, h, w, C, V)
    for_luma, for_blueness, for_redness = rgb_adjoint(red, green, blue, C)
    for_luma = luma_pixels(for_luma, row, height, V)
    if edge:
        shown = showings(row, column, height, width, V, H)
        for_luma /= showings(row, column, height, width, 1, 1)
        for_blueness, for_redness = for_blueness / shown, for_redness / shown
    low, high = intervals(luma_plane, tables, half, image, row, column, valid, rows * V, columns * H, 0, C)
    for_luma = correction_adjoint(for_luma, luma_pixels(luma, row, height, V), low, high, 1)
    if edge:
        for_luma = mean_of_places(for_luma, row, column, column, height, width, 1, V * G * H, 1)
        for_luma *= showings(row, column, height, width, 1, 1)
    if C == 1:
        red += for_luma
    else:
        image_, row_, column_, valid_, component = spot_chroma(mcus, rows, columns, G, 1)
        plane = chroma_plane(blue_plane, red_plane, component)
        low, high = intervals(plane, tables, half, image_, row_, column_, valid_, rows, columns, component, C)
        samples = beside(shrink(blueness, V, G, H), shrink(redness, V, G, H))
        for_samples = beside(shrink(for_blueness, V, G, H), shrink(for_redness, V, G, H))
        for_samples = correction_adjoint(for_samples, samples, low, high, V * H)
        for_blueness, for_redness = spread(for_samples, edge, mcus, rows, columns, column, height, width, V, G, H)
        if edge:
            shown = showings(row, column, height, width, V, H)
            for_blueness, for_redness = for_blueness * shown, for_redness * shown
        for_red, for_green, for_blue = ycc_adjoint(for_luma, for_blueness, for_redness, C)
        red, green, blue = red + for_red, green + for_green, blue + for_blue
    store_pixels(
        out, red, green, blue, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C
    )


@torch.library.custom_op("jpeg_posterior::project", mutates_args=())
def _project(x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, torch.float32)
    launch(project_kernel, kind, size, len(x), x, out, *three(aligned(planes)), tables, 0.5 - margin, *x.stride())
    return out


@_project.register_fake
def _empty_result(x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float) -> Tensor:
    return empty_image(x, torch.float32)


@torch.library.custom_op("jpeg_posterior::project_backward", mutates_args=())
def _project_backward(
    gradient: Tensor, x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float
) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, x.dtype)
    inputs, strides = (x, gradient, out, *three(aligned(planes)), tables), (*x.stride(), *gradient.stride())
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
    check_precision(x)
    if not 0 <= margin <= 0.5:
        raise ValueError(f"margin: expected 0..0.5 of a step, got {margin}")
    planes = [plane.contiguous() for plane in c.planes]
    result: Tensor = _project(x, planes, c.tables.contiguous(), c.sampling.label, margin)
    return result
