"""A decoder's way back: real decoders' pixels give the file's coefficients, whichever way chroma was upsampled."""

import numpy as np
import pytest
import simplejpeg
import torch
from jpegs import SAMPLINGS, encode, photograph
from torch import Tensor

from pipeline.jpeg.bitstream import Layout, read_bitstream, read_layout
from pipeline.jpeg.recovery import chroma_samples, is_repeated, recover

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FILTERS = {"repeated": True, "triangle": False}


def decode(data: bytes, repeated: bool) -> tuple[Tensor, Tensor]:
    """libjpeg-turbo's luma and RGB, chroma repeated or by the triangle filter."""
    kinds = (("GRAY", 0), ("RGB", slice(None)))
    gray, rgb = (
        torch.from_numpy(simplejpeg.decode_jpeg(data, kind, fastupsample=repeated)[..., part]) for kind, part in kinds
    )
    return gray, rgb


def missed(data: bytes, layout: Layout, luma: Tensor, rgb: Tensor) -> int:
    """How many coefficients are not the file's."""
    tables = torch.tensor(layout.tables, device=luma.device, dtype=torch.int32).unflatten(1, (8, 8))
    planes = recover(luma, rgb, tables, layout.sampling, layout.header.size)
    found = layout.bitstream(plane.cpu() for plane in planes).coefficients
    found.check_values()
    return int(found.mismatches(read_bitstream(data).coefficients))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("repeated", FILTERS.values(), ids=FILTERS)
def test_nothing_is_lost_at_common_qualities(sampling, repeated, device):
    for quality in (10, 50, 75):
        for size in ((96, 128), (77, 101), (24, 9), (2, 3), (1, 1)):
            data = encode(photograph(*size), sampling, quality)
            layout = read_layout(data)
            luma, rgb = decode(layout.with_whole_blocks(data), repeated)
            assert missed(data, layout, luma.to(device), rgb.to(device)) == 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("repeated", FILTERS.values(), ids=FILTERS)
def test_a_decoder_that_rounds_otherwise_is_no_trouble(sampling, repeated, seed):
    """One in ten samples is a gray level off, as between one inverse DCT and another."""
    data = encode(photograph(96, 128), sampling, 50)
    generator = np.random.default_rng(seed)

    def jittered(pixels: Tensor) -> Tensor:
        off = generator.choice((-1, 0, 1), tuple(pixels.shape), p=(0.05, 0.9, 0.05))
        return torch.from_numpy((pixels.numpy() + off).clip(0, 255).astype(np.uint8))

    layout = read_layout(data)
    luma, rgb = decode(data, repeated)
    assert missed(data, layout, jittered(luma), jittered(rgb)) <= 2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_hangs_over_the_edge_is_found_as_far_as_it_shows(sampling):
    """Decoded as the file is, cut off at its size: whole blocks are exact, the others nearly so."""
    data = encode(photograph(77, 101), sampling, 50)
    layout = read_layout(data)
    assert 0 < missed(data, layout, *decode(data, repeated=True)) < 100


def test_which_filter_it_was_shows():
    samples = torch.from_numpy(photograph(24, 31)).permute(2, 0, 1).float() - 128
    for factors in ((1, 2), (2, 1), (2, 2)):
        repeated = samples
        for dim, factor in enumerate(factors, start=1):
            repeated = repeated.repeat_interleave(factor, dim)
        filtered = upsample(samples, factors)
        assert is_repeated(repeated, factors)
        assert not is_repeated(filtered, factors)
        for plane in (repeated, filtered):
            assert torch.equal(chroma_samples(plane, factors), samples)
            odd = plane[:, : plane.shape[1] - factors[0] + 1, : plane.shape[2] - factors[1] + 1]
            assert torch.equal(chroma_samples(odd, factors), samples)


def upsample(samples: Tensor, factors: tuple[int, int]) -> Tensor:
    """The triangle filter, in real numbers."""
    for dim, factor in enumerate(factors, start=1):
        if factor == 2:
            x = samples.movedim(dim, 0)
            before, after = torch.cat((x[:1], x[:-1])), torch.cat((x[1:], x[-1:]))
            samples = torch.stack((3 * x + before, 3 * x + after), 1).flatten(0, 1).movedim(0, dim) / 4
    return samples
