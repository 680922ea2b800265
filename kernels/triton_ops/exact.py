"""project_exact as kernels/exact.py explains it, the same pixels as the CPU's numba_ops/exact.py.

Three launches without the host between them: `exact_kernel` makes the first attempt on every whole MCU and lists those
that are not right and may become so; `mend_kernel` makes the further attempts on these; `edge_kernel` makes all of them
on the MCUs over the edge. All decisions are each MCU's own, in integers: what shares a program with it, and where the
list has it, changes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import exact as settings
from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.tables import constant
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
from kernels.triton_ops.planes import CHROMA_FIRST, attempt, sum_pixels
from kernels.triton_ops.samples import any_of, into_intervals

ALTERNATIONS = tl.constexpr(settings.ALTERNATIONS)
PATIENCE = tl.constexpr(settings.PATIENCE)
APART = tl.constexpr(settings.APART)
SOON = tl.constexpr(settings.SOON)
FAR = tl.constexpr(settings.FAR)
LATE = tl.constexpr(settings.LATE)
PIXEL_TURN = tl.constexpr(settings.PIXEL_TURN)
UNKNOWN = tl.constexpr(1 << 20)
"""Wrong coefficients before the first attempt."""


@triton.jit
def examine(
    y, chroma, wanted, wrong, tight, size, luma_ends, chroma_ends, bases,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """MCUs' pixels, near the channels wanted; how many coefficients are wrong: what the attempt has counted, unless
    there are no such pixels; and whether the gamut may be to blame, or an edge."""
    if C == 1:
        return y + 128, y, y, wrong, tight
    else:
        cb, cr = unpair(chroma)
        red, green, blue, missed = to_pixels(y, cb, cr, wanted, inside_image(size, V, H))
        if any_of(missed):
            y, cb, cr = to_triples(red, green, blue)
            luma, others = recount(y, cb, cr, size, luma_ends, chroma_ends, bases, V, H)
            other = sum_pixels(missed) > 0
            wrong = tl.where(other, per_mcu(luma, V * H) + per_mcu(others, 2), wrong)
            tight |= other
        return red, green, blue, wrong, tight


@triton.jit
def alternate(
    red, green, blue, size, luma_ends, chroma_ends, draw, bases, going,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Brings wanted MCUs `going` [G] towards intervals and gamut, both of which are convex: von Neumann's alternating
    projections. Returns whether the two sets came near each other, too: [G]."""
    slots, inside = luma_slots(size, V, H), inside_image(size, V, H)
    both = both_twice(size)
    enough: tl.constexpr = APART * C * 64 * V * H
    beyond, done = tl.zeros([red.shape[0]], tl.int32), 0
    while any_of(going) & (done < ALTERNATIONS):
        y, chroma = to_ycc(red, green, blue, C)
        wanted = to_blocks(tl.where(inside, y, 0), V, H)
        moved = into_intervals(wanted, luma_ends[0], luma_ends[1], bases, slots, draw)
        y = tl.where(inside, from_blocks(moved, V, H), y)
        if C == 1:
            red = limited(y + 2048, 4080)
            beyond = sum_pixels(tl.abs(y + 2048 - red))
        else:
            wanted = average(chroma, both, V, H)
            their_slots = chroma_slots(both, V, H)
            moved = into_intervals(wanted, chroma_ends[0], chroma_ends[1], bases, their_slots, draw)
            cb, cr = unpair(move_chroma(chroma, moved - wanted, both, V, H))
            r, g, b = convert_back(y + 2048, cb, cr)
            red, green, blue = limited(r, 4080), limited(g, 4080), limited(b, 4080)
            beyond = sum_pixels(tl.abs(r - red) + tl.abs(g - green) + tl.abs(b - blue))
        done += 1
        going &= (done != SOON) | (beyond <= FAR * enough)
    return red, green, blue, going & (beyond <= enough)


