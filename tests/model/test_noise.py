"""The noise: Philox as its authors publish it, Gaussian or uniform, and the same whatever surrounds a pixel."""

import pytest
import torch
from philox import KNOWN_ANSWERS

from model.noise import UNIFORM_CHANNELS, derive_pairs, derive_seed, gaussian, philox, uniform

SEEDS = torch.tensor([0, 1, -3, 2**62 + 12345, -(2**63)])


def field(seeds, layer, origins, size):
    return gaussian(torch.as_tensor(seeds), layer, 1, torch.as_tensor(origins), size)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    found = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, found)) == words


def test_the_noise_is_standard_normal():
    noise = gaussian(SEEDS, 3, 1, torch.zeros(5, 2, dtype=torch.int64), (256, 256)).double()
    assert noise.shape == (5, 1, 256, 256)
    values = noise.flatten()
    n = len(values)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((values**power).mean()) - moment) < 5 * (variance / n) ** 0.5
    expected = torch.distributions.Normal(0, 1).cdf(values.sort().values)
    steps = torch.arange(n) / n
    assert float((expected - steps).abs().max()) * n**0.5 < 2  # Kolmogorov and Smirnov; 1.95 has a chance of 0.001


def test_neighbours_layers_and_seeds_do_not_resemble_each_other():
    noise, *others = gaussian(SEEDS, 0, 9, torch.zeros(5, 2, dtype=torch.int64), (200, 200)).unbind(1)
    bound = 5 / 200
    for other in others:
        assert float((noise * other).mean((1, 2)).abs().max()) < bound
        assert float((noise**2 * other**2 - 1).mean((1, 2)).abs().max()) < 3 * bound
    for dim in (1, 2):
        assert float((noise * noise.roll(1, dim)).mean((1, 2)).abs().max()) < bound
    products = torch.einsum("ahw,bhw->ab", noise, noise) / 200**2
    assert float((products - torch.diag(products.diag())).abs().max()) < bound


def test_layers_are_the_same_however_many_are_drawn():
    origins = torch.zeros(5, 2, dtype=torch.int64)
    many = gaussian(SEEDS, 0, 11, origins, (6, 5))
    assert len({float(layer) for layer in many[0, :, 0, 0]}) == 11
    for first, count in ((0, 1), (3, 1), (2, 5), (4, 4), (7, 4)):
        assert torch.equal(gaussian(SEEDS, first, count, origins, (6, 5)), many[:, first : first + count])


def test_a_pixel_has_its_noise_whatever_the_tile_and_the_batch():
    seeds = SEEDS.tolist()
    whole = field(seeds, 7, [[-8, 4]] * 5, (40, 60))
    window = field(seeds, 7, [[-8 + 11, 4 + 23]] * 5, (20, 30))
    assert torch.equal(window, whole[:, :, 11:31, 23:53])
    order = [3, 0, 4, 1, 2]
    mixed = field([seeds[i] for i in order], 7, [[-8 + i, 4 - i] for i in order], (30, 30))
    for place, i in enumerate(order):
        assert torch.equal(mixed[place], field(seeds[i : i + 1], 7, [[-8 + i, 4 - i]], (30, 30))[0])


def test_seeds_of_all_64_bits_differ():
    origins = [[0, 0]] * 4
    noise = field([5, 5 + 2**32, -5, 5 - 2**63], 0, origins, (4, 4))
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 4


def test_a_seeds_complement_turns_the_sign_of_its_noise():
    origins = [[16, -32]] * len(SEEDS)
    assert torch.equal(field((~SEEDS).tolist(), 3, origins, (5, 6)), -field(SEEDS.tolist(), 3, origins, (5, 6)))


