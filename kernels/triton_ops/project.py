"""project: images → the nearest whose coefficients lie in given intervals (equation 11 of arXiv 2211.11827),
differentiable; one launch each way.

y = x + RGB(back(nearest(f) - f)),  f = DCT(downsample(YCC(x))),  nearest(f) = f limited to (q ± half) step

Shapes as in blocks.py: B blocks of G MCUs of C components; V and H, the sampling factors.
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
    load_blocks,
    load_table,
    locate_blocks,
    locate_chroma_blocks,
    luma_pixels,
)
from kernels.triton_ops.colour import rgb_to_ycc, rgb_to_ycc_adjoint, ycc_to_rgb, ycc_to_rgb_adjoint
from kernels.triton_ops.dct import forward_dct8, inverse_dct8
from kernels.triton_ops.edges import load_pixels, mean_of_places, showings, store_pixels, touches_edge
from kernels.triton_ops.launch import SIZES, Configuration, aligned, check_precision, configured, launch, three
from kernels.triton_ops.roundtrip import empty_image
from kernels.triton_ops.sampling import repeat_chroma, sum_under_samples


@triton.jit
def intervals(plane, tables, half, blocks, shape, component, C: tl.constexpr):
    """The lower and upper ends of blocks' intervals, [B, 8, 8] each."""
    steps = load_table(tables, blocks, component, C)
    centre = load_blocks(plane, blocks, shape) * steps
    return centre - half * steps, centre + half * steps


@triton.jit
def correction(x, low, high, SAMPLES: tl.constexpr):
    """IDCT(nearest(f) - f) of blocks, each value the sum of SAMPLES."""
    f = forward_dct8(x) * (0.125 / SAMPLES)
    return inverse_dct8((tl.minimum(tl.maximum(f, low), high) - f) * 0.125)


@triton.jit
def correction_adjoint(gradient, x, low, high, SAMPLES: tl.constexpr):
    """IDCT(([f inside its interval] - 1) DCT(gradient)) / SAMPLES of blocks x, each value the sum of SAMPLES."""
    f = forward_dct8(beside(x, gradient))
    f, g = tl.split(tl.permute(tl.reshape(f, [2, x.shape[1], 8, 8]), (1, 2, 3, 0)))
    f *= 0.125 / SAMPLES
    return inverse_dct8(tl.where((f > low) & (f < high), 0.0, g * (-1 / 64 / SAMPLES)))