@triton.jit
def load_file(
    luma_plane, cb_plane, cr_plane, tables, mcus, rows, columns, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr
):
    """Low and high of MCUs' luma blocks [G V H, 8, 8] and chroma blocks [2 G, 8, 8]; of gray files luma's twice."""
    luma = luma_intervals(luma_plane, tables, mcus, rows, columns, C, V, H)
    if C == 1:
        return luma, luma
    else:
        return luma, chroma_intervals(cb_plane, cr_plane, tables, mcus, rows, columns, C)


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def exact_kernel(
    x, image8, mismatches, listed, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The first attempt on whole MCUs. listed[0] counts those that are to have another; of each follow three numbers:
    which it is, how many of its coefficients are wrong, and the turns taken."""
    G: tl.constexpr = BLOCKS // (V * H)
    entry = tl.program_id(0) * G + tl.arange(0, G)
    there = entry < mcus
    mcu = whole_mcus(tl.minimum(entry, mcus - 1), rows, columns, height, width, V, H)
    wanted = load_pixels(x, mcu, None, rows, columns, stride_n, stride_c, stride_h, stride_w, C, V, H)
    luma, others = load_file(luma_plane, cb_plane, cr_plane, tables, mcu, rows, columns, C, V, H)
    draw = tl.load(draws)
    y, chroma, wrong, turns, tight = attempt(wanted, None, luma, others, draw, CHROMA_FIRST, bases, ranges, C, V, H)
    red, green, blue, wrong, tight = examine(y, chroma, wanted, wrong, tight, None, luma, others, bases, C, V, H)
    store_pixels(image8, red, green, blue, there, mcu, None, rows, columns, height, width, C, V, H)
    again = there & (wrong > 0) & tight & (tl.zeros_like(turns) + attempts > 1)
    tl.atomic_add(mismatches + mcu // (rows * columns), wrong, mask=there & (wrong > 0) & (again == 0))
    place = 1 + 3 * tl.atomic_add(listed + tl.zeros_like(mcu), 1, mask=again)
    tl.store(listed + place, mcu, mask=again)
    tl.store(listed + place + 1, wrong, mask=again)
    tl.store(listed + place + 2, turns, mask=again)


@triton.jit
def make_attempts(
    x, image8, mismatches, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, first, attempts,
    stride_n, stride_c, stride_h, stride_w, mcu, there, size, fewest, turns, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Attempts from the `first` on at MCUs that are `there` [G], of which so far image8 has the best pixels, `fewest`
    [G] coefficients are wrong and `turns` [G] were taken."""
    red, green, blue = load_pixels(x, mcu, size, rows, columns, stride_n, stride_c, stride_h, stride_w, C, V, H)
    blocks: tl.constexpr = V * H + C - 1
    n, going = first, there
    while any_of(going) & (n < attempts):
        draw, zero = tl.load(draws + n), nothing(turns)
        mcu, size = mcu + zero, shifted(size, zero)
        luma, others = load_file(luma_plane, cb_plane, cr_plane, tables, mcu, rows, columns, C, V, H)
        if n > 0:
            red, green, blue, going = alternate(red, green, blue, size, luma, others, draw, bases, going, C, V, H)
        order = CHROMA_FIRST
        if C == 3:
            order = n % 3
            if size is None:
                order = tl.where((n > LATE) & (n <= LATE + 2), order, CHROMA_FIRST)
        wanted = red, green, blue
        y, chroma, wrong, took, tight = attempt(wanted, size, luma, others, draw, order, bases, ranges, C, V, H)
        turns += took
        r, g, b, wrong, tight = examine(y, chroma, wanted, wrong, tight, size, luma, others, bases, C, V, H)
        if C == 3 and size is None:
            joint = going & (wrong > 0) & tight
            if (n >= LATE) & (order == CHROMA_FIRST) & any_of(joint):
                r, g, b, left, took = search_pixels(r, g, b, luma, others, bases, joint, V, H)
                wrong = tl.where(joint, left, wrong)
                turns += PIXEL_TURN * tl.where(joint, took, 0)
        better = going & (wrong < fewest)
        store_pixels(image8, r, g, b, better, mcu, size, rows, columns, height + zero, width + zero, C, V, H)
        fewest = tl.where(better, wrong, fewest)
        going &= (fewest > 0) & tight & (turns <= PATIENCE * blocks)
        n += 1
    tl.atomic_add(mismatches + mcu // (rows * columns), fewest, mask=there & (fewest > 0))


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def mend_kernel(
    x, image8, mismatches, listed, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The further attempts on the MCUs listed."""
    G: tl.constexpr = BLOCKS // (V * H)
    count = tl.load(listed)
    if tl.program_id(0) * G < count:
        entry = tl.program_id(0) * G + tl.arange(0, G)
        there = entry < count
        entry = listed + 1 + 3 * tl.minimum(entry, count - 1)
        mcu, fewest, turns = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        make_attempts(
            x, image8, mismatches, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, 1, attempts,
            stride_n, stride_c, stride_h, stride_w, mcu, there, None, fewest, turns, rows, columns, height, width,
            C, V, H,
        )  # fmt: skip


@configured(Configuration(4, 8, ALL_REGISTERS, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def edge_kernel(
    x, image8, mismatches, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All attempts on the MCUs over the edge, `mcus` of them."""
    G: tl.constexpr = BLOCKS // (V * H)
    entry = tl.program_id(0) * G + tl.arange(0, G)
    there = entry < mcus
    mcu = edge_mcus(tl.minimum(entry, mcus - 1), rows, columns, height, width, V, H)
    size = sizes(mcu, there, rows, columns, height, width, V, H)
    turns = tl.zeros([G], tl.int32)
    make_attempts(
        x, image8, mismatches, luma_plane, cb_plane, cr_plane, tables, bases, ranges, draws, 0, attempts,
        stride_n, stride_c, stride_h, stride_w, mcu, there, size, turns + UNKNOWN, turns, rows, columns, height, width,
        C, V, H,
    )  # fmt: skip


@constant
def _draws(device: torch.device) -> Tensor:
    return torch.tensor(settings.DRAWS, dtype=torch.int32, device=device)


@torch.library.custom_op("jpeg_posterior::project_exact", mutates_args=())
def _project_exact(
    x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int
) -> tuple[Tensor, Tensor]:
    image8, mismatches = _empty_results(x, planes, tables, sampling, height, width)
    kind, size = Subsampling.from_label(sampling), (height, width)
    (rows, columns), (tall, wide) = kind.mcu_grid(size), kind.mcu
    whole = height // tall * (width // wide)
    listed = x.new_empty(1 + 3 * len(x) * whole, dtype=torch.int32)
    listed[:1].zero_()
    mismatches.zero_()
    draws = _draws(x.device)
    constants = settings.edge_bases(x.device), settings.gamut_ranges(x.device), draws, len(draws)
    file = *three(aligned(planes)), tables, *constants, *x.stride()
    edges = rows * columns - whole
    if whole:
        for kernel in (exact_kernel, mend_kernel):
            launch(kernel, kind, size, len(x), x, image8, mismatches, listed, *file, mcus=whole)
    if edges:
        launch(edge_kernel, kind, size, len(x), x, image8, mismatches, *file, mcus=edges)
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
