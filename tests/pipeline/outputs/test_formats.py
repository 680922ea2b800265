"""Lossless files of every format: other decoders read the same pixels and metadata out of them."""

import io
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline import restore
from pipeline.jpeg.metadata import Metadata
from pipeline.outputs import formats as encode
from pipeline.outputs.formats import EncodeError, FormatError, check_installed, decode_image, encode_image

FORMATS = ("png", "webp", "jxl", "npy")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(channels: int = 3, height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (channels, height, width), dtype=np.uint8)


def smooth(channels: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * (c + 1) + y * 2) // 3 % 256 for c in range(channels)]).astype(np.uint8)


def tags() -> bytes:
    made = Image.Exif()
    made[0x0112] = 6  # orientation: turned by 90 degrees
    made[0x010F] = "maker"
    return made.tobytes()


def interleaved(image: np.ndarray) -> np.ndarray:
    return image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)


def skip_without(format: str) -> None:
    if format == "jxl":
        pytest.importorskip("pylibjxl")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (37, 53), (8, 64)])
def test_every_format_comes_back(format, channels, height, width):
    skip_without(format)
    for image in (noise(channels, height, width), smooth(channels, height, width)):
        pixels = decode_image(encode_image(image, format, Metadata(exif=tags())))  # not turned by its orientation
        wanted = interleaved(image if format != "webp" else np.repeat(image, 4 - channels, 0)[:3])
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_pillow_reads_pixels_and_metadata(channels, format):
    image, exif = noise(channels), tags()
    loaded = Image.open(io.BytesIO(encode_image(image, format, Metadata(SRGB, exif))))
    pixels = np.asarray(loaded)
    assert loaded.format == format.upper()
    assert loaded.mode == ("L" if channels == 1 and format == "png" else "RGB")
    planes = np.atleast_3d(pixels).transpose(2, 0, 1)
    assert np.array_equal(planes, np.broadcast_to(image, planes.shape))
    assert loaded.info["icc_profile"] == SRGB
    assert dict(loaded.getexif()) == {0x0112: 6, 0x010F: "maker"}
    plain = Image.open(io.BytesIO(encode_image(image, format)))
    assert "icc_profile" not in plain.info
    assert not plain.getexif()


def test_pillow_finds_every_checksum_of_a_png_right():
    with Image.open(io.BytesIO(encode_image(noise(), "png", Metadata(SRGB, tags())))) as loaded:
        loaded.verify()


@pytest.mark.parametrize("channels", [1, 3])
def test_libpng_reads_the_same_from_a_png_of_several_bands(channels, monkeypatch):
    """DALI's decoder on the CPU is not Pillow's; bands of 7 rows put their borders everywhere."""
    dali = pytest.importorskip("nvidia.dali")
    image = smooth(channels, 45, 61) ^ (noise(channels, 45, 61) & 7)
    monkeypatch.setattr(encode, "_BAND", 7 * 61 * channels)
    data = encode_image(image)
    assert np.array_equal(decode_image(data), interleaved(image))
    kind = dali.types.GRAY if channels == 1 else dali.types.RGB

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoded():
        file = dali.fn.external_source(lambda: [np.frombuffer(data, np.uint8)])
        return dali.fn.decoders.image(file, device="cpu", output_type=kind)

    pipeline = decoded()
    pipeline.build()
    (found,) = pipeline.run()
    assert np.array_equal(found.at(0).transpose(2, 0, 1), image)


def test_a_png_in_bands_is_the_same_as_in_one(monkeypatch):
    image = smooth(3, 200, 31)

    def rows() -> bytes:
        return b"".join(band.tobytes() for band in encode._average_rows(image))

    whole = rows()
    monkeypatch.setattr(encode, "_BAND", 1)
    assert rows() == whole
    assert len(whole) == 200 * (1 + 3 * 31)


def test_a_png_is_about_as_small_as_pillows():
    image = smooth(3, 240, 320) ^ (noise(3, 240, 320) & 3)
    stream = io.BytesIO()
    Image.fromarray(interleaved(image)).save(stream, "PNG", compress_level=1)
    assert len(encode_image(image)) < 1.15 * len(stream.getvalue())


def test_jxl_carries_profile_and_exif():
    pylibjxl = pytest.importorskip("pylibjxl")
    exif = tags()
    for channels in (1, 3):
        pixels, found = pylibjxl.decode(encode_image(noise(channels), "jxl", Metadata(SRGB, exif)), metadata=True)
        assert np.array_equal(pixels.reshape(37, 53, channels).transpose(2, 0, 1), noise(channels))
        assert found["exif"] == exif.removeprefix(b"Exif\0\0")
        if channels == 3:  # a gray picture cannot have a profile of colours
            assert found["icc"] == SRGB
    assert np.array_equal(decode_image(encode_image(noise(), "jxl", Metadata(b"no profile"))), interleaved(noise()))


def test_npy_is_what_numpy_loads():
    assert np.array_equal(
        np.load(io.BytesIO(encode_image(noise(), "npy", Metadata(SRGB, tags())))), interleaved(noise())
    )
    assert np.load(io.BytesIO(encode_image(noise(1), "npy"))).shape == (37, 53)


def test_profile_that_pillow_would_not_read_again_is_left_off():
    large = np.random.default_rng(0).bytes((1 << 20) + 1)
    assert len(zlib.compress(large)) > 1 << 20
    assert "icc_profile" not in Image.open(io.BytesIO(encode_image(noise(), "png", Metadata(large)))).info
    assert (
        Image.open(io.BytesIO(encode_image(noise(), "png", Metadata(large[: 1 << 20])))).info["icc_profile"]
        == large[: 1 << 20]
    )


def test_image_that_webp_cannot_hold():
    wide = np.zeros((1, 2, 16384), np.uint8)
    with pytest.raises(EncodeError, match="16384x2 pixels cannot be written as webp"):
        encode_image(wide, "webp")
    assert decode_image(encode_image(wide)).shape == (2, 16384)


def test_what_is_no_image_is_refused():
    for data in (b"", b"GIF89a", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match="not a PNG, WebP, JPEG XL or npy file"):
            decode_image(data)


def test_missing_package_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys):
    for format in ("png", "webp", "npy"):
        check_installed(format)
    monkeypatch.setitem(sys.modules, "pylibjxl", None)
    with pytest.raises(FormatError, match=r"pip install '\.\[jxl\]'"):
        check_installed("jxl")
    folders = ["--input-dir", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out")]
    assert restore.main([*folders, "--format", "jxl"]) == restore.STOPPED
    assert "pip install '.[jxl]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_many_threads(format):
    skip_without(format)
    images = [noise(3, 50 + number, 70) for number in range(32)]
    alone = [encode_image(image, format) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda image: encode_image(image, format), images)) == alone


def test_png_needs_little_more_memory_than_its_file():
    image = np.broadcast_to(smooth(3, 1, 2000), (3, 3000, 2000))  # 18 MB
    tracemalloc.start()
    encode_image(image)
    assert tracemalloc.get_traced_memory()[1] < 9 << 20
    tracemalloc.stop()
