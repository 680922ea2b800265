"""Crops: from anywhere in the images, in all orientations, and the same ones whenever a step is taken again."""

import tarfile
import warnings

import numpy as np
import pytest
import torch
from jpegs import encode, insert, photograph, pixels_of
from runs import corrupt_exif

from pipeline.inputs.listing import SourceError
from train.data.crops import areas_of, load_images, random_crops, step_generator


def marked(height, width, offset=0):
    """An image whose pixels say where they are: (y, x, image) in the channels."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(np.stack([y, x, np.full_like(y, offset)]).astype(np.uint8))


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_images_come_from_folders_shards_and_files_and_small_ones_are_left_out(tmp_path):
    large, gray, small = photograph(40, 50), photograph(48, 32, 1), photograph(16, 90, 2)
    for name, data in (("a/b.jpg", encode(large)), ("g.jpeg", encode(gray, "gray")), ("s.jpg", encode(small))):
        write(tmp_path / "photos", name, data)
    with tarfile.open(tmp_path / "photos.tar", "w") as shard:
        shard.add(tmp_path / "photos", "photos")
    for paths in (["photos"], ["photos.tar"], ["photos/a/b.jpg", "photos/g.jpeg"]):
        images = load_images([str(tmp_path / path) for path in paths], 32)
        assert sorted(tuple(image.shape) for image in images) == [(3, 40, 50), (3, 48, 32)]
        assert all(image.dtype == torch.uint8 for image in images)
        assert any(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) for image in images)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    data = encode(photograph(64, 64))
    for name, damaged in (("cut.jpg", data[: len(data) // 2]), ("text.jpg", b"text"), ("empty.jpg", b"")):
        folder = tmp_path / name.removesuffix(".jpg")
        write(folder, "whole.jpg", data)
        write(folder, f"deep/{name}", damaged)
        with pytest.raises(SourceError, match=f"deep/{name}"):
            load_images([str(folder)], 16)


def test_corrupt_metadata_of_an_image_warn_nobody(tmp_path):
    """EXIF, and the index of a multi-picture file."""
    data = encode(photograph(40, 50), exif=corrupt_exif())
    damaged = insert(data, 0xE2, b"MPF\0" + corrupt_exif()[6:])
    write(tmp_path, "a.jpg", damaged)
    with pytest.warns(UserWarning):
        expected = pixels_of(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image,) = load_images([str(tmp_path)], 16)
    assert np.array_equal(image.permute(1, 2, 0), expected)


def test_nothing_to_train_on_is_an_error_that_says_where(tmp_path):
    path = write(tmp_path, "small.jpg", encode(photograph(40, 90)))
    with pytest.raises(SourceError, match=r"64x64.*small\.jpg"):
        load_images([str(path)], 64)
    with pytest.raises(SourceError, match="nowhere"):
        load_images([str(tmp_path / "nowhere")], 16)


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
