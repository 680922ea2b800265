"""Decodes kinds of JPEG that are not modelled with Pillow: CMYK, RGB, lossless, unusual sampling."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.jpeg.errors import BitstreamError
from pipeline.jpeg.header import read_header
from pipeline.jpeg.metadata import Metadata

_PARSED_BY_PILLOW = re.compile(rb"(?<=\xff\xe1..)Exif\0\0|(?<=\xff\xe2..)MPF\0", re.DOTALL)
"""Signatures of the segments that Pillow parses when it opens a file: EXIF, for the resolution, and the index of the
multi-picture format."""


@dataclass(frozen=True)
class FallbackImage:
    """An image decoded by Pillow.

    pixels: [3 or 1, H, W] uint8, RGB or gray.
    metadata: colour profile, EXIF, XMP and resolution; no profile if the pixels were converted to other colours."""

    pixels: NDArray[np.uint8]
    metadata: Metadata


def for_pillow(data: bytes) -> io.BytesIO:
    """The file with its EXIF and multi-picture index blanked. Pillow would print warnings for damage in them, and a
    warning filter would affect the whole process."""
    return io.BytesIO(_PARSED_BY_PILLOW.sub(lambda found: bytes(len(found[0])), data))


def pillow_error(data: bytes) -> Exception | None:
    """What Pillow raises when it decodes a JPEG file; None if it decodes it. Raises MemoryError."""
    try:
        JpegImageFile(for_pillow(data)).load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow does not document what its readers of metadata and of damaged data raise
        return error
    return None


def fallback_open(data: bytes, max_pixels: int) -> JpegImageFile:
    """Reads a file's header with Pillow; the image is not loaded.

    Raises BitstreamError for a file whose header shows that Pillow cannot decode it, or of more than `max_pixels`."""
    try:
        image = JpegImageFile(for_pillow(data))
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels are more than the limit of {max_pixels}")
    except MemoryError:
        raise
    except Exception as error:  # see pillow_error
        raise _cannot_load(error) from error
    return image


def fallback_decode(data: bytes, max_pixels: int) -> FallbackImage:
    """Decodes a file to RGB or gray. CMYK is converted by Pillow's formula, without its profile.

    Raises BitstreamError for a file that Pillow cannot decode, or of more than `max_pixels`, before memory is
    allocated."""
    metadata = read_header(data).metadata
    image = fallback_open(data, max_pixels)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # see pillow_error
        raise _cannot_load(error) from error
    natural = image.mode in ("L", "RGB")
    pixels = np.asarray(image if natural else image.convert("RGB"))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return FallbackImage(pixels, replace(metadata, icc=image.info.get("icc_profile") if natural else None))


def _cannot_load(error: Exception) -> BitstreamError:
    return BitstreamError(f"Pillow cannot load it: {str(error) or type(error).__name__}")
