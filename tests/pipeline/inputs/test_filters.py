"""Filters: which files they leave out, by name and by what the header says, and with which reason."""

import pickle
import shlex

import pytest
from jpegs import encode, photograph

from pipeline.inputs.filters import FilteredOut, Filters
from pipeline.jpeg.bitstream import Layout, parse
from pipeline.jpeg.errors import BitstreamError, JpegError


def layout(height: int = 40, width: int = 60, quality: int = 75) -> Layout:
    found = parse(encode(photograph(height, width), quality=quality))
    assert isinstance(found, Layout)
    return found


def reason(filters: Filters, source: str = "a.jpg", found: Layout | JpegError | None = None) -> str | None:
    result = filters.apply(found or layout(), filters.by_name(source))
    return str(result) if isinstance(result, FilteredOut) else None


@pytest.mark.parametrize("quality", [10, 50, 90, 96])
def test_quality_bounds_are_inclusive(quality):
    found = layout(quality=quality)
    assert reason(Filters(min_quality=quality, max_quality=quality), found=found) is None
    assert (
        reason(Filters(max_quality=quality - 1), found=found)
        == f"quality {quality} is above --max-quality {quality - 1}"
    )
    assert (
        reason(Filters(min_quality=quality + 1), found=found)
        == f"quality {quality} is below --min-quality {quality + 1}"
    )


def test_size_is_the_shorter_side():
    for size in ((40, 60), (60, 40)):
        assert reason(Filters(min_size=40), found=layout(*size)) is None
        assert "40 pixels is below --min-size 41" in str(reason(Filters(min_size=41), found=layout(*size)))


@pytest.mark.parametrize(
    ("source", "pattern", "matches"),
    [
        ("a.jpg", "*.jpg", True),
        ("deep/er/a.jpg", "a.*", True),
        ("shard.tar/a.jpg", "a.jpg", True),
        ("shard.tar/x/a.jpg", "shard.tar/*", True),
        ("thumbs/a.jpg", "thumbs/*", True),
        ("thumbs/a.jpg", "thumbs", False),
        ("a.jpg", "A.jpg", False),
        ("x[1].jpg", "x[[]1].jpg", True),
    ],
)
def test_patterns(source, pattern, matches):
    assert (reason(Filters(include=("none", pattern)), source) is None) == matches
    assert reason(Filters(exclude=("none", pattern)), source) == (
        f"in --exclude {shlex.quote(pattern)}" if matches else None
    )


def test_a_broken_file_stays_one_unless_its_name_leaves_it_out():
    broken = BitstreamError("cut")
    assert Filters(max_quality=10, min_size=9).apply(broken) is broken
    assert reason(Filters(exclude=("a.jpg",)), found=broken) == "in --exclude a.jpg"


def test_what_is_left_out_keeps_its_header_and_can_be_sent_to_a_process():
    found = layout()
    left = Filters(max_quality=10).apply(found)
    again = pickle.loads(pickle.dumps(left))
    assert str(again) == str(left) == "quality 75 is above --max-quality 10"
    assert again.layout.header.size == found.header.size


def test_only_what_differs_from_the_defaults_is_said():
    assert str(Filters()) == ""
    assert str(Filters(max_quality=90, exclude=("a", "b"))) == "max-quality 90, exclude a b"
    assert str(Filters(exclude=("a b",))) == "exclude 'a b'"
