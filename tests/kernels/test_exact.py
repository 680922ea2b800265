"""project_exact's certificate is the truth, its image is near, and images do not depend on what travels with them."""

import numpy as np
import pytest
import torch
from scenes import by_libjpeg, in_colours_of, pick, pixels_of, scene, stack, tables_of, tensor_of
from torch import Tensor

from kernels import Coefficients, Subsampling, project, project_exact

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
SIZES = [(1, 1), (1, 17), (17, 33), (96, 112), (98, 70), (121, 95)]


def restored(size: tuple[int, int], quality: int, sampling: Subsampling, seed: int, calm: bool = True) -> tuple:
    """(float image as a restoration might give it: blurred, its contrast raised; what a real encoder made of the
    original). A calm image keeps away from 0 and 255, where there is room on one side only."""
    pixels = in_colours_of(scene(*size, seed), sampling)
    if calm:
        pixels = (32 + 0.75 * pixels).round().astype(np.uint8)
    x = tensor_of(pixels).float()
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return blurred + 0.3 * (x - x.mean()), by_libjpeg(pixels, tables_of(quality, sampling), sampling)


def batch(size: tuple[int, int], qualities: list[int], sampling: Subsampling, seed: int, calm: bool = True) -> tuple:
    made = [restored(size, quality, sampling, seed + i, calm) for i, quality in enumerate(qualities)]
    return torch.cat([x for x, _ in made]), stack([c for _, c in made])


def counted(image: Tensor, c: Coefficients) -> list[int]:
    """Coefficients of each 8-bit image, as a real libjpeg-turbo compresses it, that differ from c's."""
    each = [by_libjpeg(pixels_of(one), c.tables[i : i + 1], c.sampling) for i, one in enumerate(image)]
    return stack(each).mismatches(c).tolist()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / (x.double() - y.double()).square().flatten(1).mean(1))


@ALL
@pytest.mark.parametrize("size", SIZES)
def test_images_are_certified_up_to_quality_50(sampling, size, seed):
    x, c = batch(size, [5, 10, 30, 50], sampling, seed)
    image, mismatches = project_exact(x, c)
    assert (image.dtype, image.shape, mismatches.dtype) == (torch.uint8, x.shape, torch.int64)
    assert mismatches.tolist() == counted(image, c) == [0, 0, 0, 0]


def test_half_a_block_at_the_edge_is_certified_for_texture_far_from_the_original():
    """A sample of quality 10. The last of four rows is repeated four times, and projections onto the intervals approach
    them slowly."""
    original = "216 201 213 201 173 174 154 186 210 206 186 150 177 169 163 159 "
    original += "169 172 162 146 180 165 141 150 126 164 167 196 206 181 166 153"
    wanted = "204 212 221 194 172 136 147 176 142 174 152 180 142 149 162 175 "
    wanted += "142 160 182 215 179 167 192 187 169 99 186 169 158 204 178 128"
    pixels = np.array(original.split(), np.uint8).reshape(4, 8)
    c = by_libjpeg(pixels, tables_of(10, Subsampling.GRAY), Subsampling.GRAY)
    image, mismatches = project_exact(torch.tensor(list(map(float, wanted.split()))).reshape(1, 1, 4, 8), c)
    assert mismatches.tolist() == counted(image, c) == [0]


@pytest.mark.parametrize("sampling", [Subsampling.S422, Subsampling.S420], ids=lambda sampling: sampling.label)
def test_certificates_are_true_where_a_column_has_a_chroma_sample_of_its_own_and_shares_another(sampling, seed):
    """An even number of columns, less than an MCU's: averages that luma's bounds make impossible are counted. Of these
    images one in fifty has such."""
    generator = np.random.default_rng(seed)
    for number in range(200):
        size = int(generator.integers(1, 18)), 2 * int(generator.integers(1, 8))
        x, c = restored(size, int(generator.choice([75, 85, 90, 95])), sampling, seed + number, calm=False)
        image, mismatches = project_exact(x, c)
        assert mismatches.tolist() == counted(image, c), (size, number)


