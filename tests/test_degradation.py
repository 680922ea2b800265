"""Degradation: the JPEGs that training sees are those that an encoder would write."""

import io
from collections import Counter

import numpy as np
import pytest
import simplejpeg
import torch
from jpegs import encode as pillow_encode
from jpegs import photograph
from PIL import Image, ImageFilter

from kernels import Subsampling, decode, quality_to_tables
from pipeline.bitstream import read_bitstream
from train.config import DegradationConfig
from train.crops import step_generator
from train.degradation import SAMPLINGS, compress, degrade, perturb, random_quality, random_tables

DRAWN = DegradationConfig(quality=(5, 95), quality_mean=30.0)


def crops(count, size=48):
    images = np.stack([photograph(size, size, seed) for seed in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def test_qualities_are_log_uniform_on_both_sides_of_the_middle():
    random = step_generator(0, 0)
    drawn = np.array([random_quality(DRAWN, random) for _ in range(8000)])
    assert (drawn.min(), drawn.max()) == (5, 95)
    for low, high in ((5, 30), (30, 95)):
        for share in (0.25, 0.5, 0.75, 1.0):
            bound = low * (high / low) ** share
            expected = np.log(np.clip((np.floor(bound) + 0.5) / low, 1, high / low)) / np.log(high / low) / 2
            expected += 0.5 if low == 30 else 0
            assert abs((drawn <= np.floor(bound)).mean() - min(expected, 1)) < 0.03
    fixed = DegradationConfig(quality=(40, 40), quality_mean=40.0)
    assert {random_quality(fixed, random) for _ in range(50)} == {40}


def test_tables_are_a_baseline_files():
    random = step_generator(0, 1)
    for sampling in Subsampling:
        for perturbed in (0.0, 1.0):
            config = DegradationConfig(quality=(1, 100), perturbed=perturbed)
            for _ in range(40):
                tables = random_tables(sampling, config, random)
                assert (tuple(tables.shape), tables.dtype) == ((sampling.components, 8, 8), torch.int32)
                assert 1 <= int(tables.min()) <= int(tables.max()) <= 255


def test_the_given_share_of_tables_is_perturbed_around_annex_k():
    random, annex_k = step_generator(0, 2), [quality_to_tables(q, 3) for q in range(1, 101)]
    config = DegradationConfig(perturbed=0.25)
    drawn = [random_tables(Subsampling.S420, config, random) for _ in range(400)]
    changed = sum(not any(torch.equal(tables, one) for one in annex_k) for tables in drawn)
    assert abs(changed - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    base = quality_to_tables(50, 3)
    ratios = torch.stack([(perturb(base, random) / base).log() for _ in range(400)])
    assert abs(float(ratios.mean())) < 0.05
    assert 0.1 < float(ratios.std()) < 0.6


def test_samplings_have_their_shares():
    shares = DRAWN.samplings
    clean, counts = crops(8, 16).repeat(250, 1, 1, 1), Counter()
    for pair in degrade(clean, DRAWN, step_generator(0, 3)):
        assert pair.coefficients.sampling.label not in counts
        counts[pair.coefficients.sampling.label] = len(pair.clean)
        assert pair.sampling_index().tolist() == [SAMPLINGS.index(pair.coefficients.sampling)] * len(pair.clean)
    assert sum(counts.values()) == 2000
    for label, share in shares.items():
        assert abs(counts[label] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    only = degrade(clean[:20], DegradationConfig(samplings={"4:4:0": 2.0}), step_generator(0, 4))
    assert [(pair.coefficients.sampling, len(pair.clean)) for pair in only] == [(Subsampling.S440, 20)]


def test_degrading_is_a_pure_function_of_its_generator():
    first, again, other = (degrade(crops(12), DRAWN, step_generator(3, step)) for step in (7, 7, 8))
    assert len(first) == len(again)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.decoded, two.decoded)
        assert torch.equal(one.coefficients.tables, two.coefficients.tables)
    tables = [torch.cat([pair.coefficients.tables[:, 0] for pair in pairs]) for pairs in (first, other)]
    assert not torch.equal(*tables)


def test_a_pair_is_one_image_before_and_after():
    clean = crops(16)
    pairs = degrade(clean, DegradationConfig(quality=(90, 95), quality_mean=92.0, perturbed=0.0), step_generator(0, 5))
    for pair in pairs:
        assert pair.clean.shape == pair.decoded.shape
        assert float((pair.clean - pair.decoded).abs().mean()) < 8
        repeated = decode(pair.coefficients).expand(-1, 3, -1, -1)
        assert torch.equal(pair.decoded, repeated)
        if pair.coefficients.sampling is not Subsampling.GRAY:
            assert all(any(torch.equal(one, crop) for crop in clean) for one in pair.clean)


@pytest.mark.parametrize("quality", [10, 40, 90])
@pytest.mark.parametrize("sampling", list(Subsampling))
def test_what_is_decoded_is_what_an_ordinary_codec_shows(sampling, quality):
    # Without fine noise: an encoder's 8-bit colours tip it over the quantiser's edges, and that is no error of ours.
    # A few coefficients in a thousand are tipped all the same, by one step.
    pixels = np.array(Image.fromarray(photograph(128, 160, quality)).filter(ImageFilter.GaussianBlur(2)))
    clean = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    pair = compress(clean, quality_to_tables(quality, sampling.components)[None], sampling)
    if sampling is Subsampling.S440:  # which Pillow cannot write
        data = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="440", fastdct=False)
    else:
        data = pillow_encode(pixels, sampling.label, quality)
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)
    difference = np.abs(pair.decoded[0].permute(1, 2, 0).numpy() - shown)
    assert difference.mean() < 1.3
    written = read_bitstream(data).coefficients
    assert torch.equal(pair.coefficients.tables, written.tables)
    assert int(pair.coefficients.mismatches(written)) < 0.03 * written.count
    steps = (one.int() - other for one, other in zip(pair.coefficients.planes, written.planes, strict=True))
    assert max(int(step.abs().max()) for step in steps) == 1


def test_gray_pairs_are_gray():
    clean = crops(3)
    pair = compress(clean, quality_to_tables(30, 1).expand(3, -1, -1, -1), Subsampling.GRAY)
    for images in (pair.clean, pair.decoded):
        assert torch.equal(images[:, :1].expand(-1, 3, -1, -1), images)
    luma = np.asarray(Image.fromarray(photograph(48, 48, 0)).convert("L"), dtype=float)
    assert np.abs(pair.clean[0, 0].numpy() - luma).max() < 1
