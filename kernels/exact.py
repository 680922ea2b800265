"""project_exact in PyTorch: from a restored image to an 8-bit one that libjpeg-turbo compresses to the very same file.

Equation 11 gives a float image inside the intervals; rounding it to 8 bits pushes some coefficients out. The search
feeds each rounding error back (as sigma-delta modulators do), so that corrections too small to flip a pixel add up until
they do. It works on MCUs, and only those still wrong take another pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.coefficients import Coefficients
from kernels.colour import differences_to_rgb
from kernels.libjpeg import integer_forward
from kernels.mcu import Mcu, Region, blocks_of, from_tiles, mcu_matrices, regions, to_tiles
from kernels.torch_ops import forward_dct, steps_of, tile_planes, times

PASSES = 200
"""Most passes over an MCU; the common ones need a handful."""

SHRINK_FIRST = 0.3
SHRINK_AGAIN = 0.04
"""How far the intervals' ends are drawn in: at first by 0.3 of a step or 0.3 gray levels, whichever is less, and by 0.04
of a step more for each pass that finds the coefficient wrong."""


@dataclass
class Search:
    """MCUs of one kind that are not done. All lists have an entry a component.

    accumulated: [K, C, P] the image with all feedback so far. best: [K, C, P] uint8 and wrong: [K], the 8-bit candidate
    with the fewest wrong coefficients and their number. centres, steps: [K, blocks, 64], intervals' middles and widths.
    margins: how far each interval is drawn in, in steps. lowest, highest: the integers of `integer_forward` that
    quantise to the wanted coefficient. where: [K] positions in the image's list of MCUs."""

    accumulated: Tensor
    best: Tensor
    wrong: Tensor
    centres: list[Tensor]
    steps: list[Tensor]
    margins: list[Tensor]
    lowest: list[Tensor]
    highest: list[Tensor]
    where: Tensor

    def take(self, index: Tensor) -> Search:
        return Search(
            *(
                [entry[index] for entry in value] if isinstance(value, list) else value[index]
                for value in vars(self).values()
            )
        )


