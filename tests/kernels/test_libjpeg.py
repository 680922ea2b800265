"""compress is libjpeg-turbo's default encoder, coefficient for coefficient."""

import numpy as np
import pytest
import torch
from scenes import by_libjpeg, in_colours_of, scene, tables_of, tensor_of

from kernels import Coefficients, Subsampling
from kernels.libjpeg import compress

TINY = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 1),
    (1, 9),
    (7, 8),
    (9, 16),
    (8, 17),
    (15, 33),
    (17, 15),
    (31, 32),
    (33, 18),
    (49, 47),
]


def wrong_and_all(pixels: np.ndarray, tables: torch.Tensor, sampling: Subsampling) -> tuple[int, int]:
    """(coefficients that differ from the real encoder's, coefficients)."""
    pixels = in_colours_of(pixels, sampling)
    expected, found = by_libjpeg(pixels, tables, sampling), compress(tensor_of(pixels), tables, sampling)
    found.check_values()
    return int(found.mismatches(expected)), expected.count


def random_tables(
    generator: np.random.Generator, sampling: Subsampling, steps: tuple[int, ...] | range
) -> torch.Tensor:
    return torch.tensor(generator.choice(steps, (1, sampling.components, 8, 8)), dtype=torch.int32)


def test_five_million_coefficients_of_all_samplings_are_bit_exact(seed):
    generator = np.random.default_rng(seed)
    wrong, total = dict.fromkeys(Subsampling, 0), 0
    for sampling in Subsampling:
        for quality in (5, 10, 25, 50, 75, 90, 95, 100):
            height, width = (int(n) for n in generator.integers((170, 250), (340, 500)))
            pixels = scene(height | 1, width | 1, int(generator.integers(1 << 31)))
            differing, count = wrong_and_all(pixels, tables_of(quality, sampling), sampling)
            wrong[sampling] += differing
            total += count
    assert total >= 5_000_000
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("sampling", Subsampling)
def test_every_quality_and_the_smallest_sizes_are_bit_exact(sampling, seed):
    generator = np.random.default_rng(seed)
    for quality in range(5, 101):
        height, width = TINY[quality % len(TINY)]
        pixels = scene(height, width, int(generator.integers(1 << 31)))
        wrong, _ = wrong_and_all(pixels, tables_of(quality, sampling), sampling)
        assert wrong == 0, (height, width, quality)


@pytest.mark.parametrize("sampling", Subsampling)
@pytest.mark.parametrize(
    "steps", [range(1, 256), (1, 255), (1, 2, 3), range(256, 8192)], ids=["any", "ends", "fine", "16 bits"]
)
def test_any_table_is_bit_exact_even_on_pure_noise(sampling, steps, seed):
    generator = np.random.default_rng(seed)
    height, width = (int(n) for n in generator.integers(1, 300, 2))
    black_and_white = generator.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    for pixels in (generator.integers(0, 256, (height, width, 3), dtype=np.uint8), black_and_white):
        wrong, _ = wrong_and_all(pixels, random_tables(generator, sampling, steps), sampling)
        assert wrong == 0, (height, width)


@pytest.mark.parametrize("sampling", Subsampling)
def test_images_of_a_batch_are_compressed_with_their_own_tables(sampling, seed):
    pixels = [in_colours_of(scene(41, 59, seed + i), sampling) for i in range(3)]
    tables = torch.cat([tables_of(quality, sampling) for quality in (20, 60, 95)])
    together = compress(torch.cat([tensor_of(p) for p in pixels]), tables, sampling)
    for i, image in enumerate(pixels):
        alone = by_libjpeg(image, tables[i : i + 1], sampling)
        mine = Coefficients(tuple(plane[i : i + 1] for plane in together.planes), alone.tables, sampling, alone.size)
        assert int(mine.mismatches(alone)) == 0


def test_only_8_bit_images_can_be_compressed_exactly():
    with pytest.raises(ValueError, match=r"expected uint8, got torch\.float32"):
        compress(torch.zeros(1, 1, 8, 8), tables_of(50, Subsampling.GRAY), Subsampling.GRAY)