def test_uniform_noise_is_the_halves_of_philoxs_words():
    """At places and seeds of all 64 bits; of negative seeds with the sign turned."""
    seeds, low = torch.tensor([0, 1, -3, 2**62 + 12345, -(2**63)]), 0xFFFFFFFF
    origins = torch.tensor([[0, 0], [16, 2**31 - 9], [2**32 - 3, 7], [2**40 + 5, 2**33 - 2], [-8, -1]])
    found = uniform(seeds, origins, (5, 37))
    for n, (seed, (y, x)) in enumerate(zip(seeds, origins.tolist(), strict=True)):
        key = ~seed if seed < 0 else seed
        rows = (y + torch.arange(5)).reshape(-1, 1) & low
        columns = (x + torch.arange(37)) & low
        words = philox((columns, rows, torch.tensor(0), torch.tensor(0)), (key & low, key >> 32 & low))
        halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)])
        expected = (2 * halves - 65535).float() * (torch.tensor(3.0).sqrt() / 65536)
        assert torch.equal(found[n], -expected if seed < 0 else expected)


def test_uniform_noise_is_uniform_and_white():
    noise = uniform(SEEDS, torch.zeros(5, 2, dtype=torch.int64), (200, 200)).double()
    assert noise.shape == (5, UNIFORM_CHANNELS, 200, 200)
    n, bound = noise.numel(), 3**0.5
    for power, moment, variance in ((1, 0, 1), (2, 1, 4 / 5), (3, 0, 27 / 7), (4, 9 / 5, 81 / 9 - 81 / 25)):
        assert abs(float((noise**power).mean()) - moment) < 5 * (variance / n) ** 0.5
    expected = (noise.flatten().sort().values + bound) / (2 * bound)
    assert float((expected - torch.arange(n) / n).abs().max()) * n**0.5 < 2  # Kolmogorov and Smirnov
    channels = noise.flatten(0, 1).flatten(1)
    products = channels @ channels.T / 200**2
    assert float((products - torch.diag(products.diag())).abs().max()) < 5 / 200
    for dim in (2, 3):
        assert float((noise * noise.roll(1, dim)).mean((2, 3)).abs().max()) < 5 / 200


def test_uniform_noise_has_its_place_and_turns_with_its_seed():
    origins = torch.tensor([[-8, 4]] * 5)
    whole = uniform(SEEDS, origins, (40, 60))
    assert torch.equal(uniform(SEEDS, origins + torch.tensor([11, 23]), (20, 30)), whole[:, :, 11:31, 23:53])
    assert torch.equal(uniform(SEEDS[2:4], origins[2:4], (40, 60)), whole[2:4])
    assert torch.equal(uniform(~SEEDS, origins, (40, 60)), -whole)


def test_noise_is_clipped_and_then_scaled():
    origins, amplitude = torch.zeros(5, 2, dtype=torch.int64), torch.linspace(0, 1, 5).reshape(-1, 1, 1, 1)
    whole = gaussian(SEEDS, 2, 3, origins, (40, 40))
    found = gaussian(SEEDS, 2, 3, origins, (40, 40), limit=2.0, amplitude=amplitude)
    assert torch.equal(found, whole.clamp(-2, 2) * amplitude)
    assert float(whole.abs().max()) > 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pairs_are_of_seeds_and_their_complements(count):
    drawn = [derive_seed(4, "key", number) for number in range(3)]
    assert derive_pairs(4, "key", count) == [drawn[0], ~drawn[0], drawn[1], ~drawn[1], drawn[2]][:count]


def test_derived_seeds_are_these_for_ever():
    assert derive_seed(0, "", 0) == 4851894837794156939
    assert derive_seed(7, "folder/photo.v2", 3) == 8236478879197826430
    assert derive_seed(-1, "é", 0) == -932560654709924001


def test_derived_seeds_differ_with_seed_key_and_sample():
    keys = ["", "a", "b", "1", "é", "\udcc3\udca9", "\udcff", "\ud800", "a\0b"]
    seeds = {derive_seed(s, key, k) for s in (0, 1, -1, 11, 2**70) for key in keys for k in (0, 1, 11)}
    assert len(seeds) == 5 * len(keys) * 3
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert min(seeds) < 0
