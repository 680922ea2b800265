"""project_exact: rounding whose errors are fed back until libjpeg-turbo finds the file's coefficients. kernels/exact.py
tells how it works; the integers that decide what is wrong are the same, bit for bit.

Two launches without the host between them: this one searches until each MCU of a program is right, or gets no better,
and lists those that are not; descent.py mends them. They share no work: most images leave it nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.exact import PASSES, PATIENCE, SHRINK_AGAIN, SHRINK_FIRST
from kernels.triton_ops.blocks import dct, idct, luma_rows, spot, sum_under_samples, to_rgb, to_ycc
from kernels.triton_ops.descent import descend
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.folding import to_places
from kernels.triton_ops.integer import integer_forward, to_blocks
from kernels.triton_ops.launch import (
    ALL_REGISTERS,
    SIZES,
    Configuration,
    aligned,
    check_precision,
    configured,
    launch,
    three,
)
from kernels.triton_ops.search import choose, count_wrong, excess, load_intervals, pack_channels, store_packed

ENOUGH = tl.constexpr(15)
"""So many misses draw an interval in by more than half a step, whatever SHRINK_FIRST adds; more fit no four bits."""


@triton.jit
def drawn_in(value, intervals, missed, FIRST: tl.constexpr, AGAIN: tl.constexpr):
    """What brings a coefficient into its interval, the ends drawn in; zero in padding."""
    centre, steps, shown = intervals
    change = ()
    for k in tl.static_range(8):
        misses = ((missed >> (4 * k)) & 15).to(tl.float32)
        half = tl.maximum(0.5 - FIRST / tl.maximum(steps[k], 1.0) - AGAIN * misses, 0.0) * steps[k]
        moved = tl.minimum(tl.maximum(value[k], centre[k] - half), centre[k] + half) - value[k]
        change = change + (tl.where(shown, moved * 0.125, 0.0),)
    return change


@triton.jit
def note_misses(missed, beyond):
    """How often each coefficient was wrong: eight counts of four bits, the octet's, in [B, 8] int32."""
    for k in tl.static_range(8):
        more = (beyond[k] != 0) & (((missed >> (4 * k)) & 15) < ENOUGH)
        missed += tl.where(more, 1 << (4 * k), 0)
    return missed


@triton.jit
def scaled(x, factor):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (x[k].to(tl.float32) * factor,)
    return octet


@triton.jit
def plus(x, change):
    """The image with its feedback, kept where rounding still gives 0..255."""
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(tl.maximum(x[k] + change[k], -0.49), 255.49),)
    return octet


@triton.jit
def eight_bits(x):
    octet = ()
    for k in tl.static_range(8):
        octet = octet + (tl.minimum(tl.maximum(tl.floor(x[k] + 0.5), 0.0), 255.0).to(tl.int32),)
    return octet


