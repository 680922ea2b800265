"""The check from outside finds what is wrong, and nothing where nothing is."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from jpegs import SAMPLINGS, encode, photograph
from PIL import Image
from runs import mismatches

from pipeline.jpeg.bitstream import read_bitstream
from pipeline.outputs.formats import encode_image
from pipeline.outputs.verify import count_mismatches, recompress


def compressed(sampling: str, quality: int = 60) -> tuple[bytes, np.ndarray]:
    """A file and pixels [C, H, W] that compress to it."""
    pixels = photograph(45, 59)
    if sampling == "gray":
        pixels = pixels[:, :, 0]
    bitstream = read_bitstream(encode(pixels, sampling, quality))
    c = bitstream.coefficients
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return recompress(pixels, c.tables[0].numpy(), c.sampling), planes


def pillow_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy()).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
@pytest.mark.parametrize("format", ["png", "webp", "jxl", "npy"])
def test_counts_what_another_check_counts(sampling, format):
    if format == "jxl":
        pytest.importorskip("pylibjxl")
    data, pixels = compressed(sampling)
    assert count_mismatches(encode_image(pixels, format), read_bitstream(data)) == 0
    assert mismatches(data, pillow_png(pixels)) == 0
    wrong = pixels.copy()
    wrong[0, 20:, 30] ^= 0x40
    found = count_mismatches(encode_image(wrong, format), read_bitstream(data))
    assert found == mismatches(data, pillow_png(wrong)) > 0


def test_in_several_threads():
    """4:4:0 goes through a library with a global variable."""
    jobs = [compressed(sampling) for sampling in (*SAMPLINGS, "gray", "4:4:0", "4:4:0")] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: count_mismatches(encode_image(job[1]), read_bitstream(job[0])), jobs))
    assert found == [0] * len(jobs)
