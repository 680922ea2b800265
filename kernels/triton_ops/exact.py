"""project_exact: the 8-bit image near x that libjpeg-turbo compresses to exactly c. The algorithm is in
kernels/exact.py; numba_ops/exact.py is the twin, with the same pixels.

Three launches without the host between them: `exact_kernel` makes the first attempt on every whole MCU and lists those
that are not right and may become so; `mend_kernel` makes the further attempts on these; `edge_kernel` makes all of them
on the MCUs over the edge. All decisions are each MCU's own, in integers: what shares a program with it, and where the
list has it, changes nothing.

Shapes as in mcus.py and samples.py: G MCUs of a program, C components, B blocks; V and H, the sampling factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import exact as constants
from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.exact import DEFAULT_SETTINGS, SearchSettings, edge_bases, gamut_ranges
from kernels.triton_ops.chroma import average, move_chroma
from kernels.triton_ops.gamut import convert_back, limited, recount, to_pixels, to_triples, to_ycc
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
from kernels.triton_ops.mcus import (
    both_twice,
    chroma_intervals,
    chroma_slots,
    edge_mcus,
    from_blocks,
    inside_image,
    load_pixels,
    luma_intervals,
    luma_slots,
    nothing,
    per_mcu,
    shifted,
    sizes,
    store_pixels,
    to_blocks,
    unpair,
    whole_mcus,
)
from kernels.triton_ops.pixels import search_pixels
from kernels.triton_ops.planes import BLUE_SECOND, CHROMA_FIRST, attempt, sum_pixels
from kernels.triton_ops.samples import any_of, into_intervals

WIDE_STEP = tl.constexpr(constants.WIDE_STEP)

UNKNOWN = tl.constexpr(1 << 20)
"""Wrong coefficients before the first attempt."""


@triton.jit
def examine(
    y, chroma, wanted, wrong, tight, size, luma_ends, chroma_ends, bases,
    RECOUNT: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """MCUs' pixels, near the channels wanted; how many coefficients are wrong; and whether the gamut, or an edge, may
    be the cause. Without RECOUNT the attempt's count holds where all triples are those of a pixel; at edges and where
    luma bounds chroma, averages may be missed as well."""
    if C == 1:
        return y + 128, y, y, wrong, tight
    else:
        cb, cr = unpair(chroma)
        red, green, blue, missed = to_pixels(y, cb, cr, wanted, inside_image(size, V, H))
        other = sum_pixels(missed) > 0
        if any_of(missed) | RECOUNT:
            y, cb, cr = to_triples(red, green, blue)
            luma, others = recount(y, cb, cr, size, luma_ends, chroma_ends, bases, V, H)
            counted = per_mcu(luma, V * H) + per_mcu(others, 2)
            tight |= other | (counted != wrong)
            wrong = counted
        return red, green, blue, wrong, tight


@triton.jit
def alternate(
    red, green, blue, size, luma_ends, chroma_ends, margin, bases, going, SETTINGS: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Brings wanted MCUs `going` [G] towards intervals and gamut, both of which are convex: von Neumann's alternating
    projections. Returns whether the two sets came near each other, too: [G]."""
    slots, inside = luma_slots(size, V, H), inside_image(size, V, H)
    both = both_twice(size)
    enough: tl.constexpr = SETTINGS.max_gamut_distance * C * 64 * V * H
    beyond, done = tl.zeros([red.shape[0]], tl.int32), 0
    while any_of(going) & (done < SETTINGS.alternations):
        y, chroma = to_ycc(red, green, blue, C)
        wanted = to_blocks(tl.where(inside, y, 0), V, H)
        moved = into_intervals(wanted, luma_ends[0], luma_ends[1], bases, slots, margin)
        y = tl.where(inside, from_blocks(moved, V, H), y)
        if C == 1:
            red = limited(y + 2048, 4080)
            beyond = sum_pixels(tl.abs(y + 2048 - red))
        else:
            wanted = average(chroma, both, V, H)
            their_slots = chroma_slots(both, V, H)
            moved = into_intervals(wanted, chroma_ends[0], chroma_ends[1], bases, their_slots, margin)
            cb, cr = unpair(move_chroma(chroma, moved - wanted, both, V, H))
            r, g, b = convert_back(y + 2048, cb, cr)
            red, green, blue = limited(r, 4080), limited(g, 4080), limited(b, 4080)
            beyond = sum_pixels(tl.abs(r - red) + tl.abs(g - green) + tl.abs(b - blue))
        done += 1
        going &= (done != SETTINGS.early_alternations) | (beyond <= SETTINGS.early_factor * enough)
    return red, green, blue, going & (beyond <= enough)


