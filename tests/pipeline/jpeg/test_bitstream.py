"""Coefficients are exactly the file's; whatever Pillow loads is read or named; nothing ends the process."""

import ast
import io
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jpeglib
import jpegs
import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, edit, encode, insert, mutate, one_scan_each, photograph, pillow_loads, segments, without
from PIL import Image

from kernels.tables import dct_basis, quality_to_tables
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.header import read_header

SIZES = [(1, 1), (8, 8), (16, 16), (17, 31), (50, 33), (64, 9)]
SOF0, DHT, EOI, SOS, DQT, DNL = 0xC0, 0xC4, 0xD9, 0xDA, 0xDB, 0xDC
PLAIN = encode(photograph(64, 80), "4:2:0")
PROGRESSIVE = encode(photograph(64, 80), "4:2:0", progressive=True)
SCAN_OF_3, SCAN_OF_2 = bytes.fromhex("ffda 000c 03 0100 0211 0311"), bytes.fromhex("ffda 000a 02 0100 0211")
ADOBE_RGB = b"Adobe\0\x64\0\0\0\0\0"


def same(one: Bitstream, other: Bitstream) -> bool:
    return one.coefficients.mismatches(other.coefficients).item() == 0 and torch.equal(
        one.coefficients.tables, other.coefficients.tables
    )


def decoded_planes(bitstream: Bitstream) -> np.ndarray:
    """[height, width, components] float64: the inverse DCT in double precision, for planes of the image's own size."""
    c, basis = bitstream.coefficients, dct_basis(torch.float64)
    planes = []
    for component, plane in enumerate(c.planes):
        blocks = basis.T @ (plane[0].double() * c.tables[0, component]) @ basis + 128
        planes.append(blocks.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[: c.size[0], : c.size[1]])
    return torch.stack(planes, dim=-1).clamp(0, 255).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", ["gray", "4:4:4"])
def test_pixels_from_the_coefficients_are_those_that_pillow_decodes(sampling, size):
    data = encode(photograph(*size), sampling, 80)
    image = Image.open(io.BytesIO(data))
    image.draft("YCbCr" if sampling == "4:4:4" else "L", size)  # no colour conversion: planes compare directly
    pixels = np.asarray(image).reshape(*size, -1)
    assert np.abs(decoded_planes(read_bitstream(data)) - pixels).max() <= 1.0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", ["gray", *SAMPLINGS])
def test_planes_and_tables_are_those_of_jpeglib_and_padding_is_zero(sampling, size, tmp_path):
    data = encode(photograph(*size), sampling, 60)
    (tmp_path / "a.jpg").write_bytes(data)
    with jpeglib.version("turbo210"):
        reference = jpeglib.read_dct(str(tmp_path / "a.jpg"))
        expected = [plane for plane in (reference.Y, reference.Cb, reference.Cr) if plane is not None]
    c = read_bitstream(data).coefficients
    assert (c.sampling.label, c.size) == (sampling, size)
    c.check_values()
    for component, plane in enumerate(expected):
        rows, columns = c.sampling.true_blocks(component, size)
        assert plane.shape == (rows, columns, 8, 8)
        assert np.array_equal(c.planes[component][0, :rows, :columns], plane)
        assert np.array_equal(c.tables[0, component], reference.get_component_qt(component))
    assert torch.equal(c.tables[0], quality_to_tables(60, len(expected)))


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("sampling", ["gray", "4:4:4", "4:2:2", "4:2:0"])
def test_how_the_coefficients_are_coded_does_not_matter(sampling, options):
    pixels = photograph(75, 93)
    plain, other = (read_bitstream(encode(pixels, sampling, 70, **o)) for o in ({}, options))
    assert same(plain, other)
    assert (plain.progressive, other.progressive) == (False, options == {"progressive": True})