@triton.jit
def spread(samples, edge, grid, pixel_column, size, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Both chroma components' samples [8, 2 G, 8] → what each pixel has of them, [8, V G H, 8] each: the sample's
    value; at the edge, if any is here, the mean of what comes to the places that show the pixel."""
    cb_samples, cr_samples = apart(samples)
    if edge:
        blocks = locate_blocks(grid, 1, G, 1)
        cb = mean_of_places(cb_samples, blocks, pixel_column, size, V, G, H)
        cr = mean_of_places(cr_samples, blocks, pixel_column, size, V, G, H)
    else:
        cb, cr = repeat_chroma(cb_samples, V, G, H), repeat_chroma(cr_samples, V, G, H)
    return cb, cr


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
def project_kernel(
    x, out32, luma_plane, cb_plane, cr_plane, tables, half,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One read of the pixels and of the coefficients, one write. `back` repeats chroma's samples, and gives a pixel the
    mean of what comes to the places that show it."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    edge = touches_edge(grid, size, V, G, H)
    blocks = locate_blocks(grid, V, G, H)
    red, green, blue = load_pixels(x, blocks, size, strides, C, V)
    luma, cb, cr = rgb_to_ycc(red, green, blue, C)
    low, high = intervals(luma_plane, tables, half, blocks, (rows * V, columns * H), 0, C)
    luma = correction(luma_pixels(luma, blocks[1], height, V), low, high, 1)
    if edge:
        luma = mean_of_places(luma, blocks, blocks[2], size, 1, V * G * H, 1)
    if C == 1:
        red += luma
    else:
        chroma_blocks, component = locate_chroma_blocks(grid, G, 1)
        plane = chroma_plane((cb_plane, cr_plane), component)
        low, high = intervals(plane, tables, half, chroma_blocks, (rows, columns), component, C)
        samples = beside(sum_under_samples(cb, V, G, H), sum_under_samples(cr, V, G, H))
        samples = correction(samples, low, high, V * H)
        cb, cr = spread(samples, edge, grid, blocks[2], size, V, G, H)
        for_red, for_green, for_blue = ycc_to_rgb(luma, cb, cr)
        red, green, blue = red + for_red, green + for_green, blue + for_blue
    store_pixels(out32, red, green, blue, blocks, size, strides, C)


@configured(Configuration(4, 1))
@triton.jit(do_not_specialize=SIZES)
def project_backward_kernel(
    x, gradient32, out, luma_plane, cb_plane, cr_plane, tables, half, stride_n, stride_c, stride_h, stride_w,
    gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """dL/dx = g + YCC^T downsample^T DCT^T (([f in its interval] - 1) back^T RGB^T g),  g = dL/dy

    where the bracket is 1 where it holds and 0 elsewhere, and ^T transposes a linear map. downsample^T sums over the
    places that show a pixel, back^T shares among them. f is computed again: one read of the pixels, of the gradient and
    of the coefficients, one write.
    """
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, size = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    gradient_strides = gradient_stride_n, gradient_stride_c, gradient_stride_h, gradient_stride_w
    edge = touches_edge(grid, size, V, G, H)
    blocks = locate_blocks(grid, V, G, H)
    red, green, blue = load_pixels(x, blocks, size, strides, C, V)
    luma, cb, cr = rgb_to_ycc(red, green, blue, C)
    red, green, blue = load_pixels(gradient32, blocks, size, gradient_strides, C, V)
    for_luma, for_cb, for_cr = ycc_to_rgb_adjoint(red, green, blue, C)
    for_luma = luma_pixels(for_luma, blocks[1], height, V)
    if edge:
        shown = showings(blocks, size, V, H)
        for_luma /= showings(blocks, size, 1, 1)
        for_cb, for_cr = for_cb / shown, for_cr / shown
    low, high = intervals(luma_plane, tables, half, blocks, (rows * V, columns * H), 0, C)
    for_luma = correction_adjoint(for_luma, luma_pixels(luma, blocks[1], height, V), low, high, 1)
    if edge:
        for_luma = mean_of_places(for_luma, blocks, blocks[2], size, 1, V * G * H, 1)
        for_luma *= showings(blocks, size, 1, 1)
    if C == 1:
        red += for_luma
    else:
        chroma_blocks, component = locate_chroma_blocks(grid, G, 1)
        plane = chroma_plane((cb_plane, cr_plane), component)
        low, high = intervals(plane, tables, half, chroma_blocks, (rows, columns), component, C)
        samples = beside(sum_under_samples(cb, V, G, H), sum_under_samples(cr, V, G, H))
        for_samples = beside(sum_under_samples(for_cb, V, G, H), sum_under_samples(for_cr, V, G, H))
        for_samples = correction_adjoint(for_samples, samples, low, high, V * H)
        for_cb, for_cr = spread(for_samples, edge, grid, blocks[2], size, V, G, H)
        if edge:
            shown = showings(blocks, size, V, H)
            for_cb, for_cr = for_cb * shown, for_cr * shown
        for_red, for_green, for_blue = rgb_to_ycc_adjoint(for_luma, for_cb, for_cr, C)
        red, green, blue = red + for_red, green + for_green, blue + for_blue
    store_pixels(out, red, green, blue, blocks, size, strides, C)


@torch.library.custom_op("jpeg_posterior::project", mutates_args=())
def _project(x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, margin: float) -> Tensor:
    kind, size, out = Subsampling.from_label(sampling), (x.shape[2], x.shape[3]), empty_image(x, torch.float32)
    (x,) = aligned([x])
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
