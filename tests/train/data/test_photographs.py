"""Photographs: JPEG and PNG, from tars, folders and files, in order; what cannot be read is named."""

import io
import tarfile
import warnings

import numpy as np
import pytest
import torch
from jpegs import encode, insert, photograph, pixels_of
from PIL import Image
from runs import corrupt_exif
from shards import clean_shard

from kernels import Subsampling
from pipeline.inputs.listing import SourceError
from train.data.photographs import Photographs, load_images
from train.measures import compress, psnr


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


def test_photographs_in_order_and_no_more_than_wanted(tmp_path):
    shard = clean_shard(tmp_path, [(136, 200), (200, 130), (60, 70)])
    assert [key for key, _ in Photographs(shard)] == ["0", "1", "2"]
    assert [key for key, _ in Photographs(shard, 2)] == ["0", "1"]
    ((_, gray),) = Photographs(write(tmp_path, "gray.jpg", encode(photograph(20, 30), "gray", 95)))
    assert gray.shape == (3, 15, 27)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"cut\.tar.*damaged"):
        list(Photographs(cut))


def test_jpegs_are_measured_off_their_own_grid(tmp_path):
    """Compressed again as it was, the rest of an image changes as others do. PNGs are whole, and so are images to train
    on."""
    jpeg = encode(photograph(72, 88), "4:2:0", 95)
    folder = write(tmp_path, "photos/a.jpg", jpeg).parent
    whole = torch.from_numpy(pixels_of(jpeg).copy()).permute(2, 0, 1)
    Image.fromarray(pixels_of(jpeg)).save(folder / "b.png")
    write(tmp_path, "photos/c.jpg", encode(photograph(8, 30)))
    found = dict(Photographs(folder))
    assert torch.equal(found["a"], whole[:, 5:, 3:])
    assert torch.equal(found["b"], whole)
    assert found["c"].shape == (3, 8, 30)
    assert torch.equal(load_images([str(folder)], 64)[0], whole)
    losses = [psnr(compress("", x, 95, Subsampling.S420).decoded, x) for x in (whole, found["a"])]
    assert losses[0] > losses[1] + 3


def png(pixels, mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_png_images_too_from_folders_shards_and_files(tmp_path, mode):
    picture = photograph(40, 50)
    path = write(tmp_path / "clean", "b/picture.PNG", png(picture, mode))
    write(tmp_path / "clean", "a.jpg", encode(photograph(60, 50)))
    with tarfile.open(tmp_path / "clean.tar", "w") as shard:
        shard.add(tmp_path / "clean", "clean")
    expected = np.asarray(Image.fromarray(picture).convert(mode).convert("RGB"))
    for place in (path, tmp_path / "clean", tmp_path / "clean.tar"):
        found = dict(Photographs(place))
        (key,) = (key for key in found if key.endswith("picture"))
        assert np.array_equal(found[key].permute(1, 2, 0), expected)
        assert len(found) == (1 if place == path else 2)


def test_a_png_that_cannot_be_read_is_named(tmp_path):
    deep, whole = io.BytesIO(), png(photograph(40, 50))
    Image.fromarray(np.full((40, 50), 40_000, np.uint16)).save(deep, "PNG")
    for name, damaged, reason in (
        ("deep", deep.getvalue(), "16-bit"),
        ("cut", whole[: len(whole) // 2], "truncated"),
        ("header", whole[:20] + bytes(20) + whole[40:], "header"),
    ):
        write(tmp_path, f"{name}/{name}.png", damaged)
        with pytest.raises(SourceError, match=rf"{name}\.png.*{reason}.*remove it"):
            list(Photographs(tmp_path / name))


def test_images_left_out_for_their_size_are_counted(tmp_path, capsys):
    for name, height in (("a", 20), ("b", 32), ("c", 31)):
        write(tmp_path, f"{name}.jpg", encode(photograph(height, 50)))
    assert len(load_images([str(tmp_path)], 32)) == 1
    assert "2 of 3 images are left out: smaller than 32x32 pixels" in capsys.readouterr().out