def planes_for(sampling: str, height: int = 37, width: int = 43) -> list[np.ndarray]:
    vertical, horizontal = 1 + (sampling in ("4:4:0", "4:2:0")), 1 + (sampling in ("4:2:2", "4:2:0"))
    chroma = -(-height // vertical), -(-width // horizontal)
    return [photograph(*size, seed)[..., 0] for seed, size in enumerate(((height, width), chroma, chroma))]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_table_holds_from_a_components_first_scan_on_though_defined_anew_later(sampling, options):
    planes, qualities = planes_for(sampling), [40, 60, 90]
    data = one_scan_each(planes, sampling, qualities, number=2, **options)
    assert pillow_loads(data)
    c = read_bitstream(data).coefficients
    c.check_values()
    assert c.sampling.label == sampling
    for component, (plane, quality) in enumerate(zip(planes, qualities, strict=True)):
        gray = read_bitstream(encode(plane, "gray", quality)).coefficients
        rows, columns = c.sampling.true_blocks(component, c.size)
        assert torch.equal(c.planes[component][:, :rows, :columns], gray.planes[0])
        assert torch.equal(c.tables[0, component], gray.tables[0, 0])


def test_each_component_has_the_table_that_its_selector_names():
    tables = [[2 + i for i in range(64)], [70 + 2 * i for i in range(64)], [30 + 3 * i for i in range(64)]]
    data = encode(photograph(40, 40), qtables=tables)
    found = Image.open(io.BytesIO(data)).quantization
    assert len({tuple(table) for table in found.values()}) == 3
    assert read_bitstream(data).coefficients.tables[0].flatten(1).tolist() == [found[i] for i in range(3)]


def test_tables_may_have_16_bits_and_the_last_definition_before_the_scan_counts():
    sixteen = b"\x10" + b"".join((120 * step).to_bytes(2, "big") for step in range(1, 65))
    sos = next(start for code, start, _ in segments(PLAIN) if code == SOS)
    data = insert(PLAIN, DQT, sixteen, sos)
    assert pillow_loads(data)
    tables, before = read_bitstream(data).coefficients.tables[0], read_bitstream(PLAIN).coefficients.tables[0]
    assert tables[0].flatten().tolist() == Image.open(io.BytesIO(data)).quantization[0]
    assert tables[0, 0, 1] == 240 and tables[0, 1, 0] == 360 and tables[0, 7, 7] == 7680
    assert torch.equal(tables[1:], before[1:])


def test_steps_that_libjpeg_turbo_cannot_encode_with_are_not_modelled():
    sos = next(start for code, start, _ in segments(PLAIN) if code == SOS)
    with pytest.raises(UnsupportedJpeg, match="8192"):
        read_bitstream(insert(PLAIN, DQT, b"\x10" + (8192).to_bytes(2, "big") * 64, sos))
    read_bitstream(insert(PLAIN, DQT, b"\x10" + (8191).to_bytes(2, "big") * 64, sos))


@pytest.mark.parametrize(
    ("sampling", "factors", "label"),
    [
        ("4:4:4", (0x22, 0x22, 0x22), "4:4:4"),
        ("4:4:4", (0x31, 0x31, 0x31), "4:4:4"),
        ("4:2:2", (0x22, 0x12, 0x12), "4:2:2"),
        ("4:2:2", (0x41, 0x21, 0x21), "4:2:2"),
        ("4:4:0", (0x22, 0x21, 0x21), "4:4:0"),
        ("4:2:0", (0x44, 0x22, 0x22), "4:2:0"),
    ],
)
def test_sampling_factors_count_by_their_ratio(sampling, factors, label):
    data = one_scan_each(planes_for(sampling), sampling, [50, 50, 50])

    def change(payload):
        payload[7::3] = bytes(factors)

    scaled = edit(data, SOF0, change)
    assert pillow_loads(scaled)
    result = read_bitstream(scaled)
    assert result.coefficients.sampling.label == label
    assert same(result, read_bitstream(data))


@pytest.mark.parametrize("factors", [0x22, 0x41, 0x13])
def test_gray_is_gray_whatever_its_sampling_factors(factors):
    data = encode(photograph(30, 45), "gray")
    scaled = edit(data, SOF0, lambda payload: payload.__setitem__(7, factors))
    assert same(read_bitstream(scaled), read_bitstream(data))


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def arithmetic(tmp_path: Path) -> bytes:
    source, target = tmp_path / "huffman.jpg", tmp_path / "arithmetic.jpg"
    source.write_bytes(encode(photograph(30, 30)))
    with jpeglib.version("turbo210"):
        jpeg = jpeglib.read_dct(str(source))
        jpeg.load()
        jpeg.write_dct(str(target), flags=["ARITH_CODE"])
    return target.read_bytes()


def with_frame(data: bytes, code: int) -> bytes:
    offset = next(start for found, start, _ in segments(data) if found == SOF0)
    return data[: offset + 1] + bytes([code]) + data[offset + 2 :]


def unsupported_kinds(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    photo = photograph(40, 50)
    plain, image = encode(photo, "4:4:4"), Image.fromarray(photo)

    def factors(*values):
        return edit(plain, SOF0, lambda payload: payload.__setitem__(slice(7, None, 3), bytes(values)))

    start, end = next((start, end) for code, start, end in segments(plain) if code == SOF0)
    frame = plain[start + 4 : end]
    two = insert(plain[:start] + plain[end:], SOF0, frame[:5] + b"\2" + frame[6:12], start)
    return {
        "CMYK": (saved(image.convert("CMYK")), "4 colour components"),
        "RGB identifiers": (saved(image, keep_rgb=True), "RGB"),
        "Adobe RGB": (insert(without(plain, 0xE0), 0xEE, ADOBE_RGB), "RGB"),
        "two components": (two.replace(SCAN_OF_3, SCAN_OF_2), "2 colour components"),
        "4:1:1": (factors(0x41, 0x11, 0x11), "sampling factors 4x1, 1x1, 1x1"),
        "unequal chroma": (factors(0x22, 0x21, 0x11), "sampling factors"),
        "chroma finer than luma": (factors(0x11, 0x21, 0x21), "sampling factors"),
        "arithmetic": (arithmetic(tmp_path), "arithmetic"),
        "12 bits": (edit(plain, SOF0, lambda payload: payload.__setitem__(0, 12)), "12-bit"),
        "lossless": (with_frame(plain, 0xC3), "lossless"),
        "hierarchical": (with_frame(plain, 0xC5), "hierarchical"),
    }


def test_valid_kinds_that_are_not_modelled_are_named(tmp_path):
    for name, (data, reason) in unsupported_kinds(tmp_path).items():
        with pytest.raises(UnsupportedJpeg, match=reason):
            read_bitstream(data)
        assert read_header(data).size in ((40, 50), (30, 30)), name


def broken_files() -> dict[str, tuple[bytes, str]]:
    scan = read_header(PLAIN).scan_offset
    png = io.BytesIO()
    Image.fromarray(photograph(9, 9)).save(png, "PNG")

    def size(height, width):
        field = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return edit(PLAIN, SOF0, lambda payload: payload.__setitem__(slice(1, 5), field))

    def twelve_codes_of_one_bit(payload):
        payload[1:17] = bytes([12] + [0] * 15)

    return {
        "empty": (b"", "empty"),
        "one byte": (b"\xff", "truncated"),
        "text": (b"hello, this is not an image\n", "not a JPEG"),
        "png": (png.getvalue(), "PNG file"),
        "only SOI": (b"\xff\xd8\xff", "truncated"),
        "100 bytes": (PLAIN[:100], "truncated"),
        "half": (PLAIN[: len(PLAIN) // 2], "truncated"),
        "last 10 bytes missing": (PLAIN[:-10], "truncated"),
        "no end of image": (PLAIN[:-2], "truncated"),
        "half an end of image": (PLAIN[:-1], "truncated"),
        "progressive, half": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
        "progressive, no end of image": (PROGRESSIVE[:-2] + bytes(100), "truncated"),
        "header only": (PLAIN[:scan], "truncated"),
        "no components": (edit(PLAIN, SOF0, lambda payload: payload.__setitem__(5, 0)), "wrong length"),
        "no height": (size(0, 80), "80x0"),
        "height by DNL": (insert(size(0, 80), DNL, b"\0\x40", scan), "80x0"),
        "no width": (size(64, 0), "0x64"),
        "larger than libjpeg's limit": (size(65535, 65535), "65535x65535"),
        "no tables": (without(PLAIN, DQT), "table 0, not defined"),
        "missing table": (edit(PLAIN, SOF0, lambda payload: payload.__setitem__(11, 3)), "table 3, not defined"),
        "impossible Huffman table": (edit(PLAIN, DHT, twelve_codes_of_one_bit), "damaged"),
    }


def test_files_that_pillow_cannot_load_are_refused_with_the_reason():
    for name, (data, reason) in broken_files().items():
        assert name == "png" or not pillow_loads(data), name
        with pytest.raises(BitstreamError, match=reason):
            read_bitstream(data)
    assert not issubclass(UnsupportedJpeg, BitstreamError) and issubclass(UnsupportedJpeg, JpegError)


def test_damage_inside_the_scan_is_read_as_libjpeg_reads_it():
    data = encode(photograph(80, 96), "4:4:4", 85, restart_marker_blocks=12)
    scan = read_header(data).scan_offset
    for start in range(scan + 40, len(data) - 60, (len(data) - scan) // 20):
        damaged = data[:start] + b"\x55\xaa\x0f" + data[start + 3 :]
        assert pillow_loads(damaged)
        image = Image.open(io.BytesIO(damaged))
        image.draft("YCbCr", image.size)
        difference = np.abs(decoded_planes(read_bitstream(damaged)) - np.asarray(image))
        assert np.quantile(difference, 0.95) <= 1.0  # values far out of range wrap differently in an integer transform


def test_scans_that_are_empty_or_tables_that_are_the_standard_ones_are_read():
    scan = read_header(PLAIN).scan_offset
    empty = PLAIN[:scan] + b"\xff\xd9"
    assert pillow_loads(empty)
    # libjpeg makes up zero bits for the MCU that it was in, and leaves the others alone.
    assert not any(plane[0, 2:].any() or plane[0, :, 2:].any() for plane in read_bitstream(empty).coefficients.planes)
    assert same(read_bitstream(without(PLAIN, DHT)), read_bitstream(PLAIN))  # as Motion JPEG frames come


def test_what_follows_the_image_does_not_matter():
    second = encode(photograph(30, 30, 5))
    mpo = io.BytesIO()
    Image.fromarray(photograph(64, 80)).save(mpo, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(second))])
    for data in (PLAIN, PROGRESSIVE):
        for tail in (b"\0" * 1000, b"garbage\xff\xc0\xff", second, second[:99]):
            assert same(read_bitstream(data + tail), read_bitstream(PLAIN))
    assert same(read_bitstream(mpo.getvalue()), read_bitstream(PLAIN))
    # A camera's padding where the end of image should be: complete all the same.
    for padded in (PLAIN[:-2] + bytes(200), PLAIN[:-2] + b"\xff\xe1\xff\xff"):
        assert pillow_loads(padded)
        assert same(read_bitstream(padded), read_bitstream(PLAIN))


def test_size_limit_comes_before_memory():
    huge = edit(PLAIN, SOF0, lambda payload: payload.__setitem__(slice(1, 5), b"\xff\x00\xff\x00"))
    tracemalloc.start()
    with pytest.raises(BitstreamError, match=r"65280x65280 = 4261478400 pixels.* limit of 178956970"):
        read_bitstream(huge)
    with pytest.raises(BitstreamError, match="limit of 5119"):
        read_bitstream(PLAIN, max_pixels=5119)
    with pytest.raises(UnsupportedJpeg, match=r"2\^31"):
        read_bitstream(huge, max_pixels=2**33)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert same(read_bitstream(PLAIN, max_pixels=5120), read_bitstream(PLAIN))


def test_a_bomb_of_scans_is_not_walked():
    header = read_header(PROGRESSIVE)
    scan = PROGRESSIVE[PROGRESSIVE.index(b"\xff\xda") : -2]
    bomb = PROGRESSIVE[: header.scan_offset] + scan * 600 + b"\xff\xd9"
    with pytest.raises(UnsupportedJpeg, match="500 scans"):
        read_bitstream(bomb)


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 95])
def test_quality_is_the_encoders(quality):
    assert read_bitstream(encode(photograph(16, 16), quality=quality)).quality == quality


def test_threads_do_not_disturb_each_other():
    files = [encode(photograph(90 + 8 * i, 70 + 5 * i, i), SAMPLINGS[i % 4]) for i in range(8)]
    files += [PLAIN[:-12] + b"\xff\xd9", PROGRESSIVE]
    alone = [read_bitstream(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: same(read_bitstream(files[i % 10]), alone[i % 10]), range(300)))


def test_neither_memory_nor_descriptors_leak():
    damaged = edit(PLAIN, DHT, lambda payload: payload.__setitem__(1, 200))
    late = PROGRESSIVE[:-2] + b"\xff\xc0\xff\xd9"

    def use() -> tuple[int, int]:
        for _ in range(300):
            read_bitstream(PLAIN)
            for data in (damaged, late):
                with pytest.raises(BitstreamError):
                    read_bitstream(data)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))

    use()
    (memory, descriptors), (later, same_descriptors) = use(), use()
    assert same_descriptors == descriptors
    assert later - memory < 4e6