@triton.jit
def turn_limit(luma_ends, chroma_ends, SETTINGS: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """The turns after which MCUs are given no further attempt: [G]."""
    widths = per_mcu(total_width(luma_ends), V * H)
    if C == 3:
        widths += per_mcu(total_width(chroma_ends), 2)
    return SETTINGS.turns_per_step * widths // (8 * 64)


@triton.jit
def total_width(ends):
    """Intervals' low and high [B, 8, 8] → [B]."""
    widths = tl.minimum(ends[1] - ends[0] + 1, 8 * WIDE_STEP)
    return tl.sum(tl.reshape(widths, [widths.shape[0], 64]), axis=1)


@triton.jit
def load_file(file, mcus, grid, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr):
    """Low and high of MCUs' luma blocks [G V H, 8, 8] and chroma blocks [2 G, 8, 8]; of gray files luma's twice. file:
    the three planes and the tables."""
    luma_plane, cb_plane, cr_plane, tables = file
    luma = luma_intervals(luma_plane, tables, mcus, grid, C, V, H)
    if C == 1:
        return luma, luma
    else:
        return luma, chroma_intervals(cb_plane, cr_plane, tables, mcus, grid, C)


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def exact_kernel(
    x, image8, mismatches, listed, luma_plane, cb_plane, cr_plane, tables, bases, ranges, margins, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    SETTINGS: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The first attempt on whole MCUs. listed[0] counts those that are to have another; of each follow three numbers:
    which it is, how many of its coefficients are wrong, and the turns taken."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, shape = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    file = luma_plane, cb_plane, cr_plane, tables
    entry = tl.program_id(0) * G + tl.arange(0, G)
    there = entry < mcus
    mcu = whole_mcus(tl.minimum(entry, mcus - 1), grid, shape, V, H)
    wanted = load_pixels(x, mcu, (), grid, strides, C, V, H)
    luma, others = load_file(file, mcu, grid, C, V, H)
    y, chroma, wrong, turns, tight = attempt(
        wanted, (), luma, others, tl.load(margins), CHROMA_FIRST, bases, ranges, SETTINGS, C, V, H
    )
    red, green, blue, wrong, tight = examine(y, chroma, wanted, wrong, tight, (), luma, others, bases, False, C, V, H)
    store_pixels(image8, red, green, blue, there, mcu, (), grid, shape, C, V, H)
    limit = turn_limit(luma, others, SETTINGS, C, V, H)
    again = there & (wrong > 0) & tight & (turns <= limit) & (tl.zeros_like(turns) + attempts > 1)
    tl.atomic_add(mismatches + mcu // (rows * columns), wrong, mask=there & (wrong > 0) & (again == 0))
    place = 1 + 3 * tl.atomic_add(listed + tl.zeros_like(mcu), 1, mask=again)
    tl.store(listed + place, mcu, mask=again)
    tl.store(listed + place + 1, wrong, mask=again)
    tl.store(listed + place + 2, turns, mask=again)


@triton.jit
def make_attempts(
    x, image8, mismatches, file, bases, ranges, margins, first, attempts, strides, mcu, there, size, fewest, turns,
    grid, shape, SETTINGS: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Attempts from the `first` on at MCUs that are `there` [G], of which so far image8 has the best pixels, `fewest`
    [G] coefficients are wrong and `turns` [G] were taken."""
    red, green, blue = load_pixels(x, mcu, size, grid, strides, C, V, H)
    late: tl.constexpr = SETTINGS.first_pixel_attempt
    n, going = first, there
    while any_of(going) & (n < attempts):
        margin, zero = tl.load(margins + n), nothing(turns)
        mcu, size = mcu + zero, shifted(size, zero)
        luma, others = load_file(file, mcu, grid, C, V, H)
        limit = turn_limit(luma, others, SETTINGS, C, V, H)
        if n > 0:
            red, green, blue, going = alternate(
                red, green, blue, size, luma, others, margin, bases, going, SETTINGS, C, V, H
            )
        order = CHROMA_FIRST
        if C == 3:
            order = n % 3
            if len(size) == 0:
                order = tl.where((n >= late - 2) & (n < late), BLUE_SECOND + n - (late - 2), CHROMA_FIRST)
        wanted = red, green, blue
        y, chroma, wrong, took, tight = attempt(
            wanted, size, luma, others, margin, order, bases, ranges, SETTINGS, C, V, H
        )
        turns += took
        r, g, b, wrong, tight = examine(y, chroma, wanted, wrong, tight, size, luma, others, bases, True, C, V, H)
        if C == 3 and len(size) == 0:
            joint = going & (wrong > 0) & tight
            if (n >= late) & any_of(joint):
                r, g, b, left, took = search_pixels(r, g, b, luma, others, bases, joint, SETTINGS, V, H)
                wrong = tl.where(joint, left, wrong)
                turns += SETTINGS.turns_per_pixel_turn * tl.where(joint, took, 0)
        better = going & (wrong < fewest)
        store_pixels(image8, r, g, b, better, mcu, size, grid, shifted(shape, zero), C, V, H)
        fewest = tl.where(better, wrong, fewest)
        going &= (fewest > 0) & tight & (turns <= limit)
        n += 1
    tl.atomic_add(mismatches + mcu // (grid[1] * grid[2]), fewest, mask=there & (fewest > 0))


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def mend_kernel(
    x, image8, mismatches, listed, luma_plane, cb_plane, cr_plane, tables, bases, ranges, margins, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    SETTINGS: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The further attempts on the MCUs listed, shared out among the programs."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, shape = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    file = luma_plane, cb_plane, cr_plane, tables
    count = tl.load(listed)
    for start in range(tl.program_id(0) * G, count, tl.num_programs(0) * G):
        entry = start + tl.arange(0, G)
        there = entry < count
        entry = listed + 1 + 3 * tl.minimum(entry, count - 1)
        mcu, fewest, turns = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        make_attempts(
            x, image8, mismatches, file, bases, ranges, margins, 1, attempts, strides, mcu, there, (), fewest, turns,
            grid, shape, SETTINGS, C, V, H,
        )  # fmt: skip


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def edge_kernel(
    x, image8, mismatches, luma_plane, cb_plane, cr_plane, tables, bases, ranges, margins, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    SETTINGS: tl.constexpr, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All attempts on the MCUs over the edge, `mcus` of them."""
    G: tl.constexpr = BLOCKS // (V * H)
    strides, grid, shape = (stride_n, stride_c, stride_h, stride_w), (mcus, rows, columns), (height, width)
    file = luma_plane, cb_plane, cr_plane, tables
    entry = tl.program_id(0) * G + tl.arange(0, G)
    there = entry < mcus
    mcu = edge_mcus(tl.minimum(entry, mcus - 1), grid, shape, V, H)
    size = sizes(mcu, there, grid, shape, V, H)
    turns = tl.zeros([G], tl.int32)
    make_attempts(
        x, image8, mismatches, file, bases, ranges, margins, 0, attempts, strides, mcu, there, size, turns + UNKNOWN,
        turns, grid, shape, SETTINGS, C, V, H,
    )  # fmt: skip


MENDERS = 4096
"""Programs of `mend_kernel`, whose list the host does not read, at most: enough for any GPU. One for each MCU would
mostly be one that reads the list's length and ends, while its registers keep others from the multiprocessor."""


@cache
def _margins(margins: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(margins, dtype=torch.int32, device=device)


@torch.library.custom_op("jpeg_posterior::project_exact", mutates_args=())
def _project_exact(
    x: Tensor,
    planes: list[Tensor],
    tables: Tensor,
    sampling: str,
    height: int,
    width: int,
    margins: Sequence[int],
    limits: Sequence[int],
) -> tuple[Tensor, Tensor]:
    (x,) = aligned([x.contiguous()])  # Triton would compile other kernels for other layouts, and views
    image8, mismatches = _empty_results(x)
    kind, size = Subsampling.from_label(sampling), (height, width)
    (rows, columns), (tall, wide) = kind.mcu_grid(size), kind.mcu
    whole = height // tall * (width // wide)
    listed = x.new_empty(1 + 3 * len(x) * whole, dtype=torch.int32)
    listed[:1].zero_()
    mismatches.zero_()
    fixed = edge_bases(x.device), gamut_ranges(x.device), _margins(tuple(margins), x.device), len(margins)
    file = *three(aligned(planes)), tables, *fixed, *x.stride()
    edges, settings = rows * columns - whole, SearchSettings((), *limits)
    if whole:
        for kernel, programs in ((exact_kernel, None), (mend_kernel, MENDERS)):
            arguments = x, image8, mismatches, listed, *file
            launch(kernel, kind, size, len(x), *arguments, mcus=whole, programs=programs, SETTINGS=settings)
    if edges:
        launch(edge_kernel, kind, size, len(x), x, image8, mismatches, *file, mcus=edges, SETTINGS=settings)
    return image8, mismatches


@_project_exact.register_fake
def _empty_results(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(len(x), dtype=torch.int32)


@torch.no_grad()
def project_exact(x: Tensor, c: Coefficients, settings: SearchSettings = DEFAULT_SETTINGS) -> tuple[Tensor, Tensor]:
    """See kernels.project_exact. Kernels are compiled for all settings but the margins, which are data."""
    check_images(x, c.tables, c.sampling, c.size)
    check_precision(x)
    planes = [plane.contiguous() for plane in c.planes]
    margins, *limits = vars(settings).values()
    image, mismatches = _project_exact(x, planes, c.tables.contiguous(), c.sampling.label, *c.size, margins, limits)
    return image, mismatches.long()
