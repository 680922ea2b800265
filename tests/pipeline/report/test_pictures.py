"""Crops: where before and after differ most, within a budget of bytes, lossless."""

from pathlib import Path

import numpy as np
import pytest
from jpegs import encode, photograph
from reports import page_of, rgb
from runs import fill, run

from pipeline.outputs.manifest import read_records
from pipeline.report.gallery import make_gallery
from pipeline.report.pictures import as_rgb, choose_box, deviation
from pipeline.report.statistics import Selection


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (40, 3000), (3000, 10), (65, 257)])
@pytest.mark.parametrize("limit", [256, 4000, 30_000])
def test_a_crop_is_where_the_images_differ_most(size, limit):
    before = photograph(*size)
    after = before.copy()
    y, x = size[0] * 2 // 3, size[1] // 4
    after[y : y + 8, x : x + 8] ^= 128
    box = choose_box(before, after, limit)
    assert box.height * box.width <= max(limit, 16 * min(16, *size))
    assert 0 <= box.top <= size[0] - box.height
    assert 0 <= box.left <= size[1] - box.width
    assert box.top <= y + 8
    assert y < box.top + box.height
    assert box.left <= x + 8
    assert x < box.left + box.width
    assert box.of(before).shape[:2] == (box.height, box.width)


def test_deviation_is_zero_where_samples_agree_and_of_its_size_elsewhere():
    one = photograph(40, 60)
    other = one.copy()
    other[:20] ^= 8  # by 8 gray levels: a standard deviation of 8 / sqrt(2)
    colours, top = deviation([one, other])
    assert top == 8
    assert (colours[20:] == (0, 0, 4)).all()
    assert (colours[:20] == colours[0, 0]).all()
    assert colours[0, 0].sum() > 200


def test_sixteen_bits_and_gray_become_eight_and_rgb():
    assert as_rgb(np.array([[0, 257, 65535]], np.uint16)).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    with pytest.raises(ValueError, match="not an image"):
        as_rgb(np.zeros((3, 3, 2), np.uint8))
    with pytest.raises(ValueError, match="not an image"):
        as_rgb(np.zeros((3, 3)))


@pytest.mark.parametrize("samples", [1, 3])
def test_large_images_are_cropped_to_the_budget(tmp_path, weights, samples):
    files = {f"{n}.jpg": encode(photograph(300, 400, n), quality=20) for n in range(3)}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    run(source, out, "--weights", weights[1], "--samples", str(samples))
    selection = Selection(3)
    for record in read_records(out):
        selection.note(record)
    budget = 300_000
    exhibits, skipped = make_gallery(out, [source], selection.chosen(), budget)
    assert not skipped
    assert len(exhibits) == 3
    urls = [p.url for e in exhibits for p in (e.before, *e.after, e.deviation, e.overview) if p is not None]
    assert budget / 2 < sum(map(len, urls)) * 3 / 4 <= budget * 1.01
    for exhibit in exhibits:
        assert exhibit.cropped
        assert exhibit.overview is not None
        assert (exhibit.deviation is not None) == (samples > 1)
        assert exhibit.box.height * exhibit.box.width > 2000


def test_crop_shows_the_files_pixels_and_where_they_are(tmp_path, weights):
    data = encode(photograph(1000, 1500), quality=20)
    run(fill(tmp_path / "in", {"a.jpg": data}), tmp_path / "out", "--weights", weights[0])
    exhibit = page_of(tmp_path / "out").exhibit("a")
    assert "Shown is a crop of" in exhibit.text
    assert exhibit.images["overview"][0].shape[1] == 176
    shown, whole = exhibit.before, rgb(data)
    height, width = shown.shape[:2]
    assert 500_000 < height * width <= 1 << 20
    places = [
        (top, left)
        for top in range(1000 - height + 1)
        for left in range(1500 - width + 1)
        if np.array_equal(whole[top, left : left + 40], shown[0, :40])
    ]
    ((top, left),) = places
    assert np.array_equal(whole[top : top + height, left : left + width], shown)
    after = rgb(Path(tmp_path / "out" / "a.png").read_bytes())
    assert np.array_equal(after[top : top + height, left : left + width], exhibit.images["after"][0])