@triton.jit
def forward(image, row, height, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Octets of R, G and B, float32 → of the DCT of Y - 128, Cb and Cr; gray: Y thrice."""
    y, cb, cr = to_ycc(image[0], image[1], image[2], C)
    y = scaled(dct(luma_rows(y, row, height, V)), 0.125)
    if C == 1:
        return y, y, y
    else:
        scale: tl.constexpr = 0.125 / (V * H)
        cb, cr = dct(sum_under_samples(cb, V, G, H)), dct(sum_under_samples(cr, V, G, H))
        return y, scaled(cb, scale), scaled(cr, scale)


@configured(Configuration(4, 1, ALL_REGISTERS))
@triton.jit(do_not_specialize=SIZES)
def exact_kernel(
    x,
    image8,
    unsettled,
    wrongs,
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
):
    """Writes the best candidate of each MCU into image8; unsettled[0] counts those with wrong coefficients, which are
    unsettled[1:], and wrongs[1:] says how many each has."""
    G: tl.constexpr = BLOCKS // (V * H)
    here, there = spot(mcus, rows, columns, V, G, H), spot(mcus, rows, columns, 1, G, 1)
    image, row, column, valid = here
    accumulated = load_rgb(x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V)
    values = forward(accumulated, row, height, C, V, G, H)
    none, no_chroma = tl.zeros([V * G * H, 8], tl.int32), tl.zeros([G, 8], tl.int32)
    missed, best = (none, no_chroma, no_chroma), (none, none, none, none, none, none, none, none)
    mcu = tl.program_id(0) * G + tl.arange(0, G)
    below = (mcu // columns % rows + 1) * 8 * V > height
    patience = tl.where(below | ((mcu % columns + 1) * 8 * H > width), PASSES, PATIENCE)
    fewest, stale, turn = tl.full([G], 1e6, tl.float32), tl.zeros([G], tl.int32), 0
    going_on = mcu < mcus
    while (turn < PASSES) & (tl.max(going_on.to(tl.int32)) > 0):
        accumulated = feed_back(
            accumulated, values, missed, luma_plane, blue_plane, red_plane, tables, here, there,
            rows, columns, height, width, FIRST, AGAIN, C, V, G, H,
        )  # fmt: skip
        red, green, blue = eight_bits(accumulated[0]), eight_bits(accumulated[1]), eight_bits(accumulated[2])
        values, missed, wrong = examine(
            red, green, blue, missed, luma_plane, blue_plane, red_plane, tables, here, there,
            rows, columns, height, width, C, V, G, H,
        )  # fmt: skip
        better = going_on & (wrong < fewest)
        best = choose(to_blocks(better, V, G, H), pack_channels(red, green, blue, C), best)
        fewest = tl.where(better, wrong, fewest)
        stale = tl.where(better, 0, stale + 1)
        going_on = going_on & (fewest > 0) & (stale < patience)
        turn += 1
    store_packed(image8, best, here, height, width, C)
    left = (mcu < mcus) & (fewest > 0)
    place = 1 + tl.atomic_add(unsettled + tl.zeros_like(mcu), 1, mask=left)
    tl.store(unsettled + place, mcu, mask=left)
    tl.store(wrongs + place, fewest.to(tl.int32), mask=left)


@triton.jit
def feed_back(
    accumulated, values, missed, luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width,
    FIRST: tl.constexpr, AGAIN: tl.constexpr, C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The accumulated image plus the least change that brings the coefficients `values` into their intervals."""
    ends = load_intervals(luma_plane, tables, here, rows, columns, height, width, 0, C, V, H)
    y = idct(drawn_in(values[0], ends, missed[0], FIRST, AGAIN))
    cb, cr = y, y
    if C == 3:
        ends = load_intervals(blue_plane, tables, there, rows, columns, height, width, 1, C, 1, 1)
        cb = idct(drawn_in(values[1], ends, missed[1], FIRST, AGAIN))
        ends = load_intervals(red_plane, tables, there, rows, columns, height, width, 2, C, 1, 1)
        cr = idct(drawn_in(values[2], ends, missed[2], FIRST, AGAIN))
    y, cb, cr = to_places(y, cb, cr, here, height, width, True, C, V, G, H)
    if C == 3:
        red, green, blue = to_rgb(y, cb, cr)
        return plus(accumulated[0], red), plus(accumulated[1], green), plus(accumulated[2], blue)
    else:
        gray = plus(accumulated[0], y)
        return gray, gray, gray


@triton.jit
def examine(
    red, green, blue, missed, luma_plane, blue_plane, red_plane, tables, here, there, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """A candidate's coefficients, how often each was wrong by now, and [G] how many of an MCU's are."""
    image, row, column, valid = here
    y, cb, cr = integer_forward(red, green, blue, row, height, C, V, G, H)
    beyond = excess(y, load_intervals(luma_plane, tables, here, rows, columns, height, width, 0, C, V, H), 0.0)
    wrong = count_wrong(beyond, V, G, H)
    luma = note_misses(missed[0], beyond)
    if C == 1:
        y = scaled(y, 0.125)
        return (y, y, y), (luma, luma, luma), wrong
    else:
        beyond = excess(cb, load_intervals(blue_plane, tables, there, rows, columns, height, width, 1, C, 1, 1), 0.0)
        wrong += count_wrong(beyond, 1, G, 1)
        blue = note_misses(missed[1], beyond)
        beyond = excess(cr, load_intervals(red_plane, tables, there, rows, columns, height, width, 2, C, 1, 1), 0.0)
        wrong += count_wrong(beyond, 1, G, 1)
        red = note_misses(missed[2], beyond)
        return (scaled(y, 0.125), scaled(cb, 0.125), scaled(cr, 0.125)), (luma, blue, red), wrong


CONSTANTS = {"PASSES": PASSES, "PATIENCE": PATIENCE, "FIRST": SHRINK_FIRST, "AGAIN": SHRINK_AGAIN}
"""How long and how finely to search: the CPU's own."""


@torch.library.custom_op("jpeg_posterior::project_exact", mutates_args=())
def _project_exact(
    x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int
) -> tuple[Tensor, Tensor]:
    image8, mismatches = _empty_results(x, planes, tables, sampling, height, width)
    kind, size = Subsampling.from_label(sampling), (height, width)
    rows, columns = kind.mcu_grid(size)
    unsettled = x.new_zeros(1 + len(x) * rows * columns, dtype=torch.int32)
    wrongs = torch.empty_like(unsettled)
    file = (*three(aligned(planes)), tables)
    launch(exact_kernel, kind, size, len(x), x, image8, unsettled, wrongs, *file, *x.stride(), **CONSTANTS)
    descend(image8, mismatches.zero_(), unsettled, wrongs, file, kind, size)
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
    check_precision(x)
    planes = [plane.contiguous() for plane in c.planes]
    image, mismatches = _project_exact(x, planes, c.tables.contiguous(), c.sampling.label, *c.size)
    return image, mismatches.long()
