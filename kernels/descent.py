"""The end of project_exact's search: MCUs with a few coefficients still wrong are mended one pixel at a time.

A move changes one channel of one pixel, or all three, by one gray level. Each turn ranks all moves by their linear
effect on what is wrong or nearly so, tries the best ones by libjpeg-turbo's own arithmetic, and makes the one that
leaves the least excess, even if that is more than before; undoing it is forbidden for some turns (Glover's tabu
search, ORSA J. Computing 1989), which is how it leaves a dead end. Everything is an integer and ties go to the move
that comes first, so an MCU's way does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.certificate import deviation, find, limit, true_blocks
from kernels.mcu import Mcu
from kernels.tables import constant

ATTEMPTS = (
    (16, 11, 30),
    (8, 4, 30),
    (4, 4, 30),
    (64, 4, 30),
    (2, 4, 60),
    (16, 2, 200),
    (32, 2, 200),
    (3, 2, 200),
)
"""How many moves, of some two thousand, are tried in each turn; the most wrong coefficients with which an MCU is taken
up; and how many turns without a new least excess end the attempt. What one number leaves wrong, in a circle or a
corner, another often mends."""

TURNS = 8
"""Most turns of an attempt, as a multiple of its patience."""

TENURE = 12
"""Turns for which a move may not be undone."""

NEAR = 1.0
"""Coefficients this near to their interval's end (8 times the DCT) count in the ranking as wrong ones do."""

AT_ONCE = 64
"""MCUs that are mended side by side: their candidates stay in cache."""

STRONGEST = 32.0
"""How far beyond its end a coefficient counts in full in the ranking."""

COSINES = (11, 16, 15, 13, 11, 9, 6, 3)
"""Sixteen times the cosines of k pi / 16, and for k = 0 of pi / 4: a DCT in integers."""

WEIGHTS = ((77, 150, 29, 256), (-43, -85, 128, 0), (128, -107, -21, 0))
"""What Y, Cb and Cr gain when red, green, blue or all three gain one, in 256ths."""

SCALE = 128 * 256
"""`effects` are 8 times the DCT times this, and times the number of pixels under a chroma sample."""

LOWEST_BIT = 7
"""The bits of a rank below this one are dropped: the others fit 32 bits on every device."""


@dataclass(frozen=True)
class Moves:
    """All M moves of one kind of MCU: first those up, channel after channel and then all three together, then the same
    down. pixels: [p] the places that are no padding. support: [M / 2, C * P] 0 and 1, the values that a move changes.
    effects: [B * 64, M] about what it does to the coefficients, float64 of integers."""

    pixels: Tensor
    support: Tensor
    effects: Tensor

    @property
    def half(self) -> int:
        return len(self.support)

    def changes(self, chosen: Tensor) -> Tensor:
        """[...] int64 → [..., C * P]: -1, 0, 1."""
        sign = torch.where(chosen < self.half, 1.0, -1.0)
        return self.support[chosen % self.half] * sign.unsqueeze(-1)

    def impossible(self, image: Tensor) -> Tensor:
        """[K, C, P] → [K, M] bool: the moves that lead out of 0..255."""
        values, parts = image[..., self.pixels], []
        for end in (255, 0):
            stuck = values == end
            parts += [stuck.flatten(1), stuck.any(1)] if stuck.shape[1] == 3 else [stuck.flatten(1)]
        return torch.cat(parts, dim=1)