def accepted_range(centre: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest integer (8 times a coefficient) that libjpeg quantises to centre / steps: 4 steps each way, the
    end nearer to zero included, the farther not."""
    eight = 8 * centre
    return eight - 4 * steps + (centre <= 0).to(steps.dtype), eight + 4 * steps - (centre >= 0).to(steps.dtype)


def to_pixels(changes: list[Tensor], mcu: Mcu) -> Tensor:
    """Changes of coefficients, [..., blocks, 64] a component → the least change of RGB pixels [..., C, P] with that effect."""
    matrices = mcu_matrices(mcu, changes[0].device)
    backs = (matrices.luma_back, matrices.chroma_back, matrices.chroma_back)
    planes = [times(change.flatten(-2), back) for change, back in zip(changes, backs, strict=False)]
    return planes[0].unsqueeze(-2) if len(planes) == 1 else torch.stack(differences_to_rgb(*planes), dim=-2)


def eight_bits(accumulated: Tensor) -> Tensor:
    return accumulated.round().clamp_(0, 255)


def begin(x: Tensor, c: Coefficients, region: Region) -> Search:
    """Equation 11 with shrunken intervals for all MCUs of a region, flattened to [N * rows * columns]."""
    tiles = to_tiles(x, region).float()
    centres, steps, margins, lowest, highest, changes = [], [], [], [], [], []
    for component, dct in enumerate(forward_dct(tile_planes(tiles), region)):
        step = steps_of(c.tables, component, torch.float32)
        centre = blocks_of(c.planes[component], component, region).float() * step
        margin = SHRINK_FIRST / step.clamp(min=1)
        half = (0.5 - margin) * step
        changes.append(torch.minimum(torch.maximum(dct, centre - half), centre + half) - dct)
        ends = accepted_range(centre, step)
        if component == 0 and not region.mcu.whole:
            padding = ~torch.tensor(region.mcu.true_luma_blocks, device=x.device)[:, None]
            ends = (ends[0].masked_fill(padding, -torch.inf), ends[1].masked_fill(padding, torch.inf))
        for entries, value in (
            (centres, centre),
            (steps, step.expand_as(centre)),
            (margins, margin.expand_as(centre)),
            (lowest, ends[0]),
            (highest, ends[1]),
        ):
            entries.append(value.flatten(0, 2))
    accumulated = (tiles + to_pixels(changes, region.mcu)).clamp_(-0.49, 255.49).flatten(0, 2)
    count = len(accumulated)
    best = eight_bits(accumulated).to(torch.uint8)
    wrong = torch.full((count,), 1 << 30, device=x.device)
    where = torch.arange(count, device=x.device)
    return Search(accumulated, best, wrong, centres, steps, margins, lowest, highest, where)


def examine(search: Search, candidate: Tensor, mcu: Mcu) -> tuple[list[Tensor], list[Tensor]]:
    """The candidate's coefficients by libjpeg's own arithmetic, times 8, and which are wrong. Keeps the better image."""
    found = [dct.float() for dct in integer_forward(candidate, mcu)]
    errors = [(dct < low) | (dct > high) for dct, low, high in zip(found, search.lowest, search.highest, strict=True)]
    wrong = torch.stack([error.flatten(1).sum(1) for error in errors]).sum(0)
    better = wrong < search.wrong
    search.best = torch.where(better[:, None, None], candidate.to(torch.uint8), search.best)
    search.wrong = torch.where(better, wrong, search.wrong)
    return found, errors


def feed_back(search: Search, found: list[Tensor], errors: list[Tensor], mcu: Mcu) -> None:
    """Adds what would bring the found coefficients into their intervals, drawn in further where they were wrong."""
    changes = []
    for k, (dct, error) in enumerate(zip(found, errors, strict=True)):
        search.margins[k] = torch.where(error, (search.margins[k] + SHRINK_AGAIN).clamp(max=0.5), search.margins[k])
        half = (0.5 - search.margins[k]) * search.steps[k]
        value = dct / 8
        changes.append(torch.minimum(torch.maximum(value, search.centres[k] - half), search.centres[k] + half) - value)
    search.accumulated = (search.accumulated + to_pixels(changes, mcu)).clamp_(-0.49, 255.49)


def settle(search: Search, mcu: Mcu, best: Tensor, wrong: Tensor) -> None:
    """Runs the search to its end, writing images into `best` and counts into `wrong` at `search.where`."""
    for _ in range(PASSES):
        if not len(search.where):
            return
        found, errors = examine(search, eight_bits(search.accumulated), mcu)
        best[search.where], wrong[search.where] = search.best, search.wrong
        search, found, errors = drop_certified(search, found, errors)
        feed_back(search, found, errors, mcu)


def drop_certified(
    search: Search, found: list[Tensor], errors: list[Tensor]
) -> tuple[Search, list[Tensor], list[Tensor]]:
    left = search.wrong.nonzero().flatten()
    if len(left) == len(search.where):
        return search, found, errors
    return search.take(left), [f[left] for f in found], [e[left] for e in errors]


def search_kind(x: Tensor, c: Coefficients, kind: list[Region]) -> tuple[Tensor, Tensor]:
    """All MCUs of one kind, region after region: their 8-bit images [K, C, P] and wrong coefficients [K]. One pass over
    each region while it is in cache; what is left of all of them goes on together."""
    bests, wrongs, rest, offset = [], [], [], 0
    for region in kind:
        search = begin(x, c, region)
        found, errors = examine(search, eight_bits(search.accumulated), region.mcu)
        bests.append(search.best)
        wrongs.append(search.wrong)
        search, found, errors = drop_certified(search, found, errors)
        feed_back(search, found, errors, region.mcu)
        search.where = search.where + offset
        offset += len(wrongs[-1])
        rest.append(search)
    best, wrong = torch.cat(bests), torch.cat(wrongs)
    settle(merge(rest), kind[0].mcu, best, wrong)
    return best, wrong


def merge(searches: list[Search]) -> Search:
    columns = zip(*(vars(search).values() for search in searches), strict=True)
    return Search(
        *(
            [torch.cat(part) for part in zip(*entry, strict=True)] if isinstance(entry[0], list) else torch.cat(entry)
            for entry in columns
        )
    )


@torch.no_grad()
def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """The 8-bit image near x ([N, C, H, W], 0..255) that libjpeg-turbo's default encoder, given c's tables and sampling,
    compresses to exactly c.

    Returns uint8 [N, C, H, W], and [N] int64: how many true coefficients could not be satisfied (0: certified)."""
    grid = regions(c.sampling, c.size, len(c))
    kinds: dict[Mcu, list[Region]] = {}
    for region in (region for row in grid for region in row):
        kinds.setdefault(region.mcu, []).append(region)
    mismatches = torch.zeros(len(c), dtype=torch.int64, device=x.device)
    parts: dict[Region, Tensor] = {}
    for kind in kinds.values():
        best, wrong = search_kind(x, c, kind)
        for region in kind:
            shape = (len(c), region.bottom - region.top, region.right - region.left)
            count = shape[0] * shape[1] * shape[2]
            mismatches += wrong[:count].reshape(len(c), -1).sum(1)
            parts[region] = from_tiles(best[:count].unflatten(0, shape), region)
            best, wrong = best[count:], wrong[count:]
    return torch.cat([torch.cat([parts[region] for region in row], dim=3) for row in grid], dim=2), mismatches
