"""project_exact as kernels/exact.py explains it, the same pixels as the CPU's numba_ops/exact.py.

Two launches without the host between them: `exact_kernel` makes the first attempt on every MCU and lists those that are
not right and may become so; `mend_kernel` makes the further attempts on these. All decisions are each MCU's own, in
integers: what shares a program with it, and where the list has it, changes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import exact as settings
from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.tables import constant
from kernels.triton_ops.gamut import bound_luma, convert, convert_back, limited, recount, to_pixels, to_triples
from kernels.triton_ops.launch import SIZES, Configuration, aligned, check_precision, configured, launch, three
from kernels.triton_ops.mcus import (
    average,
    chroma_intervals,
    chroma_slots,
    from_blocks,
    inside_image,
    load_pixels,
    luma_intervals,
    luma_slots,
    move_chroma,
    pair,
    per_mcu,
    per_pixel,
    repeat,
    sizes,
    spread_chroma,
    store_pixels,
    to_blocks,
    unpair,
)
from kernels.triton_ops.pixels import search_pixels
from kernels.triton_ops.samples import any_of, inside_slots, into_intervals, solve, total

ALTERNATIONS = tl.constexpr(settings.ALTERNATIONS)
PATIENCE = tl.constexpr(settings.PATIENCE)
APART = tl.constexpr(settings.APART)
LATE = tl.constexpr(settings.LATE)
PIXEL_TURN = tl.constexpr(settings.PIXEL_TURN)


@triton.jit
def sum_pixels(x):
    """[G, 8, 8, M] → [G]."""
    return tl.sum(tl.reshape(x.to(tl.int32), [x.shape[0], 64 * x.shape[3]]), axis=1)


@triton.jit
def some(condition, TIMES: tl.constexpr):
    """[G TIMES] → [G], whether it holds for any block of an MCU."""
    return per_mcu(condition.to(tl.int32), TIMES) > 0


@triton.jit
def to_ycc(red, green, blue, C: tl.constexpr):
    """Sixteenths → Y [G, 8, 8, M] less 128, and Cb and Cr [2 G, 8, 8, M]; of gray Y twice."""
    if C == 1:
        return red - 2048, red
    else:
        y, cb, cr = convert(red, green, blue)
        return y, pair(cb, cr)


@triton.jit
def attempt(
    y, chroma, size, sizes_of_pairs, luma_ends, chroma_ends, draw, bases, ranges,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One attempt on MCUs: wanted pixels in sixteenths → their Y, Cb and Cr in integers. Returns with them how many
    coefficients [G] are wrong, pixels outside the gamut counted too; the turns [G] taken; and [G] whether the gamut may
    be to blame for what is wrong, or an edge."""
    slots, inside = luma_slots(size, V, H), inside_image(size, V, H)
    within = inside_slots(slots)
    least, most = tl.where(within, -128, 0), tl.where(within, 127, 0)
    wrong, turns = tl.zeros_like(size[0]), tl.zeros_like(size[0])
    tight, narrow = wrong > 0, wrong > 0
    if C == 3:
        their_slots = chroma_slots(sizes_of_pairs, V, H)
        theirs = inside_slots(their_slots)
        samples, missed, took = solve(
            average(chroma, sizes_of_pairs, V, H), tl.where(theirs, -128, 0), tl.where(theirs, 127, 0),
            chroma_ends[0], chroma_ends[1], bases, their_slots, draw,
        )  # fmt: skip
        wrong, turns = per_mcu(missed, 2), per_mcu(took, 2)
        whole = their_slots[0] * their_slots[1] == 64
        narrow, tight = some((missed > 0) & whole, 2), some((missed > 0) & (whole == 0), 2)
        chroma = spread_chroma(samples, chroma, sizes_of_pairs, V, H)
        cb, cr = unpair(chroma)
        lowest, highest, none = bound_luma(cb, cr, inside, ranges)
        least, most = to_blocks(lowest, V, H), to_blocks(highest, V, H)
        outside = sum_pixels(none)
        wrong, tight = wrong + outside, tight | (outside > 0)
    wanted = to_blocks(tl.where(inside, y, 0), V, H)
    samples, missed, took = solve(wanted, least, most, luma_ends[0], luma_ends[1], bases, slots, draw)
    held = total(within & ((samples == least) | (samples == most))) > 0
    tight |= some((missed > 0) & (held | (slots[0] * slots[1] < 64)), V * H)
    wrong, turns = wrong + per_mcu(missed, V * H), turns + per_mcu(took, V * H)
    return from_blocks(samples, V, H), chroma, wrong, turns, tight & (narrow == 0)


