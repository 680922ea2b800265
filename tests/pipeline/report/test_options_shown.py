"""Runs of several inputs, of 16 bits, between regression and sample, and with filters, as their reports show them."""

import numpy as np
from jpegs import encode, photograph
from reports import page_of
from runs import fill, weights
from shards import write_tar

from pipeline import restore

__all__ = ["weights"]


def test_several_inputs_are_found_again(tmp_path, weights):
    data = [encode(photograph(40, 50, number), quality=20) for number in range(4)]
    fill(tmp_path, {"x/a.jpg": data[0], "y/a.jpg": data[1], "one.jpg": data[2]})
    write_tar(tmp_path / "s.tar", {"d.jpg": data[3]})
    inputs = [str(tmp_path / name) for name in ("x", "y", "one.jpg", "s.tar")]
    out = tmp_path / "out"
    assert restore.main([*inputs, "--output-dir", str(out), "--weights", weights[0], "--quiet", "--report"]) == 0
    page = page_of(out)
    assert sorted(exhibit.key for exhibit in page.exhibits) == ["d", "one", "x/a", "y/a"]
    assert "cannot be read" not in page.words


def test_one_input_that_is_gone_leaves_the_others_in_the_gallery(tmp_path, weights):
    for name in ("x", "y"):
        fill(tmp_path, {f"{name}/a.jpg": encode(photograph(40, 50), quality=20)})
    out = tmp_path / "out"
    inputs = [str(tmp_path / name) for name in ("x", "y")]
    assert restore.main([*inputs, "--output-dir", str(out), "--weights", weights[0], "--quiet"]) == 0
    (tmp_path / "x" / "a.jpg").unlink()
    (tmp_path / "x").rmdir()
    page = page_of(out)
    assert [exhibit.key for exhibit in page.exhibits] == ["y/a"]
    assert "x/a.jpg: the input cannot be read any more" in page.words


def test_16_bits_have_an_excess_in_place_of_a_certificate(tmp_path, weights):
    source, out = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 50), quality=20)}), tmp_path / "out"
    options = ["--weights", weights[1], "--quiet", "--report", "--format", "png16", "--strength", "0.5"]
    assert restore.main([str(source), "--output-dir", str(out), *options]) == 0
    page = page_of(out)
    exhibit = page.exhibit("a")
    assert "Largest excess" in exhibit.text
    assert "Mismatches" not in exhibit.text
    assert "strength 0.5" in exhibit.text
    assert "16-bit images have no certificate" in page.words
    assert "compresses to exactly the coefficients" not in page.words
    difference = exhibit.before.astype(int) - exhibit.images["after"][0]
    assert 0 < np.abs(difference).mean() < 30


def test_reasons_of_filters_are_counted_together(tmp_path, weights):
    files = {f"{q}.jpg": encode(photograph(40, 50), quality=q) for q in (20, 91, 95, 97)}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    options = ["--weights", weights[0], "--quiet", "--max-quality", "90", "--passed-through", "skip", "--report"]
    assert restore.main([str(source), "--output-dir", str(out), *options]) == 0
    words = page_of(out).words
    assert "1 restored, 3 passed through" in words
    assert "3 quality … is above --max-quality …" in words
    assert "filters max-quality 90, passed-through skip" in words
