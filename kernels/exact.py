"""project_exact in PyTorch: from a restored image to an 8-bit one that libjpeg-turbo compresses to the very same file.

Equation 11 gives a float image inside the intervals; rounding it to 8 bits pushes some coefficients out. The search
feeds each rounding error back (as sigma-delta modulators do), so that corrections too small to flip a pixel add up
until they do. It works on MCUs, and only those still wrong take another pass. What is left in the end, a coefficient
here and there, is mended pixel by pixel (descent.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kernels.certificate import find, is_wrong
from kernels.coefficients import Coefficients, check_images
from kernels.colour import differences_to_rgb
from kernels.descent import descend
from kernels.mcu import Mcu, Region, blocks_of, from_tiles, mcu_matrices, regions, to_tiles
from kernels.torch_ops import forward_dct, tile_planes, times

PASSES, PATIENCE = 100, 8
"""Most passes over an MCU, and after how many without progress it is left to descent.py. Most MCUs need a handful;
those at an edge are few, with fewer pixels to turn to, and tried to the end."""

SHRINK_FIRST = 0.3
SHRINK_AGAIN = 0.04
"""How far the intervals' ends are drawn in: at first by 0.3 of a step or 0.3 gray levels, whichever is less, and by
0.04 of a step more for each pass that has found the coefficient wrong, up to half a step."""


@dataclass
class Search:
    """K MCUs of one kind that are not done yet; B blocks of all components each, luma's first.

    accumulated: [K, C, P] the image with all feedback so far. centre, step: [K, B, 64] the intervals' middles, widths.
    missed: [K, B, 64] how many passes have found each coefficient wrong. wrong: [K] the fewest wrong coefficients of a
    candidate so far. where: [K] places in the list of all MCUs of the kind. stale: [K] passes since the fewest."""

    accumulated: Tensor
    centre: Tensor
    step: Tensor
    missed: Tensor
    wrong: Tensor
    where: Tensor
    stale: Tensor

    def take(self, index: Tensor) -> Search:
        return Search(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def merge(searches: list[Search]) -> Search:
        return Search(*(torch.cat([getattr(search, f.name) for search in searches]) for f in fields(Search)))


def drawn_in(value: Tensor, centre: Tensor, step: Tensor, missed: Tensor | int) -> Tensor:
    """What brings a coefficient into its interval, the ends drawn in."""
    half = (0.5 - SHRINK_FIRST / step.clamp(min=1) - SHRINK_AGAIN * missed).clamp_(min=0).mul_(step)
    return torch.minimum(torch.maximum(value, centre - half), centre + half).sub_(value)


def to_pixels(change: Tensor, mcu: Mcu, components: int) -> Tensor:
    """A change of coefficients [..., B, 64] → the least change of RGB pixels [..., C, P] that has it."""
    matrices = mcu_matrices(mcu, change.device)
    luma_blocks = mcu.blocks(components)[0]
    luma = times(change[..., :luma_blocks, :].flatten(-2), matrices.luma_back)
    if components == 1:
        return luma.unsqueeze(-2)
    chroma = times(change[..., luma_blocks:, :].flatten(-2), matrices.chroma_back).unflatten(-1, (2, -1))
    return torch.stack(differences_to_rgb(luma, *chroma.unbind(-2)), dim=-2)


def eight_bits(accumulated: Tensor) -> Tensor:
    return accumulated.round().clamp_(0, 255)


def kept_in_range(accumulated: Tensor) -> Tensor:
    return accumulated.clamp_(-0.49, 255.49)


def first_pass(x: Tensor, c: Coefficients, region: Region) -> tuple[Search, Tensor]:
    """Equation 11 with intervals drawn in, rounded and examined, for all MCUs of a region while they are in cache; and
    the candidates [K, C, P] uint8."""
    mcu, components = region.mcu, c.sampling.components
    tiles = to_tiles(x, region).float()
    centre, step = intervals(c, region)
    value = torch.cat(forward_dct(tile_planes(tiles), region), dim=-2)
    accumulated = kept_in_range(tiles + to_pixels(drawn_in(value, centre, step, 0), mcu, components))
    candidate = eight_bits(accumulated)
    wrong = is_wrong(find(candidate, mcu), centre, step, mcu).flatten(3).sum(3)
    flat = [
        entry.expand(*tiles.shape[:3], *entry.shape[3:]).flatten(0, 2)
        for entry in (accumulated, centre, step, torch.zeros_like(centre), wrong)
    ]
    where = torch.arange(len(flat[0]), device=x.device)
    search = Search(*flat, where, torch.zeros_like(where))  # type: ignore[call-arg]
    return search, candidate.to(torch.uint8).flatten(0, 2)


def intervals(c: Coefficients, region: Region) -> tuple[Tensor, Tensor]:
    """The intervals' middles [N, rows, columns, B, 64] and widths [N, 1, 1, B, 64] of a region's coefficients."""
    counts = torch.tensor(region.mcu.blocks(c.sampling.components), device=c.device)
    step = c.tables.flatten(2).float().repeat_interleave(counts, dim=1)[:, None, None]
    blocks = [blocks_of(plane, component, region) for component, plane in enumerate(c.planes)]
    return torch.cat(blocks, dim=3).float().mul_(step), step


def settle(search: Search, mcu: Mcu, best: Tensor, wrong: Tensor) -> None:
    """Runs the search to its end. Better candidates go into `best`, their counts into `wrong`, at `search.where`."""
    components, patience = search.accumulated.shape[1], PATIENCE if mcu.whole else PASSES
    for _ in range(PASSES):
        if not len(search.where):
            return
        candidate = eight_bits(search.accumulated)
        found = find(candidate, mcu)
        errors = is_wrong(found, search.centre, search.step, mcu)
        count = errors.flatten(1).sum(1)
        better = count < search.wrong
        improved = better.nonzero().flatten()
        at = search.where[improved]
        best[at], wrong[at] = candidate[improved].to(torch.uint8), count[improved]
        search.wrong = torch.minimum(search.wrong, count)
        search.stale = torch.where(better, 0, search.stale + 1)
        left = ((search.wrong > 0) & (search.stale < patience)).nonzero().flatten()
        if len(left) < len(search.where):
            search, found, errors = search.take(left), found[left], errors[left]
        search.missed += errors
        change = drawn_in(found / 8, search.centre, search.step, search.missed)
        search.accumulated = kept_in_range(search.accumulated + to_pixels(change, mcu, components))


def search_kind(x: Tensor, c: Coefficients, kind: list[Region]) -> tuple[Tensor, Tensor]:
    """All MCUs of one kind, region after region: their 8-bit images [K, C, P] and wrong coefficients [K]. What the
    first pass leaves of all of them goes on together."""
    bests, wrongs, rest, offset = [], [], [], 0
    for region in kind:
        search, best = first_pass(x, c, region)
        bests.append(best)
        wrongs.append(search.wrong)
        left = search.take(search.wrong.nonzero().flatten())
        left.where += offset
        offset += len(search.where)
        rest.append(left)
    best, wrong = torch.cat(bests), torch.cat(wrongs)
    search = Search.merge(rest)
    settle(search, kind[0].mcu, best, wrong)
    unsettled = wrong[search.where].nonzero().flatten()
    if len(unsettled):
        at = search.where[unsettled]
        best[at], wrong[at] = descend(
            best[at], wrong[at], search.centre[unsettled], search.step[unsettled], kind[0].mcu
        )
    return best, wrong


@torch.no_grad()
def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """See kernels.project_exact."""
    check_images(x, c.tables, c.sampling, c.size)
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
            parts[region] = from_tiles(best[:count].reshape(*shape, *best.shape[1:]), region)
            best, wrong = best[count:], wrong[count:]
    return torch.cat([torch.cat([parts[region] for region in row], dim=3) for row in grid], dim=2), mismatches