@pytest.mark.parametrize(("quality", "share"), [(75, 1e-6), (90, 3e-5)])
def test_hardly_a_coefficient_is_missed_at_high_quality(quality, share, seed):
    missed = total = 0
    for sampling in Subsampling:
        for size in (*SIZES, (251, 187)):
            x, c = batch(size, [quality] * 3, sampling, seed)
            image, mismatches = project_exact(x, c)
            assert mismatches.tolist() == counted(image, c)
            missed, total = missed + int(mismatches.sum()), total + 3 * c.count
    assert total > 1_000_000
    assert missed <= share * total


@ALL
def test_the_certificate_is_true_where_the_image_is_black_or_white_and_steps_are_fine(sampling, seed):
    missed = total = 0
    for size in [(1, 1), (1, 17), (17, 33), (121, 95)]:  # what no image fits takes long
        x, c = batch(size, [5, 30, 75, 90, 100], sampling, seed, calm=False)
        image, mismatches = project_exact(x, c)
        assert mismatches.tolist() == counted(image, c)
        missed, total = missed + int(mismatches[:3].sum()), total + 3 * c.count
    assert missed <= 1e-3 * total


@ALL
def test_no_certificate_for_coefficients_that_no_image_has(sampling, seed):
    x, c = batch((33, 47), [50, 75], sampling, seed)
    generator = torch.Generator().manual_seed(seed)
    for plane in c.planes:
        blocks = plane[:, 1::2, ::2]
        blocks += torch.randint(-300, 300, blocks.shape, generator=generator, dtype=torch.int16)
    for component, plane in enumerate(c.planes):
        rows, columns = sampling.true_blocks(component, c.size)
        plane[:, rows:] = 0
        plane[:, :, columns:] = 0
    image, mismatches = project_exact(x, c)
    assert bool((mismatches > 100).all())
    assert mismatches.tolist() == counted(image, c)


@ALL
def test_the_image_stays_near_the_projected_one(sampling, seed):
    x, c = batch((121, 95), [5, 10, 30, 50, 75], sampling, seed)
    image, _ = project_exact(x, c)
    assert bool((psnr(image, project(x, c).clamp(0, 255)) > 40).all())


@ALL
def test_a_flat_image_that_fits_already_hardly_changes(sampling):
    for level in (0, 77, 255):
        flat = torch.full((1, sampling.components, 61, 47), level, dtype=torch.uint8)
        c = by_libjpeg(pixels_of(flat[0]), tables_of(50, sampling), sampling)
        image, mismatches = project_exact(flat.float(), c)
        assert mismatches.tolist() == [0]
        assert int((image.int() - flat.int()).abs().max()) <= 1


@ALL
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (121, 95)])
def test_images_depend_neither_on_their_company_nor_on_its_order(sampling, size, seed):
    x, c = batch(size, [10, 75, 90], sampling, seed, calm=False)
    image, mismatches = project_exact(x, c)
    for order in ([0, 1, 2], [2, 0, 1], [0], [1], [2]):
        again, count = project_exact(x[order], pick(c, order))
        assert torch.equal(again, image[order])
        assert torch.equal(count, mismatches[order])


@ALL
def test_a_slice_along_mcus_has_the_pixels_of_the_whole(sampling, seed):
    x, c = batch((300, 401), [40], sampling, seed)
    (mcu_height, mcu_width), (vertical, horizontal) = sampling.mcu, sampling.factors
    top, left, rows, columns = 2, 3, 5, 7
    down = slice(top * mcu_height, (top + rows) * mcu_height)
    across = slice(left * mcu_width, (left + columns) * mcu_width)
    planes = []
    for component, plane in enumerate(c.planes):
        v, h = (1, 1) if component else (vertical, horizontal)
        planes.append(plane[:, top * v : (top + rows) * v, left * h : (left + columns) * h].clone())
    part = Coefficients(tuple(planes), c.tables, sampling, (rows * mcu_height, columns * mcu_width))
    whole, _ = project_exact(x, c)
    image, mismatches = project_exact(x[:, :, down, across].contiguous(), part)
    assert torch.equal(image, whole[:, :, down, across])
    assert mismatches.tolist() == counted(image, part)
