"""EXIF's orientation is what Pillow takes it for, and nothing else in EXIF changes."""

import io
from struct import pack

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.jpeg.orientation import exchanges_sides, orientation_of, turn_back, turn_upright, without_orientation

ORIENTATION = 0x0112


def exif_of(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F], tags[ORIENTATION], tags[0x8769] = "maker", orientation, {0x829A: 0.01}
    return tags.tobytes()


def big_endian(orientation: int, kind: int = 3, count: int = 1) -> bytes:
    return b"Exif\0\0MM\0*" + pack(">IHHHIHHI", 8, 1, ORIENTATION, kind, count, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (4, 4, 3)])
def test_images_are_turned_as_pillow_turns_them(orientation, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    exif = exif_of(orientation)
    assert orientation_of(exif) == orientation_of(exif.removeprefix(b"Exif\0\0")) == orientation
    stored = Image.fromarray(image)
    stored.info["exif"] = exif
    upright = turn_upright(image, orientation)
    assert np.array_equal(upright, np.asarray(ImageOps.exif_transpose(stored)))
    assert np.array_equal(turn_back(upright, orientation), image)
    assert exchanges_sides(orientation) == (orientation > 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_only_the_orientation_changes(orientation):
    for exif in (exif_of(orientation), big_endian(orientation)):
        changed = without_orientation(exif)
        assert orientation_of(changed) == 1
        assert sum(a != b for a, b in zip(exif, changed, strict=True)) == (orientation != 1)
    tags = Image.Exif()
    tags.load(without_orientation(exif_of(orientation)))
    assert (tags[0x010F], tags[ORIENTATION], tags.get_ifd(0x8769)[0x829A]) == ("maker", 1, pytest.approx(0.01))


def test_what_is_no_valid_orientation_is_upright_and_stays():
    whole = exif_of(6)
    odd = [
        b"",
        b"Exif\0\0",
        b"text",
        b"II*\0",
        big_endian(0),
        big_endian(9),
        big_endian(6, kind=2),
        big_endian(6, count=2),
    ]
    odd += [b"Exif\0\0II*\0\xff\xff\xff\xff", Image.Exif().tobytes()]
    for exif in odd:
        assert orientation_of(exif) == 1
        assert without_orientation(exif) == exif
    assert orientation_of(None) == 1
    for end in range(len(whole)):
        cut = whole[:end]
        assert orientation_of(cut) in (1, 6)
        assert orientation_of(without_orientation(cut)) == 1


def test_pillow_reads_the_big_endian_file():
    image = Image.new("L", (3, 2))
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=big_endian(6))
    with Image.open(stream) as loaded:
        assert loaded.getexif()[ORIENTATION] == 6