@triton.jit
def examine(
    y, chroma, wrong, size, sizes_of_pairs, luma_ends, chroma_ends, bases,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """MCUs' pixels, and how many coefficients are wrong: what the attempt has counted, unless there are no such
    pixels."""
    if C == 1:
        return y + 128, y, y, wrong
    else:
        cb, cr = unpair(chroma)
        red, green, blue, missed = to_pixels(y, cb, cr, inside_image(size, V, H))
        if any_of(missed):
            y, cb, cr = to_triples(red, green, blue)
            luma, others = recount(y, cb, cr, size, sizes_of_pairs, luma_ends, chroma_ends, bases, V, H)
            wrong = tl.where(sum_pixels(missed) > 0, per_mcu(luma, V * H) + per_mcu(others, 2), wrong)
        return red, green, blue, wrong


@triton.jit
def alternate(
    y, chroma, size, sizes_of_pairs, luma_ends, chroma_ends, draw, bases,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Brings wanted MCUs towards intervals and gamut, both of which are convex: von Neumann's alternating projections.
    Returns how far apart the two sets were in the end, too: [G], sixteenths of a gray level, all channels together."""
    slots, inside, beyond = luma_slots(size, V, H), inside_image(size, V, H), tl.zeros_like(size[0])
    for _ in range(ALTERNATIONS):
        wanted = to_blocks(tl.where(inside, y, 0), V, H)
        moved = into_intervals(wanted, luma_ends[0], luma_ends[1], bases, slots, draw)
        y = tl.where(inside, from_blocks(moved, V, H), y)
        if C == 1:
            red = limited(y + 2048, 4080) - 2048
            beyond = sum_pixels(tl.abs(y - red))
            y = red
        else:
            wanted = average(chroma, sizes_of_pairs, V, H)
            their_slots = chroma_slots(sizes_of_pairs, V, H)
            moved = into_intervals(wanted, chroma_ends[0], chroma_ends[1], bases, their_slots, draw)
            cb, cr = unpair(move_chroma(chroma, moved - wanted, sizes_of_pairs, V, H))
            r, g, b = convert_back(y + 2048, cb, cr)
            red, green, blue = limited(r, 4080), limited(g, 4080), limited(b, 4080)
            beyond = sum_pixels(tl.abs(r - red) + tl.abs(g - green) + tl.abs(b - blue))
            y, chroma = to_ycc(red, green, blue, C)
    return y, chroma, beyond


@triton.jit
def load_file(
    luma_plane, blue_plane, red_plane, tables, mcus, rows, columns, C: tl.constexpr, V: tl.constexpr, H: tl.constexpr
):
    """Low and high of MCUs' luma blocks [G V H, 8, 8] and chroma blocks [2 G, 8, 8]; of gray files luma's twice."""
    luma = luma_intervals(luma_plane, tables, mcus, rows, columns, C, V, H)
    if C == 1:
        return luma, luma
    else:
        return luma, chroma_intervals(blue_plane, red_plane, tables, mcus, rows, columns, C)


@configured(Configuration(4, 4, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def exact_kernel(
    x, image8, mismatches, listed, luma_plane, blue_plane, red_plane, tables, bases, ranges, draws, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The first attempt. listed[0] counts the MCUs that are to have another; of each follow three numbers: which it is,
    how many of its coefficients are wrong, and the turns taken."""
    G: tl.constexpr = BLOCKS // (V * H)
    mcu = tl.program_id(0) * G + tl.arange(0, G)
    there = mcu < mcus
    mcu = tl.minimum(mcu, mcus - 1)
    size = sizes(mcu, there, rows, columns, height, width, V, H)
    pairs = repeat(size[0], 2), repeat(size[1], 2)
    channels = load_pixels(x, mcu, size, rows, columns, stride_n, stride_c, stride_h, stride_w, C, V, H)
    y, chroma = to_ycc(channels[0], channels[1], channels[2], C)
    luma, others = load_file(luma_plane, blue_plane, red_plane, tables, mcu, rows, columns, C, V, H)
    draw = tl.load(draws)
    y, chroma, wrong, turns, tight = attempt(y, chroma, size, pairs, luma, others, draw, bases, ranges, C, V, H)
    red, green, blue, wrong = examine(y, chroma, wrong, size, pairs, luma, others, bases, C, V, H)
    store_pixels(image8, red, green, blue, there, mcu, size, rows, columns, height, width, C, V, H)
    blocks: tl.constexpr = V * H + C - 1
    patience = tl.where(attempts > 1, PATIENCE * blocks, -1)
    again = there & (wrong > 0) & tight & (turns <= patience)
    tl.atomic_add(mismatches + mcu // (rows * columns), wrong, mask=there & (wrong > 0) & (again == 0))
    place = 1 + 3 * tl.atomic_add(listed + tl.zeros_like(mcu), 1, mask=again)
    tl.store(listed + place, mcu, mask=again)
    tl.store(listed + place + 1, wrong, mask=again)
    tl.store(listed + place + 2, turns, mask=again)


@configured(Configuration(4, 8, single=True), interpreted=16)
@triton.jit(do_not_specialize=[*SIZES, "attempts"])
def mend_kernel(
    x, image8, mismatches, listed, luma_plane, blue_plane, red_plane, tables, bases, ranges, draws, attempts,
    stride_n, stride_c, stride_h, stride_w, mcus, rows, columns, height, width,
    C: tl.constexpr, V: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The further attempts on the MCUs listed, whose best pixels so far are in image8."""
    G: tl.constexpr = BLOCKS // (V * H)
    count = tl.load(listed)
    if tl.program_id(0) * G < count:
        entry = tl.program_id(0) * G + tl.arange(0, G)
        going = entry < count
        entry = listed + 1 + 3 * tl.minimum(entry, count - 1)
        mcu, fewest, turns = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        there = going
        size = sizes(mcu, there, rows, columns, height, width, V, H)
        pairs = repeat(size[0], 2), repeat(size[1], 2)
        channels = load_pixels(x, mcu, size, rows, columns, stride_n, stride_c, stride_h, stride_w, C, V, H)
        y, chroma = to_ycc(channels[0], channels[1], channels[2], C)
        blocks: tl.constexpr = V * H + C - 1
        n = 1
        while any_of(going) & (n < attempts):
            draw = tl.load(draws + n)
            luma, others = load_file(luma_plane, blue_plane, red_plane, tables, mcu, rows, columns, C, V, H)
            y, chroma, apart = alternate(y, chroma, size, pairs, luma, others, draw, bases, C, V, H)
            going &= apart <= APART * C * 64 * V * H
            triples = attempt(y, chroma, size, pairs, luma, others, draw, bases, ranges, C, V, H)
            wrong, tight = triples[2], triples[4]
            turns += triples[3]
            red, green, blue, wrong = examine(triples[0], triples[1], wrong, size, pairs, luma, others, bases, C, V, H)
            if C == 3:
                joint = going & (wrong > 0) & tight & (size[0] == 8 * V) & (size[1] == 8 * H)
                if (n >= LATE) & any_of(joint):
                    r, g, b, left, took = search_pixels(red, green, blue, luma, others, bases, joint, V, H)
                    chosen = per_pixel(joint)
                    red, green = tl.where(chosen, r, red), tl.where(chosen, g, green)
                    blue, wrong = tl.where(chosen, b, blue), tl.where(joint, left, wrong)
                    turns += PIXEL_TURN * tl.where(joint, took, 0)
            better = going & (wrong < fewest)
            store_pixels(image8, red, green, blue, better, mcu, size, rows, columns, height, width, C, V, H)
            fewest = tl.where(better, wrong, fewest)
            going &= (fewest > 0) & tight & (turns <= PATIENCE * blocks)
            n += 1
        tl.atomic_add(mismatches + mcu // (rows * columns), fewest, mask=there & (fewest > 0))


@constant
def _draws(device: torch.device) -> Tensor:
    return torch.tensor(settings.DRAWS, dtype=torch.int32, device=device)


@torch.library.custom_op("jpeg_posterior::project_exact", mutates_args=())
def _project_exact(
    x: Tensor, planes: list[Tensor], tables: Tensor, sampling: str, height: int, width: int
) -> tuple[Tensor, Tensor]:
    image8, mismatches = _empty_results(x, planes, tables, sampling, height, width)
    kind, size = Subsampling.from_label(sampling), (height, width)
    rows, columns = kind.mcu_grid(size)
    listed = x.new_empty(1 + 3 * len(x) * rows * columns, dtype=torch.int32)
    listed[:1].zero_()
    found = image8, mismatches.zero_(), listed
    draws = _draws(x.device)
    constants = settings.edge_bases(x.device), settings.luma_ranges(x.device), draws, len(draws)
    for kernel in (exact_kernel, mend_kernel):
        launch(kernel, kind, size, len(x), x, *found, *three(aligned(planes)), tables, *constants, *x.stride())
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
