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

from kernels import Subsampling, quality_to_tables
from model.generator import SAMPLINGS
from pipeline.jpeg.bitstream import read_bitstream
from train.config import DegradationConfig
from train.data.crops import step_generator
from train.degradation import (
    PERTURBATIONS,
    as_batch,
    compress,
    degrade,
    perturb,
    random_qualities,
    random_tables,
)
from train.distributed import Ranks

DRAWN = DegradationConfig(quality=(5, 95), quality_mean=30.0)


def crops(count, size=48):
    images = np.stack([photograph(size, size, seed) for seed in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def test_qualities_are_log_uniform_on_both_sides_of_the_middle():
    uniform = torch.rand(8000, 2, generator=step_generator(0, 0), dtype=torch.float64)
    drawn = random_qualities(DRAWN, uniform).numpy()
    assert (drawn.min(), drawn.max()) == (5, 95)
    for low, high in ((4.5, 30), (30, 95.5)):
        for share in (0.25, 0.5, 0.75, 1.0):
            bound = low * (high / low) ** share
            expected = np.log(np.clip((np.floor(bound) + 0.5) / low, 1, high / low)) / np.log(high / low) / 2
            expected += 0.5 if low == 30 else 0
            assert abs((drawn <= np.floor(bound)).mean() - min(expected, 1)) < 0.03
    narrow = random_qualities(DegradationConfig(quality=(10, 12), quality_mean=11.0), uniform)
    assert (torch.bincount(narrow)[10:] / len(narrow)).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    fixed = DegradationConfig(quality=(40, 40), quality_mean=40.0)
    assert set(random_qualities(fixed, uniform[:50]).tolist()) == {40}


def test_tables_are_a_baseline_files():
    for share in (0.0, 1.0):
        config = DegradationConfig(quality=(1, 100), perturbed=share)
        tables = random_tables(config, 200, step_generator(0, 1))
        assert (tuple(tables.shape), tables.dtype) == ((200, 3, 8, 8), torch.int32)
        assert 1 <= int(tables.min()) <= int(tables.max()) <= 255


def test_the_given_share_of_tables_is_perturbed_around_annex_k():
    annex_k = [quality_to_tables(q, 3) for q in range(1, 101)]
    drawn = random_tables(DegradationConfig(perturbed=0.25), 400, step_generator(0, 2))
    changed = sum(not any(torch.equal(tables, one) for one in annex_k) for tables in drawn)
    assert abs(changed - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    base = quality_to_tables(50, 3)
    normal = torch.randn(400, PERTURBATIONS, generator=step_generator(0, 3))
    perturbed = perturb(base.expand(400, -1, -1, -1), normal)
    ranges = perturbed[:, 0].float().log().std((1, 2)) / base[0].float().log().std()
    assert ranges.min() < 0.3  # nearly flat
    assert ranges.max() > 1.9
    normal[:, 0] = 0  # but for the range
    ratios = (perturb(base.expand(400, -1, -1, -1), normal) / base).log()
    assert abs(float(ratios.mean())) < 0.05
    assert 0.1 < float(ratios.std()) < 0.6
    tilts = ratios[:, 0, -1].mean(1) - ratios[:, 0, 0].mean(1)  # highest against lowest vertical frequency
    assert 0.3 < float(tilts.std()) < 0.7
    assert float((ratios[:, 1] - ratios[:, 2]).std()) < 0.15  # both chroma tables are shifted by the same


def test_samplings_have_their_shares():
    shares = DRAWN.samplings
    batch = degrade(crops(8, 16).repeat(250, 1, 1, 1), DRAWN, step_generator(0, 3))
    counts = Counter(sampling.label for sampling in batch.samplings)
    assert batch.sampling_index.tolist() == [SAMPLINGS.index(sampling) for sampling in batch.samplings]
    assert sum(counts.values()) == len(batch) == 2000
    for label, share in shares.items():
        assert abs(counts[label] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    only = degrade(crops(8, 16), DegradationConfig(samplings={"4:4:0": 2.0}), step_generator(0, 4))
    assert only.samplings == [Subsampling.S440] * 8


def assert_same(one, other, atol=0.0):
    """atol: of decoded images, where they have been computed in batches of different sizes."""
    assert one.samplings == other.samplings
    for name in ("clean", "tables", "sampling_index", "seeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.allclose(one.decoded, other.decoded, rtol=0, atol=atol)


def test_degrading_is_a_pure_function_of_its_generator():
    first, again, other = (degrade(crops(12), DRAWN, step_generator(3, step), draws=4) for step in (7, 7, 8))
    assert_same(first, again)
    assert not torch.equal(first.tables, other.tables)
    assert tuple(first.seeds.shape) == (12, 4)
    assert len(set(first.seeds.flatten().tolist()) | set(other.seeds.flatten().tolist())) == 96


def test_ranks_share_out_what_one_would_have_drawn():
    clean = crops(12)
    whole = degrade(clean, DRAWN, step_generator(3, 7), draws=2)
    for rank in range(3):
        own = slice(4 * rank, 4 * rank + 4)
        share = degrade(clean[own], DRAWN, step_generator(3, 7), Ranks(rank, 3), draws=2)
        assert (share.first, share.total) == (4 * rank, 12)
        wanted = whole.split(3)[rank]
        assert (wanted.first, wanted.total) == (4 * rank, 12)
        assert_same(share, wanted, atol=1e-5)
        assert [4 * rank + place for place in share.evenly_spaced(5)] == [
            n for n in whole.evenly_spaced(5) if n // 4 == rank
        ]
    assert whole.evenly_spaced(5) == [0, 2, 4, 7, 9]
    assert_same(whole.select([3, 3, 8]), whole.select([0, 3, 8, 3]).select([1, 3, 2]))


def test_a_batch_is_its_crops_before_and_after_in_their_order():
    clean = crops(16)
    shares = {sampling.label: 1.0 for sampling in SAMPLINGS}
    config = DegradationConfig(quality=(90, 95), quality_mean=92.0, perturbed=0.0, samplings=shares)
    batch = degrade(clean, config, step_generator(0, 6))
    assert float((batch.clean - batch.decoded).abs().mean()) < 8 / 255
    assert Subsampling.GRAY in batch.samplings
    for place, sampling in enumerate(batch.samplings):
        tables = batch.tables[place : place + 1, : sampling.components]
        pair = compress(clean[place : place + 1], tables, sampling)
        alone = as_batch(pair, batch.seeds[:1])
        for name in ("clean", "tables", "sampling_index"):
            assert torch.equal(getattr(alone, name)[0], getattr(batch, name)[place])
        assert torch.allclose(alone.decoded[0], batch.decoded[place], rtol=0, atol=1e-5)
        if sampling is not Subsampling.GRAY:
            assert torch.equal(batch.clean[place], clean[place] / 255)


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