def survey(seed: int, count: int) -> Counter[tuple[str, str]]:
    """Of `count` mutated files: (what Pillow did, what we did) → how many."""
    options = ({}, {"progressive": True}, {"restart_marker_blocks": 3})
    files = [
        encode(photograph(29 + 7 * i, 41 + 3 * j, i + j), sampling, 60, **option)
        for i, sampling in enumerate(("gray", *SAMPLINGS))
        for j, option in enumerate(options)
    ]
    files += [one_scan_each(planes_for(s), s, [40, 60, 90], **o) for s in SAMPLINGS for o in options]
    files.append(encode(photograph(150, 200), "4:4:4", 98))  # several of Pillow's read buffers long
    generator, outcomes = np.random.default_rng(seed), Counter()
    for _ in range(count):
        data = mutate(files[generator.integers(len(files))], generator)
        try:
            read_bitstream(data).coefficients.check_values()
            ours = "read"
        except JpegError as error:
            ours = "zero step" if "step of 0" in str(error) else type(error).__name__
        outcomes["loaded" if pillow_loads(data) else "refused", ours] += 1
    return outcomes


def test_mutated_files_are_judged_as_pillow_judges_them_and_never_end_the_process():
    call = "import test_bitstream; print(repr(dict(test_bitstream.survey(0, 1200))))"
    here = Path(__file__)
    path = os.pathsep.join(str(folder) for folder in (Path(jpegs.__file__).parent, here.parent, here.parents[3]))
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", call],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libjpeg's remarks
        timeout=200,
        check=False,
    )
    assert child.returncode == 0
    outcomes = ast.literal_eval(child.stdout.decode())
    assert outcomes["loaded", "read"] > 200 and outcomes["refused", "BitstreamError"] > 200
    assert not outcomes.get(("loaded", "BitstreamError"))
    assert not outcomes.get(("refused", "read"))