@constant
def all_moves(mcu: Mcu, components: int, device: torch.device) -> Moves:
    pixels = mcu.luma_source().unique()
    single = torch.eye(mcu.pixels)[pixels]
    support = torch.block_diag(*[single] * components)
    if components == 3:
        support = torch.cat([support, single.repeat(1, 3)])
    places = (torch.arange(support.shape[0] // len(pixels))[:, None] * mcu.pixels + pixels).flatten()
    up = effects(mcu, components)[:, places].to(device)
    return Moves(pixels.to(device), support.to(device), torch.cat([up, -up], dim=1))


def integer_basis() -> Tensor:
    """[8, 8] float64: row u holds 16 times the cosines of frequency u, in integers, at the eight places."""
    angle = torch.arange(8)[:, None] * (2 * torch.arange(8) + 1) % 32
    angle = torch.minimum(angle, 32 - angle)
    cosines = torch.tensor(COSINES)[torch.minimum(angle, 16 - angle)]
    return torch.where(angle > 8, -cosines, cosines).double()


def effects(mcu: Mcu, components: int) -> Tensor:
    """[B * 64, M / 2] of the moves up, as if every place of an MCU were a pixel. In units of 1 / SCALE."""
    basis = torch.kron(integer_basis(), integer_basis())
    shows = F.one_hot(mcu.luma_source(), mcu.pixels).double().unflatten(0, (-1, 64))
    luma = torch.einsum("bqp,kq->bkp", shows, basis).flatten(0, 1)
    if components == 1:
        return luma * 256
    luma *= mcu.sampling.factors[0] * mcu.sampling.factors[1]
    chroma = basis @ mcu.chroma_sums().double().T
    rows = [
        torch.cat([weight * part for weight in weights], dim=1)
        for weights, part in zip(WEIGHTS, (luma, chroma, chroma), strict=True)
    ]
    return torch.cat(rows)


def excess(found: Tensor, centre: Tensor, step: Tensor, mcu: Mcu, near: float = 0.0) -> Tensor:
    """How far each coefficient is beyond the end of its interval, or of one that is narrower by `near`; signed."""
    off = deviation(found, centre)
    beyond = (off.abs() - limit(step) + near).clamp_(min=0) * off.sign()
    return beyond if mcu.whole else beyond * true_blocks(mcu, beyond)


def descend(image: Tensor, wrong: Tensor, centre: Tensor, step: Tensor, mcu: Mcu) -> tuple[Tensor, Tensor]:
    """MCUs of one kind, [K, C, P] uint8, with `wrong` [K] wrong coefficients each; centre, step: [K, B, 64] the
    intervals' middles and widths. Returns the same images and counts, those that could be mended replaced."""
    image, wrong = image.clone(), wrong.clone()
    for tried, most, patience in ATTEMPTS:
        taken_up = ((wrong > 0) & (wrong <= most)).nonzero().flatten()
        for part in taken_up.split(AT_ONCE) if len(taken_up) else ():
            image[part], wrong[part] = _attempt(
                image[part], wrong[part], centre[part], step[part], mcu, tried, patience
            )
    return image, wrong


def _attempt(  # noqa: PLR0917
    image: Tensor, wrong: Tensor, centre: Tensor, step: Tensor, mcu: Mcu, count_tried: int, patience: int
) -> tuple[Tensor, Tensor]:
    best, fewest = image.clone(), wrong.clone()
    moves = all_moves(mcu, image.shape[1], image.device)
    current = image.float().flatten(1)
    forbidden = torch.zeros(len(image), 2 * moves.half, dtype=torch.int32, device=image.device)
    least = torch.full((len(image),), torch.inf, device=image.device)
    stale = torch.zeros_like(wrong)
    where = torch.arange(len(image), device=image.device)
    for turn in range(TURNS * patience):
        score = _scores(find(current.unflatten(1, image.shape[1:]), mcu), centre, step, mcu, moves)
        score.masked_fill_((forbidden > turn) | moves.impossible(current.unflatten(1, image.shape[1:])), 1 << 40)
        tried = _first_of_the_least(score, count_tried)
        candidates = (current[:, None] + moves.changes(tried)).clamp_(0, 255)
        found = find(candidates.unflatten(2, image.shape[1:]), mcu)
        beyond = excess(found, centre[:, None], step[:, None], mcu).abs_().flatten(2)
        totals, rows = beyond.sum(2), torch.arange(len(where), device=image.device)
        choice = _first_of_the_least((2 * totals).long(), 1)[:, 0]
        current, count, total = candidates[rows, choice], (beyond[rows, choice] > 0).sum(1), totals[rows, choice]
        undoing = (tried[rows, choice] + moves.half) % (2 * moves.half)
        forbidden[rows, undoing] = turn + 1 + TENURE
        better = count < fewest[where]
        best[where[better]] = current[better].to(torch.uint8).unflatten(1, image.shape[1:])
        fewest[where[better]] = count[better]
        stale = torch.where(total < least, 0, stale + 1)
        least = torch.minimum(total, least)
        left = ((count > 0) & (stale < patience)).nonzero().flatten()
        if not len(left):
            break
        if len(left) < len(where):
            kept = (current, centre, step, forbidden, least, stale, where)
            current, centre, step, forbidden, least, stale, where = (entry[left] for entry in kept)
    return best, fewest


def _scores(found: Tensor, centre: Tensor, step: Tensor, mcu: Mcu, moves: Moves) -> Tensor:
    """[K, M] int64: how much worse each move would make things, to first order."""
    pull = excess(found, centre, step, mcu, NEAR).clamp_(-STRONGEST, STRONGEST).mul_(2).flatten(1)
    score = pull.double() @ moves.effects  # integers below 2^53: exact, whatever the order of the sum
    return score.long() >> LOWEST_BIT


def _first_of_the_least(values: Tensor, count: int) -> Tensor:
    """[K, M] int64 → [K, count]: where the least are, in this order; of equal ones the first."""
    size = values.shape[1]
    number = torch.arange(size, device=values.device)
    return (values * size + number).topk(min(count, size), largest=False).indices
