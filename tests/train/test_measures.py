"""The figures of train/measures.py against independent computations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from runs import mismatches
from scenes import image, scene, tensor_of

from kernels import Subsampling
from train.frechet import FeatureMoments, SplitMoments, crops, load_extractors
from train.measures import (
    PSNR_LIMIT,
    Correlation,
    PixelMoments,
    compress,
    consistency,
    psnr,
)


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(stream, "PNG")
    return stream.getvalue()


def pillow(picture, quality, sampling):
    """Compressed and decompressed: [H, W, C] float64, and the file."""
    pixels = Image.fromarray(picture.permute(1, 2, 0).numpy())
    pixels, options = (pixels.convert("L"), {}) if sampling == "gray" else (pixels, {"subsampling": sampling})
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=quality, **options)
    return np.asarray(Image.open(stream), np.float64), stream.getvalue()


@pytest.mark.parametrize("sampling", ["4:2:0", "4:4:4", "gray"])
@pytest.mark.parametrize("quality", [5, 30])
def test_consistency_is_what_pillow_alone_says(sampling, quality):
    clean, output = image(61, 83), image(61, 83)
    output[:, 10:40, 10:30] = (output[:, 10:40, 10:30].int() + 25).clamp(0, 255).to(torch.uint8)
    compressed = compress("a", clean, quality, Subsampling.from_label(sampling))
    (before, data), (after, _) = pillow(clean, quality, sampling), pillow(output, quality, sampling)
    if sampling == "gray":
        output = torch.from_numpy(np.array(Image.fromarray(output.permute(1, 2, 0).numpy()).convert("L")))[None]
    found = consistency(output, compressed)
    assert mismatches(data, png(clean if sampling != "gray" else compressed.truth)) == 0
    assert np.array_equal(compressed.decoded.permute(1, 2, 0).squeeze(-1), before)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((before - after) ** 2)), rel=1e-9)
    assert found.rmse > 1
    assert found.mismatches == mismatches(data, png(output)) > 0


def test_psnr_is_numpys():
    a, b = image(seed=1), image(seed=2)
    expected = 10 * np.log10(255**2 / np.mean((a.numpy().astype(np.float64) - b.numpy()) ** 2))
    assert psnr(a, b) == pytest.approx(expected, rel=1e-12)
    assert psnr(a, a) == PSNR_LIMIT


def test_deviation_and_correlation_are_torchs():
    samples = torch.randn(7, 3, 20, 30) * 9 + 120
    moments = PixelMoments()
    assert moments.deviation is None
    for sample in samples:
        moments.add(sample)
    assert torch.allclose(moments.deviation, samples.std(0) / 0.959369, rtol=1e-4)  # c4(7), as tables have it
    assert torch.allclose(moments.mean, samples.mean(0), rtol=1e-5)
    x, y = torch.randn(2, 5, 100)
    y += x
    correlation = Correlation()
    assert correlation.value is None
    for a, b in zip(x, y, strict=True):
        correlation.add(a, b)
    assert correlation.value == pytest.approx(float(torch.corrcoef(torch.stack((x, y)).flatten(1))[0, 1]), rel=1e-5)
    constant = Correlation()
    constant.add(torch.ones(5), x[0, :5])
    assert constant.value is None


@pytest.mark.parametrize("count", [2, 4, 16])
def test_the_mean_deviation_does_not_depend_on_the_number_of_samples(count):
    moments = PixelMoments()
    for seed in range(count):
        moments.add(3 * torch.randn(100, 200, generator=torch.Generator().manual_seed(seed)))
    assert float(moments.deviation.mean()) == pytest.approx(3, rel=0.02)


def test_crops_every_64_pixels():
    whole = image(200, 330)
    found = crops(whole)
    assert found.shape == (2 * 4, 3, 128, 128)
    assert torch.equal(found[5], whole[:, 64:192, 64:192])
    assert len(crops(image(127, 500))) == 0
    assert torch.equal(crops(whole[:1])[0], whole[:1, :128, :128].expand(3, -1, -1))


def test_frechet_distance_of_crops_grows_with_blur():
    """On the real features; of a set equal to its originals it is 0, and the halves' distance is that of their
    moments."""
    extract = load_extractors(None, torch.device("cpu"))["frechet"]
    clean = [scene(192, 192, seed) for seed in range(4)]
    distances, crossed = [], []
    originals = None
    for radius in (0, 1, 2):
        halves = SplitMoments()
        for place, pixels in enumerate(clean):
            blurred = np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
            halves.add_image(place, tensor_of(blurred)[0], extract)
        originals = originals or halves
        distances.append(originals.distance(halves))
        crossed.append(originals.cross_distance(halves))
    assert originals.count == 16
    assert distances[0] < 1e-3 * distances[1]
    assert distances[1] < distances[2]
    assert crossed[0] == pytest.approx(originals.floor)
    even, odd = (torch.cat([extract(crops(tensor_of(p)[0])) for p in clean[first::2]]) for first in (0, 1))
    assert even.shape == (8, 320)
    moments = [FeatureMoments(), FeatureMoments()]
    moments[0].add(even)
    moments[1].add(odd)
    assert originals.floor == pytest.approx(moments[0].distance(moments[1]), rel=1e-6)
    assert SplitMoments().floor is SplitMoments().distance(originals) is None
