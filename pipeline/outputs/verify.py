"""Verifies a certificate: compresses an output with libjpeg-turbo and compares coefficients."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import jpeglib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kernels import Subsampling
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.orientation import UPRIGHT, exchanges_sides, orientation_of, turn_back
from pipeline.outputs.formats import check_size, decode_image

TURBO = "turbo210"
"""jpeglib's name of the libjpeg-turbo that writes 4:4:0, which Pillow does not."""

_jpeglib_version = threading.Lock()  # jpeglib keeps its version in a global variable


def recompress(pixels: NDArray[np.uint8], tables: NDArray[np.int32], sampling: Subsampling) -> bytes:
    """Compresses an image with Pillow's libjpeg-turbo (4:4:0: jpeglib's).

    pixels: [H, W, 3] or [H, W] uint8.
    tables: [components, 8, 8] int32.

    Returns the JPEG file."""
    if sampling is Subsampling.S440:
        return _recompress_440(pixels, tables)
    subsampling = {} if sampling is Subsampling.GRAY else {"subsampling": sampling.label}
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", qtables=[t.flatten().tolist() for t in tables], **subsampling)
    return stream.getvalue()


def _recompress_440(pixels: NDArray[np.uint8], tables: NDArray[np.int32]) -> bytes:
    descriptor = os.memfd_create("recompressed", os.MFD_CLOEXEC)
    path = f"/proc/self/fd/{descriptor}"
    try:
        with _jpeglib_version, jpeglib.version(TURBO):
            image = jpeglib.from_spatial(np.ascontiguousarray(pixels))
            image.samp_factor = "4:4:0"
            image.write_spatial(path, qt=tables.astype(np.uint16))
        return Path(path).read_bytes()
    finally:
        os.close(descriptor)


def count_mismatches(encoded: bytes, bitstream: Bitstream) -> int:
    """How many coefficients of an output file, of any format, differ from the input's when it is compressed again: as
    it is, or turned back from what EXIF's orientation of the input calls upright. Raises ValueError as `mismatches_of`
    does, and what decoding the file raises."""
    size, orientation = bitstream.coefficients.size, orientation_of(bitstream.metadata.exif)
    pixels = decode_image(encoded, size, *[size[::-1]] * exchanges_sides(orientation))
    if orientation == UPRIGHT:
        return mismatches_of(pixels, bitstream)
    ways = [x for x in (pixels, turn_back(pixels, orientation)) if x.shape[:2] == size] or [pixels]
    found = mismatches_of(ways[0], bitstream)
    return min([found, *(mismatches_of(x, bitstream) for x in ways[1:] if found)])


def mismatches_of(pixels: NDArray[np.uint8], bitstream: Bitstream) -> int:
    """As `count_mismatches`, for pixels [H, W, 3] or [H, W]. Raises ValueError if the image does not have 8 bits or the
    file's size."""
    c = bitstream.coefficients
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"not an 8-bit gray or RGB image: {pixels.dtype} {list(pixels.shape)}")
    check_size((pixels.shape[0], pixels.shape[1]), c.size)
    gray = c.sampling is Subsampling.GRAY
    if gray != (pixels.ndim == 2):
        pixels = np.asarray(Image.fromarray(pixels).convert("L" if gray else "RGB"))
    again = read_bitstream(recompress(pixels, c.tables[0].numpy(), c.sampling), pixels.size)
    return int(again.coefficients.mismatches(c))
