"""The sliced Wasserstein distance of patches: against NumPy and closed forms, and on blurred scenes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scenes import scene, tensor_of

from train import wasserstein
from train.wasserstein import LEVELS, PatchSet, pyramid, sliced_wasserstein

SIZES = ((60, 91), (48, 50), (25, 40))


@pytest.fixture(scope="module")
def scenes():
    return [scene(*size, seed) for seed, size in enumerate(SIZES)]


def patches_of(images):
    patches = PatchSet()
    for place, image in enumerate(images):
        patches.add(place, image)
    return patches


def tensors(scenes, change=lambda picture: picture):
    return [tensor_of(np.array(change(Image.fromarray(pixels))))[0] for pixels in scenes]


def points(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def blurred(plane):
    """Rows, then columns, of a float64 plane; the edges reflected without repeating them."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    for _ in range(2):
        padded = np.pad(plane, ((2, 2), (0, 0)), mode="reflect")
        plane = sum(weight * padded[k : k + len(plane)] for k, weight in enumerate(kernel)).T
    return plane


def test_the_pyramid_is_burts_and_adelsons():
    """Of each plane by itself; odd sizes too. Its levels add up to the image."""
    image = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (3, 45, 38))).float()
    levels = pyramid(image)
    assert [level.shape[1:] for level in levels] == [(45, 38), (23, 19), (12, 10)]
    for channel in range(3):
        plane = image[channel].numpy().astype(np.float64)
        for level in levels[:-1]:
            small = blurred(plane)[::2, ::2]
            enlarged = np.zeros_like(plane)
            enlarged[::2, ::2] = small
            assert np.allclose(level[channel], plane - 4 * blurred(enlarged), atol=1e-3)
            plane = small
        assert np.allclose(levels[-1][channel], plane, atol=1e-3)
    for level in pyramid(torch.full((1, 30, 41), 77.0))[:-1]:
        assert level.abs().max() < 1e-4


def test_the_distance_is_numpys(scenes, monkeypatch):
    """Of the kept patches: normalised by the originals, projected, sorted, averaged."""
    monkeypatch.setattr(wasserstein, "PATCHES", 100)
    first, second = (patches_of(tensors(scenes, c)) for c in (lambda p: p, lambda p: p.filter(ImageFilter.BoxBlur(1))))
    total = 0
    for level, pair in enumerate(zip(first._stacked(), second._stacked(), strict=True)):
        originals, others = (patches.numpy().astype(np.float64) for patches in pair)
        assert originals.shape == (300, 3, 7, 7)
        mean, deviation = (f(originals, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
        directions = points(wasserstein.DIRECTIONS, 3 * 7 * 7, wasserstein.SEED + level).numpy().astype(np.float64)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        sides = [((p - mean) / deviation).reshape(300, -1) @ directions.T for p in (originals, others)]
        total += np.abs(np.sort(sides[0], axis=0) - np.sort(sides[1], axis=0)).mean()
    assert first.distance(second) == pytest.approx(1000 * total / LEVELS, rel=1e-4)


def test_known_distances_along_every_direction():
    """A set turned over is the same set; a shift by s is seen as |s·d|, of one dimension as s."""
    x = points(500, 20, 0)
    assert sliced_wasserstein(x, x.flip(0), 5) < 1e-6
    assert sliced_wasserstein(x[:, :1], x[:, :1] + 0.7, 5) == pytest.approx(0.7, rel=1e-4)
    shift = points(1, 20, 1)
    directions = torch.nn.functional.normalize(points(wasserstein.DIRECTIONS, 20, 5))
    assert sliced_wasserstein(x, x + shift, 5) == pytest.approx(float((directions @ shift.T).abs().mean()), rel=1e-4)
    assert sliced_wasserstein(x[:, :1], 3 * x[:, :1], 5) == pytest.approx(2 * float(x[:, 0].abs().mean()), rel=0.1)


def test_equal_sets_are_at_0_and_blur_and_noise_grow(scenes):
    originals = patches_of(tensors(scenes))
    assert originals.distance(patches_of(tensors(scenes))) == 0
    blurs = [patches_of(tensors(scenes, lambda p, r=r: p.filter(ImageFilter.GaussianBlur(r)))) for r in (0.5, 1, 2)]
    distances = [originals.distance(blur) for blur in blurs]
    assert 0 < distances[0] < distances[1] < distances[2]
    random = np.random.default_rng(0)
    noises = [random.normal(0, 1, (*size, 3)) for size in SIZES]
    louder = []
    for amplitude in (5, 20):
        noisy = [p + amplitude * n for p, n in zip(scenes, noises, strict=True)]
        louder.append(originals.distance(patches_of([tensor_of(p)[0] for p in noisy])))
    assert 0 < louder[0] < louder[1]


def test_brightness_and_scale_do_not_count(scenes):
    """They are the normalisation's, where both sets share them."""
    images = [image.float() for image in tensors(scenes)]
    changed = [image.float() for image in tensors(scenes, lambda p: p.filter(ImageFilter.BoxBlur(1)))]
    distance = patches_of(images).distance(patches_of(changed))
    brighter = [[0.5 * image + 30 for image in set_] for set_ in (images, changed)]
    assert patches_of(brighter[0]).distance(patches_of(brighter[1])) == pytest.approx(distance, rel=1e-3)


def test_a_large_set_keeps_a_bounded_number_of_patches(scenes, monkeypatch):
    """The same ones of each image as a small set, but fewer."""
    monkeypatch.setattr(wasserstein, "PATCHES", 64)
    monkeypatch.setattr(wasserstein, "MAX_PATCHES", 200)
    images = [image for image in tensors(scenes) for _ in range(3)]
    counts = [sum(map(len, patches_of(images[:count])._levels[0])) for count in range(10)]
    assert counts == [0, 64, 128, 192, 128, 160, 192, 112, 128, 144]
    few, many = patches_of(images[:2]), patches_of(images)
    for ours, theirs in zip(few._levels, many._levels, strict=True):
        for place in range(2):
            assert torch.equal(ours[place][:16], theirs[place])
    assert many.distance(patches_of(images)) == 0


def test_gray_images_and_small_ones():
    gray = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 40), np.uint8))
    assert patches_of([gray]).distance(patches_of([gray // 2])) > 0
    small = gray[:, :24]
    assert patches_of([small]).distance(patches_of([small])) is None
    with_small = patches_of([gray, small])
    assert with_small.distance(patches_of([gray])) == 0
    flat = torch.full((1, 30, 30), 9.0)
    assert patches_of([flat]).distance(patches_of([flat])) == 0
    for other in (patches_of([gray, gray]), patches_of([gray.expand(3, -1, -1)]), patches_of([])):
        with pytest.raises(ValueError, match="expected the same shape"):
            with_small.distance(other)
