"""project_exact: the whole search inside one launch. kernels/exact.py and kernels/descent.py tell how it works; the
arithmetic that decides what is wrong is the same, bit for bit.

Correct in the interpreter, but not yet behind kernels.project_exact nor compiled in the tests: descent.py, inlined,
takes the compiler many minutes, and the feedback alone takes all 255 registers and spills 24 bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.descent import ATTEMPTS, NEAR, TENURE, TURNS
from kernels.exact import PASSES, PATIENCE, SHRINK_AGAIN, SHRINK_FIRST
from kernels.triton_ops.blocks import dct, luma_rows, spot, sum_under_samples, to_ycc
from kernels.triton_ops.descent import descend
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.launch import check_layout, launch, three, tuned
from kernels.triton_ops.search import (
    eight_bits,
    examine,
    feed_back,
    first_margin,
    load_component,
    narrower,
    store_where,
)


@triton.jit
def settle(
    x,
    image8,
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
    PASSES: tl.constexpr,
    PATIENCE: tl.constexpr,
    FIRST: tl.constexpr,
    AGAIN: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
):
    """The search by feedback: writes the best candidate of each MCU; returns [G] how many coefficients it has wrong."""
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    red, green, blue = load_rgb(
        x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V
    )
    q, steps, shown = load_component(luma_plane, tables, mcus, rows, columns, height, width, 0, C, V, G, H)
    y_margin = first_margin(steps, FIRST)
    if C == 3:
        y, cb, cr = to_ycc(red, green, blue)
        cb, cr = dct(sum_under_samples(cb, V, G, H)), dct(sum_under_samples(cr, V, G, H))
        q, steps, there = load_component(blue_plane, tables, mcus, rows, columns, height, width, 1, C, 1, G, 1)
        cb_margin = first_margin(steps, FIRST)
        q, steps, there = load_component(red_plane, tables, mcus, rows, columns, height, width, 2, C, 1, G, 1)
        cr_margin = first_margin(steps, FIRST)
    else:
        y = plus_constant(red, -128.0)
        cb, cr, cb_margin, cr_margin = red, red, y_margin, y_margin
    margins = (y_margin, cb_margin, cr_margin)
    values = (dct(luma_rows(y, row, height, V)), cb, cr)
    scale: tl.constexpr = 0.125 / (V * H)
    accumulated = feed_back(
        (red, green, blue),
        values,
        (0.125, scale),
        margins,
        luma_plane,
        blue_plane,
        red_plane,
        tables,
        mcus,
        rows,
        columns,
        height,
        width,
        C,
        V,
        G,
        H,
    )
    exists = tl.program_id(0) * G + tl.arange(0, G) < mcus
    at_edge = edge_mcus(mcus, rows, columns, height, width, V, G, H)
    patience = tl.where(at_edge, PASSES, PATIENCE)
    fewest = tl.full([G], 1e6, tl.float32)
    stale = tl.zeros([G], tl.int32)
    turn = 0
    while (turn < PASSES) & (tl.max(((fewest > 0) & (stale < patience) & exists).to(tl.int32)) > 0):
        r, g, b = eight_bits(accumulated[0]), eight_bits(accumulated[1]), eight_bits(accumulated[2])
        found, beyond, wrong, total = examine(
            r, g, b, luma_plane, blue_plane, red_plane, tables, mcus, rows, columns, height, width, 0.0, C, V, G, H
        )
        going_on = (fewest > 0) & (stale < patience)
        better = going_on & (wrong < fewest)
        store_where(image8, r, g, b, better, mcus, rows, columns, height, width, C, V, G, H)
        fewest = tl.where(better, wrong, fewest)
        stale = tl.where(better, 0, stale + 1)
        if tl.max(((fewest > 0) & (stale < patience) & exists).to(tl.int32)) > 0:
            margins = (
                narrower(margins[0], beyond[0], AGAIN),
                narrower(margins[1], beyond[1], AGAIN),
                narrower(margins[2], beyond[2], AGAIN),
            )
            accumulated = feed_back(
                accumulated,
                found,
                (0.125, 0.125),
                margins,
                luma_plane,
                blue_plane,
                red_plane,
                tables,
                mcus,
                rows,
                columns,
                height,
                width,
                C,
                V,
                G,
                H,
            )
        turn += 1
    return fewest


@triton.jit
def plus_constant(x, value):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k] + value,)
    return octet


@triton.jit
def edge_mcus(mcus, rows, columns, height, width, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """[G]: which MCUs hang over the image."""
    mcu = tl.program_id(0) * G + tl.arange(0, G)
    below = (mcu // columns % rows + 1) * 8 * V > height
    return below | ((mcu % columns + 1) * 8 * H > width)


@tuned((4, 1), (8, 1), (8, 2))
@triton.jit
def exact_kernel(
    x,
    image8,
    mismatches,
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
    PASSES: tl.constexpr,
    PATIENCE: tl.constexpr,
    FIRST: tl.constexpr,
    AGAIN: tl.constexpr,
    TURNS: tl.constexpr,
    TURNS_PATIENCE: tl.constexpr,
    TENURE: tl.constexpr,
    NEAR: tl.constexpr,
):
    """image8 = round(x + feedback until libjpeg-turbo finds the file's coefficients in it); each program runs until
    none of its MCUs is wrong, or none gets better."""
    G: tl.constexpr = BLOCKS // (V * H)
    fewest = settle(
        x,
        image8,
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
        PASSES,
        PATIENCE,
        FIRST,
        AGAIN,
        C,
        V,
        G,
        H,
    )
    fewest = descend(
        image8,
        fewest,
        luma_plane,
        blue_plane,
        red_plane,
        tables,
        mcus,
        rows,
        columns,
        height,
        width,
        TURNS,
        TURNS_PATIENCE,
        TENURE,
        NEAR,
        C,
        V,
        G,
        H,
    )
    mcu = tl.program_id(0) * G + tl.arange(0, G)
    tl.atomic_add(mismatches + mcu // (rows * columns), fewest.to(tl.int32), mask=(mcu < mcus) & (fewest > 0))


CONSTANTS = {
    "PASSES": PASSES,
    "PATIENCE": PATIENCE,
    "FIRST": SHRINK_FIRST,
    "AGAIN": SHRINK_AGAIN,
    "TURNS": TURNS * ATTEMPTS[0][2],
    "TURNS_PATIENCE": ATTEMPTS[0][2],
    "TENURE": TENURE,
    "NEAR": NEAR,
}
"""How long and how finely to search: the CPU's own."""


@torch.library.custom_op("jpeg_posterior::project_exact", mutates_args=())
def _project_exact(
    x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int
) -> tuple[Tensor, Tensor]:
    image8, mismatches = _empty_results(x, planes, tables, sampling, height, width)
    mismatches.zero_()
    kind = Subsampling.from_label(sampling)
    launch(
        exact_kernel,
        kind,
        (height, width),
        len(x),
        x,
        image8,
        mismatches,
        *three(planes),
        tables,
        *x.stride(),
        **CONSTANTS,
    )
    return image8, mismatches


@_project_exact.register_fake
def _empty_results(
    x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(len(x), dtype=torch.int32)


@torch.no_grad()
def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """See kernels.project_exact."""
    check_images(x, c.tables, c.sampling, c.size)
    check_layout(x)
    planes = [plane.contiguous() for plane in c.planes]
    image, mismatches = _project_exact(x, planes, c.tables.contiguous(), c.sampling.label, *c.size)
    return image, mismatches.long()
