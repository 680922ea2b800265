"""Cutting into MCUs loses nothing, and the way back from coefficients is the least-squares one."""

import pytest
import reference
import torch
from torch import Tensor

from kernels import Subsampling
from kernels.libjpeg import integer_basis, integer_dct
from kernels.torch_ops.blocks import Mcu, blocks_of, from_tiles, map_regions, put_blocks, regions, to_tiles
from kernels.torch_ops.colour import tile_planes
from kernels.torch_ops.dct import block_dct, forward_dct, mcu_matrices, times
from kernels.torch_ops.sampling import repeat_chroma

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
pytestmark = pytest.mark.usefixtures("seed")
SIZES = [(1, 1), (7, 40), (16, 16), (17, 33), (130, 257), (401, 399)]


def edge_kinds(sampling: Subsampling) -> list[Mcu]:
    height, width = sampling.mcu
    rows, columns = {1, 2, 7, 8, height - 1, height}, {1, 3, 8, width - 3, width}
    return [Mcu(sampling, r, c) for r in sorted(rows) for c in sorted(columns)]


@ALL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("banded", [True, False])
def test_regions_put_together_are_the_image(sampling, size, banded):
    x = torch.rand(2, sampling.components, *size)
    whole = map_regions(lambda region: from_tiles(to_tiles(x, region), region), sampling, size, 2, banded)
    assert torch.equal(whole, x)


@ALL
@pytest.mark.parametrize("size", SIZES)
def test_regions_cover_each_mcu_once(sampling, size):
    covered = torch.zeros(sampling.mcu_grid(size))
    pixels = 0
    for region in (region for row in regions(sampling, size, 1) for region in row):
        covered[region.top : region.bottom, region.left : region.right] += 1
        count = (region.bottom - region.top) * (region.right - region.left)
        pixels += count * region.mcu.rows * region.mcu.columns
    assert bool((covered == 1).all())
    assert pixels == size[0] * size[1]


@ALL
@pytest.mark.parametrize("size", SIZES)
def test_blocks_written_back_are_the_plane(sampling, size):
    for component in range(sampling.components):
        plane = torch.randint(-2048, 2048, (2, *sampling.plane_blocks(component, size), 8, 8), dtype=torch.int16)
        copy = torch.zeros_like(plane)
        for region in (region for row in regions(sampling, size, 2) for region in row):
            put_blocks(copy, component, region, blocks_of(plane, component, region))
        assert torch.equal(copy, plane)


@ALL
@pytest.mark.parametrize("size", SIZES)
def test_coefficients_of_tiles_are_those_of_the_whole_planes(sampling, size):
    x = 255 * torch.rand(2, sampling.components, *size, dtype=torch.float64)
    expected = [reference.forward(plane) for plane in reference.planes_of(x, sampling)]
    found = [torch.zeros_like(plane) for plane in expected]
    for region in (region for row in regions(sampling, size, 2) for region in row):
        for component, dct in enumerate(forward_dct(tile_planes(to_tiles(x, region)), region)):
            put_blocks(found[component], component, region, dct)
    for component, (a, b) in enumerate(zip(found, expected, strict=True)):
        rows, columns = sampling.true_blocks(component, size)
        assert (a - b)[:, :rows, :columns].abs().max() < 1e-9


def is_pseudo_inverse(back: Tensor, there: Tensor) -> bool:
    return torch.allclose(back, torch.linalg.pinv(there), atol=1e-10)


@ALL
def test_the_way_back_is_the_pseudo_inverse(sampling):
    for mcu in edge_kinds(sampling):
        matrices = mcu_matrices(mcu, "cpu", torch.float64)
        assert is_pseudo_inverse(matrices.luma_back, matrices.luma), mcu
        if mcu.whole or sampling.factors == (1, 1):
            assert is_pseudo_inverse(matrices.chroma_back, matrices.chroma), mcu


@ALL
def test_at_an_edge_a_pixel_gets_the_mean_over_the_places_that_repeat_it(sampling):
    for mcu in edge_kinds(sampling):
        matrices, dct = mcu_matrices(mcu, "cpu", torch.float64), torch.randn(64).double()
        samples = (dct @ block_dct("cpu", torch.float64).T)[None, None, None, None]
        places = repeat_chroma(samples, next(iter(regions(sampling, sampling.mcu, 1)))[0]).flatten()
        for pixel, value in enumerate(dct @ matrices.chroma_back):
            shown = places[mcu.chroma_source() == pixel]
            assert abs(float(value) - (float(shown.mean()) if len(shown) else 0.0)) < 1e-12


@ALL
def test_places_beyond_the_image_neither_count_nor_change(sampling):
    for mcu in edge_kinds(sampling):
        inside = torch.zeros(1, 1, *sampling.mcu)
        inside[:, :, : mcu.rows, : mcu.columns] = 1
        region = next(iter(regions(sampling, sampling.mcu, 1)))[0]
        beyond = to_tiles(inside, region).flatten() == 0
        matrices = mcu_matrices(mcu, "cpu", torch.float64)
        for there, back in ((matrices.luma, matrices.luma_back), (matrices.chroma, matrices.chroma_back)):
            garbage, coefficients = torch.randn(mcu.pixels).double() * beyond, torch.randn(back.shape[0]).double()
            if there.shape[0] == mcu.pixels:
                assert not (garbage @ there).any()
                assert bool(((coefficients @ back)[beyond].abs() < 1e-15).all())


@ALL
def test_chroma_of_a_whole_mcu_goes_back_by_repetition(sampling):
    vertical, horizontal = sampling.factors
    matrices = mcu_matrices(Mcu(sampling, *sampling.mcu), "cpu", torch.float64)
    forth = matrices.chroma @ matrices.chroma.T
    assert torch.allclose(forth.diagonal().sum(), torch.tensor(64.0 / (vertical * horizontal)).double())
    assert torch.allclose(matrices.chroma_back, matrices.chroma.T * vertical * horizontal, atol=1e-12)
    assert torch.allclose(times(matrices.chroma_back, matrices.chroma), torch.eye(64).double(), atol=1e-12)


def test_libjpegs_integer_transform_is_8_times_the_dct_rounded():
    assert torch.allclose(integer_basis() / 8192 / 8**0.5, reference.BASIS, atol=1e-4)
    blocks = torch.randint(-128, 128, (500, 8, 8)).float()
    exact = 8 * reference.BASIS @ blocks.double() @ reference.BASIS.T
    assert (integer_dct(blocks.flatten(1)) - exact.flatten(1)).abs().max() < 2
