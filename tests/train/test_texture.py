"""Lattice and deviation in flat areas: against the definition window by window in NumPy, and on known noise."""

import numpy as np
import pytest
import torch

from train.texture import FlatTexture


def noise(height, width, deviation=3.0, seed=0):
    """[1, height, width] float64, gray levels."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, deviation, (1, height, width)))


def filtered(plane, kernel):
    """Along rows and columns, edges joined."""
    for dim in (0, 1):
        plane = sum(weight * plane.roll(shift, dim) for shift, weight in enumerate(kernel))
    return plane


def residual_of(*pairs):
    residual = FlatTexture()
    for image, mmse in pairs:
        residual.add(image, mmse)
    return residual


def flat(height=400, width=400):
    return torch.full((1, height, width), 128, dtype=torch.uint8)


def by_definition(pairs):
    """Windows, deviation, lattice and worst lattice of images [3, H, W]."""
    y, x = np.mgrid[:32, :32]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * y / 32)) * (0.5 - 0.5 * np.cos(2 * np.pi * x / 32))
    periodograms, variances = [], []
    for image, mmse in pairs:
        lumas = [np.tensordot([0.299, 0.587, 0.114], p.numpy().astype(np.float64), 1) for p in (image, mmse)]
        for top in range(0, image.shape[1] - 31, 16):
            for left in range(0, image.shape[2] - 31, 16):
                own, smooth = (luma[top : top + 32, left : left + 32] for luma in lumas)
                if smooth.std() < 4:
                    variances.append((own - smooth).var())
                    periodograms.append(np.abs(np.fft.fft2(hann * (own - smooth))) ** 2)
    power, ratios = np.mean(periodograms, axis=0), []
    for v in range(0, 32, 8):
        for u in range(0, 32, 8):
            near = [(dv, du) for dv in range(-4, 5) for du in range(-4, 5) if 2 <= np.hypot(dv, du) <= 3]
            around = np.median([power[(v + dv) % 32, (u + du) % 32] for dv, du in near])
            ratios += [power[v, u] / around] if (v, u) != (0, 0) else []
    assert len(ratios) == 15
    return len(variances), np.sqrt(np.mean(variances)), np.mean(ratios), max(ratios)


def test_the_figures_are_those_of_the_definition():
    """Two images, neither a multiple of the stride, partly flat: a ramp, and one side of an edge."""
    random = np.random.default_rng(1)
    pairs = []
    for height, width in ((75, 130), (97, 66)):
        y, x = np.mgrid[:height, :width]
        ramp = np.stack([120 + 0.2 * x, 90 + 0.3 * y, 200 - 0.2 * x]) + 60 * (y > 50)
        image = ramp + random.normal(0, 3, ramp.shape)
        pairs.append([torch.from_numpy(p.round().clip(0, 255).astype(np.uint8)) for p in (image, ramp)])
    residual, (windows, deviation, lattice, worst) = residual_of(*pairs), by_definition(pairs)
    assert 0 < windows < 4 * 7 + 5 * 3
    assert residual.windows == windows
    assert residual.deviation == pytest.approx(deviation, rel=1e-9)
    assert residual.lattice == pytest.approx(lattice, rel=1e-9)
    assert residual.lattice_worst == pytest.approx(worst, rel=1e-9)


def test_white_noise_has_no_lattice_and_its_own_deviation():
    residual = residual_of((flat() + noise(400, 400), flat()))
    assert residual.windows == 24 * 24
    assert residual.deviation == pytest.approx(3, rel=0.02)
    assert residual.lattice == pytest.approx(1, abs=0.1)
    assert residual.lattice_worst < 1.4


def test_noise_of_a_coarser_grid_has_a_lattice_and_smooth_noise_has_none():
    """One 4x4 pattern painted with strengths that change slowly, as a network does that shuffles pixels; and a blur,
    whose spectrum is far from white but has no peaks."""
    strengths, patch = filtered(noise(100, 100)[0], [0.2] * 5), noise(4, 4, 1, seed=1)[0]
    painted = residual_of((flat() + torch.kron(strengths, patch), flat()))
    assert painted.lattice > 3
    assert painted.lattice_worst > 10
    natural = residual_of((flat() + filtered(noise(400, 400)[0], [0.15, 0.7, 0.15]), flat()))
    assert natural.lattice < 1.2
    hidden = residual_of((flat() + torch.kron(strengths, patch) + 20 * noise(400, 400), flat()))
    assert hidden.lattice < 1.2


def test_a_repeated_pattern_is_found_at_its_frequency():
    """A cosine along x with a period of 4 pixels: (0, 1/4) and (0, 3/4), which are places 0 and 2 of the spectrum."""
    wave = torch.cos(torch.arange(400, dtype=torch.float64) * torch.pi / 2)
    spectrum = residual_of((flat() + noise(400, 400) + wave, flat())).spectrum
    assert sorted(spectrum.topk(2).indices.tolist()) == [0, 2]
    assert spectrum.topk(2).values.min() > 5
    assert spectrum.topk(3).values.min() < 1.4


def test_texture_does_not_depend_on_amplitude_brightness_or_direction():
    first, second = noise(96, 160), noise(64, 48, seed=1)
    pairs = [(flat(96, 160) + first, flat(96, 160)), (flat(64, 48) + second, flat(64, 48))]
    residual = residual_of(*pairs)
    louder = residual_of(*((mmse + 2 * (image - mmse) - 50, mmse - 50.0) for image, mmse in pairs))
    assert louder.deviation == pytest.approx(2 * residual.deviation)
    turned = residual_of(*((image.mT, mmse.mT) for image, mmse in pairs))
    for other in (louder, turned, residual_of(*pairs[::-1])):
        assert other.lattice == pytest.approx(residual.lattice)
        assert other.lattice_worst == pytest.approx(residual.lattice_worst)
    assert turned.deviation == pytest.approx(residual.deviation)


def test_gray_and_rgb_images_of_one_luma_have_the_same_texture():
    image, mmse = flat(64, 64) + noise(64, 64), flat(64, 64)
    gray, colour = residual_of((image, mmse)), residual_of((image.expand(3, -1, -1), mmse.expand(3, -1, -1)))
    assert colour.lattice == pytest.approx(gray.lattice)
    assert colour.deviation == pytest.approx(gray.deviation)


def test_where_nothing_is_flat_there_are_no_figures():
    busy = flat(64, 64) + noise(64, 64, deviation=20)
    for residual in (residual_of(), residual_of((busy, busy)), residual_of((flat(31, 500), flat(31, 500)))):
        assert residual.windows == 0
        assert residual.deviation is residual.lattice is residual.lattice_worst is None
    same = residual_of((flat(64, 64), flat(64, 64)))
    assert (same.windows, same.deviation, same.lattice) == (9, 0, None)
