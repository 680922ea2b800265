"""Tiles cover an image once, on the MCU grid; and the shipped network's images do not show where the tiles were."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jpegs import SAMPLINGS, encode, photograph

from kernels import Coefficients, decode
from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.tiling import cut_core, paste, plan, slice_coefficients, tile_coefficients
from pipeline.jpeg.bitstream import read_bitstream

HALO = 96
SIZES = [(1, 1), (1, 2000), (16, 16), (17, 300), (320, 320), (321, 481), (335, 1000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [208, 256, 1024])
def test_cores_cover_the_image_once_with_context_around_them(size, tile):
    covered = np.zeros(size, int)
    for one in plan(size, tile, HALO):
        for span, length in ((one.rows, size[0]), (one.columns, size[1])):
            assert span.first % 16 == 0
            assert span.start % 16 == 0
            assert span.last - span.first <= tile
            assert span.start - span.first >= min(HALO, span.start)
            assert span.last - span.stop >= min(HALO, length - span.stop)
            assert length <= tile or -(-span.last // 16) * 16 - span.first == tile  # one shape for all
        covered[one.rows.start : one.rows.stop, one.columns.start : one.columns.stop] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("tile", [200, 192, 0, -16])
def test_tile_that_cannot_be(tile):
    with pytest.raises(ValueError, match=f"tile {tile}: expected a multiple of 16 above twice the halo"):
        plan((100, 100), tile, HALO)


def read(height: int, width: int, sampling: str) -> Coefficients:
    return read_bitstream(encode(photograph(height, width), sampling)).coefficients


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
def test_decoded_cores_are_the_decoded_image(sampling):
    c = read(303, 435, sampling)
    whole, pasted = decode(c), torch.zeros(c.sampling.components, 303, 435)
    for tile in plan(c.size, 208, HALO):
        paste(pasted, cut_core(decode(tile_coefficients(c, tile)), tile)[0], tile)
    assert torch.allclose(pasted, whole[0], atol=1e-3)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0", "gray"])
def test_a_tile_has_what_its_last_blocks_hold_beyond_the_images_edge(sampling):
    """There, libjpeg has repeated the edge."""
    c = read_bitstream(encode(photograph(20, 26), sampling, 97)).coefficients
    (tile,) = plan(c.size, 208, HALO)
    found, image = decode(tile_coefficients(c, tile)), decode(c)
    assert found.shape[2:] == (24, 32)
    assert torch.allclose(found[..., :19, :25], image[..., :19, :25], atol=1e-3)  # at the edge libjpeg repeats chroma
    repeated = F.pad(image, (0, 6, 0, 4), mode="replicate")
    assert (found - repeated).abs().mean() < 3


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
def test_cores_share_out_the_coefficients(sampling):
    c = read(303, 435, sampling)
    cores = [slice_coefficients(c, *tile.core) for tile in plan(c.size, 208, HALO)]
    assert sum(core.count for core in cores) == c.count
    assert sum(int(x.planes[0].long().sum()) for x in cores) == int(c.planes[0].long().sum())


@pytest.mark.parametrize("weights", ["posterior", "mmse"])
@pytest.mark.parametrize(("sampling", "quality"), [("4:2:0", 10), ("4:4:4", 40)])
def test_shipped_weights_make_the_same_image_in_tiles_and_whole(weights, sampling, quality):
    """But for single pixels, where float32's last bits, which depend on a convolution's shape, decide the rounding."""
    data = encode(photograph(500, 700), sampling, quality)
    restorers = (Restorer.from_pretrained(weights, dtype="float32", options=Options(tile=tile)) for tile in (1536, 400))
    whole, tiled = (restorer.restore(data) for restorer in restorers)
    assert tiled.mismatches == whole.mismatches == 0
    different = (whole.image != tiled.image).any(0)
    assert different.sum() < 30, f"at {different.nonzero()[:10].tolist()}"
    assert (whole.image.int() - tiled.image.int()).square().sum() < 1000
