"""Crops: from anywhere in the images, in all orientations, and the same ones whenever a step is taken again."""

import numpy as np
import torch

from train.data.crops import areas_of, random_crops, step_generator


def marked(height, width, offset=0):
    """An image whose pixels say where they are: (y, x, image) in the channels."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(np.stack([y, x, np.full_like(y, offset)]).astype(np.uint8))


def test_places_are_uniform_and_images_drawn_by_their_pixels():
    images = [marked(48, 80, 0), marked(96, 80, 1), marked(16, 16, 2)]
    crops = random_crops(images, 16, 6000, step_generator(0, 0))
    which = crops[:, 2, 0, 0]
    areas = torch.tensor([48.0 * 80, 96 * 80, 16 * 16])
    expected = 6000 * areas / areas.sum()
    assert ((which.bincount() - expected).abs() < 5 * expected.sqrt()).all()
    for number, (height, width) in enumerate([(48, 80), (96, 80)]):
        corners = crops[which == number].flatten(2).amin(2)
        for axis, places in ((0, height - 15), (1, width - 15)):
            counts = corners[:, axis].bincount(minlength=places).double()
            mean = counts.mean()
            assert len(counts) == places
            assert counts.min() > 0
            assert ((counts - mean).square() / mean).sum() < places + 5 * (2 * places) ** 0.5  # chi squared


def test_all_eight_orientations_occur_alike():
    image = torch.arange(256).reshape(1, 16, 16).expand(3, -1, -1).to(torch.uint8)
    turned = [image.rot90(turn, (1, 2)) for turn in range(4)]
    orientations = turned + [one.flip(2) for one in turned]
    crops = random_crops([image], 16, 1600, step_generator(1, 5))
    counts = [sum(torch.equal(crop, one) for crop in crops) for one in orientations]
    assert sum(counts) == 1600
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts)


def test_crops_are_a_pure_function_of_seed_and_step():
    images = [marked(60, 70), marked(64, 64, 1)]
    steps = [(seed, step) for seed in (0, 1, 2, 2**32 - 1) for step in (0, 1, 2, 1000)]
    first = [random_crops(images, 32, 8, step_generator(*one)) for one in steps]
    torch.manual_seed(99)
    again = [random_crops(images, 32, 8, step_generator(*one)) for one in reversed(steps)]
    assert all(torch.equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    assert not any(torch.equal(first[i], first[j]) for i in range(len(steps)) for j in range(i))


def test_kept_areas_change_no_crop():
    images = [marked(48, 80, 0), marked(96, 80, 1)]
    kept = areas_of(images)
    assert kept.tolist() == [48 * 80, 96 * 80]
    one, other = (random_crops(images, 16, 9, step_generator(2, 3), areas=areas) for areas in (None, kept))
    assert torch.equal(one, other)
