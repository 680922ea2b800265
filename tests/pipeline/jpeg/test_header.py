"""Headers: read without decoding, told apart by kind, and broken ones refused with the reason."""

import io
import tracemalloc

import numpy as np
import pytest
from jpegs import edit, encode, insert, photograph, pillow_loads, pixels_of, segments, without
from PIL import Image

from kernels.coefficients import Subsampling
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.jpeg.errors import BitstreamError
from pipeline.jpeg.header import read_header
from pipeline.jpeg.metadata import Metadata

SOF0, DHT, SOS, DQT, DRI, APP0, APP1, APP2, APP14, COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
PLAIN = encode(photograph(37, 53), "4:2:2", 80)
ADOBE_RGB = b"Adobe\0\x64\0\0\0\0\0"


def test_a_header_says_what_the_encoder_was_told():
    header = read_header(encode(photograph(37, 53), "4:2:2", 80, restart_marker_blocks=7))
    assert (header.size, header.process, header.precision) == ((37, 53), "baseline", 8)
    assert [(c.horizontal, c.vertical, c.table) for c in header.components] == [(2, 1, 0), (1, 1, 1), (1, 1, 1)]
    assert (header.restart_interval, header.jfif, header.adobe_transform) == (7, True, None)
    assert header.first_scan == (0, 1, 2)
    quantization = Image.open(io.BytesIO(PLAIN)).quantization
    assert {selector: list(table) for selector, table in header.tables.items()} == quantization
    assert read_header(encode(photograph(9, 9), "gray", progressive=True)).process == "progressive"


def test_segments_are_the_header_without_application_data():
    decorated = insert(insert(PLAIN, APP1, b"x" * 60000), COM, b"\xff\xd8\xff\xda" * 9)
    header = read_header(decorated)
    assert header.segments == read_header(PLAIN).segments == without(PLAIN, APP0)[: len(header.segments)]
    assert header.segments[header.size_offset :][:4] == bytes((0, 37, 0, 53))
    assert decorated[header.scan_offset :] == PLAIN[read_header(PLAIN).scan_offset :]


def test_bytes_between_segments_are_skipped_as_other_decoders_do():
    start = next(start for code, start, _ in segments(PLAIN) if code == DQT)
    for junk in (b"\xff\xff\xff", b"junk", b"\xff\0", b"\xff\xd3", b"\xff\xe5\0\0", b"\xff\xfe\0\2"):
        padded = PLAIN[:start] + junk + PLAIN[start:]
        assert np.array_equal(pixels_of(padded), pixels_of(PLAIN))
        assert read_header(padded).segments == read_header(PLAIN).segments


@pytest.mark.parametrize("code", [SOF0, DHT, SOS, DQT, DRI])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 65535])
def test_wrong_lengths_are_refused(code, length):
    data = encode(photograph(20, 20), restart_marker_blocks=2)
    start = next(start for found, start, _ in segments(data) if found == code)
    wrong = data[: start + 2] + length.to_bytes(2, "big") + data[start + 4 :]
    if length == 2 and code in (DQT, DHT):
        wrong = insert(data, code, b"\xff\0")
    with pytest.raises(BitstreamError):
        read_header(wrong)


def test_broken_headers_are_refused_with_the_reason():
    files = {
        "table numbered 7": (edit(PLAIN, DQT, lambda payload: payload.__setitem__(0, 7)), "numbered 7"),
        "two frames": (insert(PLAIN, SOF0, bytes.fromhex("080010001001011100")), "two frame headers"),
        "no frame": (without(PLAIN, SOF0), "before any frame"),
        "unknown component": (edit(PLAIN, SOS, lambda payload: payload.__setitem__(1, 9)), "names component 9"),
        "reserved marker": (insert(PLAIN, 0xF3, b""), "marker ff f3"),
        "end of image first": (PLAIN[:2] + b"\xff\xd9" + PLAIN[2:], "end of image"),
        "sampling factor 0": (edit(PLAIN, SOF0, lambda payload: payload.__setitem__(7, 0x20)), "sampling factors"),
    }
    for name, (data, reason) in files.items():
        assert not pillow_loads(data), name
        with pytest.raises(BitstreamError, match=reason):
            read_header(data)


def test_a_header_costs_no_memory_whatever_size_it_claims():
    huge = PLAIN.replace(bytes((0, 37, 0, 53)), b"\xff\x00\xff\x00", 1)
    tracemalloc.start()
    assert read_header(huge).size == (65280, 65280)
    assert tracemalloc.get_traced_memory()[1] < 1e5
    tracemalloc.stop()


def test_metadata_is_carried_as_pillow_reads_it():
    profile, exif = np.random.default_rng(0).bytes(150_000), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data = encode(photograph(20, 20), icc_profile=profile, exif=exif, xmp=b"<x:xmpmeta/>", dpi=(300, 200))
    result, info = read_bitstream(data).metadata, Image.open(io.BytesIO(data)).info
    assert result.icc == profile and result.exif == info["exif"]
    assert result.xmp == info["xmp"] and result.dpi == info["dpi"]
    again = io.BytesIO()
    Image.fromarray(pixels_of(data)).save(again, "PNG", icc_profile=result.icc, exif=result.exif)
    assert Image.open(again).getexif()[0x0112] == 6
    chunks = [(start, end) for code, start, end in segments(data) if code == APP2]
    shuffled = data[: chunks[0][0]] + b"".join(data[a:b] for a, b in reversed(chunks)) + data[chunks[-1][1] :]
    assert read_bitstream(shuffled).metadata.icc == profile
    incomplete = data[: chunks[1][0]] + data[chunks[1][1] :]
    assert Image.open(io.BytesIO(incomplete)).info["icc_profile"] is None
    assert read_bitstream(incomplete).metadata.icc is None
    assert read_bitstream(PLAIN).metadata == Metadata()


def test_colour_space_is_guessed_as_libjpeg_does():
    plain = encode(photograph(20, 20), "4:4:4")
    offset = next(start for found, start, _ in segments(plain) if found == SOF0)
    with_both = insert(plain, APP14, ADOBE_RGB, offset)  # JFIF decides
    assert read_bitstream(with_both).coefficients.sampling is Subsampling.S444
    ycbcr = insert(without(plain, APP0), APP14, ADOBE_RGB[:-1] + b"\1")
    assert read_bitstream(ycbcr).coefficients.sampling is Subsampling.S444
