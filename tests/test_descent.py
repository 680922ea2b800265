"""The last step of project_exact: it mends what it can, tells the truth about the rest, and heeds no company."""

import pytest
import torch
from scenes import by_libjpeg, in_colours_of, scene, tables_of, tensor_of

from kernels import Subsampling
from kernels.certificate import find, is_wrong
from kernels.descent import ATTEMPTS, SCALE, all_moves, descend
from kernels.exact import intervals
from kernels.mcu import regions, to_tiles

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


def disturbed(sampling: Subsampling, quality: int, seed: int, share: float = 0.01) -> list[tuple]:
    """For each kind of MCU of an image, the arguments of `descend`: the image that a real encoder compressed, `share`
    of its values moved by some gray levels."""
    pixels = in_colours_of(scene(61, 83, seed), sampling)
    c = by_libjpeg(pixels, tables_of(quality, sampling), sampling)
    generator = torch.Generator().manual_seed(seed)
    x = tensor_of(pixels).float()
    moved = torch.randint(-6, 7, x.shape, generator=generator) * (torch.rand(x.shape, generator=generator) < share)
    x = (x + moved).clamp(0, 255)
    problems = []
    for region in (region for row in regions(sampling, c.size, 1) for region in row):
        tiles = to_tiles(x, region).flatten(0, 2)
        centre, step = intervals(c, region)
        centre = centre.flatten(0, 2)
        step = step.flatten(0, 2).expand_as(centre)
        wrong = is_wrong(find(tiles, region.mcu), centre, step, region.mcu).flatten(1).sum(1)
        problems.append((tiles.to(torch.uint8), wrong, centre, step, region.mcu))
    return problems


def count(image: torch.Tensor, problem: tuple) -> torch.Tensor:
    _, _, centre, step, mcu = problem
    return is_wrong(find(image.float(), mcu), centre, step, mcu).flatten(1).sum(1)


@ALL
def test_a_few_wrong_coefficients_are_mended(sampling, seed):
    before = after = 0
    for problem in (problem for number in range(3) for problem in disturbed(sampling, 75, seed + number)):
        image, wrong = descend(*problem)
        assert torch.equal(wrong, count(image, problem))
        assert bool((wrong <= problem[1]).all())
        assert torch.equal(image[problem[1] == 0], problem[0][problem[1] == 0])
        assert torch.equal(image[problem[1] > ATTEMPTS[0][1]], problem[0][problem[1] > ATTEMPTS[0][1]])
        taken_up = problem[1] <= ATTEMPTS[0][1]
        before, after = before + int(problem[1][taken_up].sum()), after + int(wrong[taken_up].sum())
    assert before > 20
    assert after <= 0.02 * before


@ALL
def test_an_mcu_goes_its_way_whatever_its_company(sampling, seed):
    for problem in disturbed(sampling, 85, seed):
        *entries, mcu = problem
        image, wrong = descend(*problem)
        for index in (torch.arange(len(image)).flip(0), torch.arange(0, len(image), 3), torch.tensor([0])):
            again, counted = descend(*(entry[index] for entry in entries), mcu)
            assert torch.equal(again, image[index])
            assert torch.equal(counted, wrong[index])


@ALL
def test_moves_have_the_effect_by_which_they_are_ranked(sampling, seed):
    for image, _, _, _, mcu in disturbed(sampling, 50, seed):
        base = image[:1].float().clamp(40, 215)
        moves = all_moves(mcu, base.shape[1], base.device)
        change = 40 * moves.changes(torch.arange(moves.half)).unflatten(1, base.shape[1:])
        found = ((find(base + change, mcu) - find(base - change, mcu)) / 80).flatten(1)
        ranked = moves.effects.T.float() / (SCALE * sampling.factors[0] * sampling.factors[1])
        assert torch.equal(ranked[: moves.half], -ranked[moves.half :])
        blocks = found.shape[1] // 64
        true = torch.tensor([*mcu.true_luma_blocks, True, True][:blocks]).repeat_interleave(64)
        assert bool(true.any())
        difference = (found - ranked[: moves.half])[:, true]
        assert float(difference.square().mean().sqrt()) < 0.1  # the integer path rounds at every stage
        assert float(ranked[: moves.half, true].square().mean().sqrt()) > 0.2


@ALL
def test_no_move_leads_out_of_eight_bits(sampling, seed):
    generator = torch.Generator().manual_seed(seed)
    for image, _, _, _, mcu in disturbed(sampling, 50, seed):
        extreme = torch.randint(0, 4, image[:2].shape, generator=generator)
        extreme = torch.tensor([0, 1, 254, 255])[extreme].float()
        moves = all_moves(mcu, image.shape[1], image.device)
        after = extreme.flatten(1)[:, None] + moves.changes(torch.arange(2 * moves.half))
        out = ((after < 0) | (after > 255)).any(2)
        assert torch.equal(moves.impossible(extreme), out)
        assert bool(out.any())
        assert not bool(out.all())
