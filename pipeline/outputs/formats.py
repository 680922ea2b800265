"""Lossless image files: PNG with 8 and 16 bits, WebP, JPEG XL, and NumPy arrays.

    data = encode_image(image, "png", Metadata(icc))   # [3 or 1, H, W] uint8 → bytes
    pixels = decode_image(data)                        # bytes → [H, W, 3] or [H, W] uint8

PNG (ISO/IEC 15948) is written here around a deflate stream by igzip (Intel's ISA-L). Every row uses the filter Average,
which for photographs is nearly as good as choosing a filter per row and is computed for many rows at a time. That takes
a sixth of the CPU time of Pillow at level 1, for one or two per cent more bytes (bench/encoders.py).

A new format needs a name in `Format` and `SUFFIXES`, a function in `_ENCODERS`, a case in `decode_image` and, if it
needs a package, one in `check_installed`. All formats release the GIL while they compress."""

import importlib.util
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.jpeg.metadata import Metadata
from pipeline.jpeg.orientation import UPRIGHT, exchanges_sides, orientation_of, turn_upright, without_orientation
from pipeline.outputs.provenance import Provenance
from pipeline.outputs.xmp import xmp_packet

Format = Literal["png", "png16", "webp", "jxl", "npy"]
SUFFIXES: dict[Format, str] = {"png": "png", "png16": "png", "webp": "webp", "jxl": "jxl", "npy": "npy"}
"""The files' extensions."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")  # a bare codestream, a container
_NPY = b"\x93NUMPY"
_EXIF = b"Exif\x00\x00"
_BYTE_ORDERS = (b"II*\0", b"MM\0*")  # with which TIFF begins, and so EXIF
_LEVEL = 2  # of igzip's 0 to 3
_AVERAGE = 3  # PNG's number of the filter
_PER_METRE = 1  # PNG's number of the unit
_BAND = 1 << 20  # bytes of filtered rows per IDAT chunk


class EncodeError(Exception):
    """The image cannot be written in the output format; the run continues."""


class FormatError(ValueError):
    """The format's package is not installed; the message says what to install."""


def check_installed(format: Format) -> None:
    """Raises FormatError if the format needs a package that is not installed."""
    if format == "jxl" and importlib.util.find_spec("pylibjxl") is None:
        raise FormatError("--format jxl needs pylibjxl; install it with: pip install '.[jxl]'")


NO_METADATA = Metadata()


def encode_image(
    image: NDArray[Any],
    format: Format = "png",
    metadata: Metadata = NO_METADATA,
    provenance: Provenance | None = None,
    upright: bool = False,
) -> bytes:
    """Encodes an image as a lossless file. Thread-safe.

    image: [3 or 1, H, W] uint8; for `png`, `png16` and `npy` also uint16.
    format: `png16` of an 8-bit image scales its levels to 0..65535. Gray stays gray, except in WebP, which repeats the
        plane. `npy` is an array [H, W, 3] or [H, W] for `numpy.load`, without metadata.
    metadata: written as it is; pixels are not turned, and viewers of JPEG XL ignore EXIF's orientation. A profile is
        left out if readers would reject it: in PNG above one megabyte (Pillow's limit), in JPEG XL if libjxl does not
        understand it. XMP that is no XML and EXIF that is no TIFF are left out; only PNG has a place for
        the resolution.
    provenance: how the image was made, for the XMP and PNG's text; None to leave it out.
    upright: turns the image as EXIF's orientation says, and says in the metadata that it is upright.

    Raises EncodeError for a format that does not support the image, such as WebP above 16383 pixels per side."""
    if image.dtype == np.uint16 and format not in ("png", "png16", "npy"):
        raise EncodeError(f"{format} is written with 8 bits per channel, not 16: use png16 or npy")
    if upright:
        image, metadata = _turned(image, metadata)
    if format != "npy":
        xmp, exif = xmp_packet(metadata.xmp, provenance, upright), metadata.exif
        metadata = replace(metadata, xmp=xmp, exif=exif if exif and _tiff(exif).startswith(_BYTE_ORDERS) else None)
    try:
        return _ENCODERS[format](image, metadata, provenance)
    except (OSError, ValueError, RuntimeError) as error:
        height, width = image.shape[1:]
        raise EncodeError(f"{width}x{height} pixels cannot be written as {format}: {error}") from error


def decode_image(data: bytes, *sizes: tuple[int, int]) -> NDArray[np.uint8]:
    """Decodes a PNG, WebP, JPEG XL or npy file: [H, W, 3] or [H, W]. sizes: (H, W), of which it must have one, if there
    are any; PNG and WebP are not decoded otherwise. Raises ValueError for another size, for any other kind and for an
    image with transparency; damaged files raise what the decoding library raises."""
    stream = io.BytesIO(data)
    # Image.open would refuse large images.
    if data.startswith(_PNG):
        return _opaque(_of_size(PngImageFile(stream), sizes))
    if data[:4] == b"RIFF":
        return _opaque(_of_size(WebPImageFile(stream), sizes))
    if data.startswith(_NPY):
        pixels: NDArray[np.uint8] = np.load(stream, allow_pickle=False)
        return pixels
    if data.startswith(_JXL):
        import pylibjxl  # noqa: PLC0415  # an extra

        pixels = pylibjxl.decode(data)
        return pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels
    raise ValueError(f"not a PNG, WebP, JPEG XL or npy file: it begins with {data[:8]!r}")


def check_size(found: tuple[int, int], *expected: tuple[int, int]) -> None:
    """Raises ValueError unless an image has a size (H, W) that its JPEG file permits."""
    if found not in expected:
        (rows, columns), (height, width) = found, expected[0]
        raise ValueError(f"the image has {columns}x{rows} pixels, the JPEG file {width}x{height}")


def _of_size(image: Image.Image, sizes: Sequence[tuple[int, int]]) -> Image.Image:
    if sizes:
        check_size((image.height, image.width), *sizes)
    return image


def _opaque(image: Image.Image) -> NDArray[Any]:
    """The pixels of an image: those of a palette converted to RGB, without an alpha channel that is opaque
    everywhere."""
    if image.mode in ("P", "1"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA"):
        if image.getextrema()[-1] != (255, 255):
            raise ValueError("the image has transparent pixels, which JPEG does not support")
        image = image.convert(image.mode[:-1])
    return np.asarray(image)


def _turned(image: NDArray[Any], metadata: Metadata) -> tuple[NDArray[Any], Metadata]:
    """The image [C, H, W], upright, and the metadata that say so."""
    orientation = orientation_of(metadata.exif)
    if metadata.exif is None or orientation == UPRIGHT:
        return image, metadata
    image = np.ascontiguousarray(turn_upright(image.transpose(1, 2, 0), orientation).transpose(2, 0, 1))
    dpi = metadata.dpi[::-1] if metadata.dpi and exchanges_sides(orientation) else metadata.dpi
    return image, replace(metadata, exif=without_orientation(metadata.exif), dpi=dpi)


def is_16_bits(data: bytes) -> bool:
    """Whether a file is a PNG with 16 bits per channel."""
    return data.startswith(_PNG) and data[24:25] == b"\x10"


def _encode_png(image: NDArray[Any], metadata: Metadata, provenance: Provenance | None) -> bytes:
    channels, height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [_PNG, *_chunk(b"IHDR", header)]
    if metadata.icc and len(metadata.icc) <= MAX_TEXT_CHUNK:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + isal_zlib.compress(metadata.icc))
    if metadata.dpi is not None:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(dpi / 0.0254) for dpi in metadata.dpi), _PER_METRE))
    if metadata.exif:
        chunks += _chunk(b"eXIf", _tiff(metadata.exif))
    if provenance is not None:
        chunks += _chunk(b"tEXt", b"Software\0" + provenance.software.encode("latin-1"))
        chunks += _chunk(b"tEXt", b"Restoration\0" + provenance.parameters.encode("latin-1"))
    if metadata.xmp is not None:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    deflate = isal_zlib.compressobj(_LEVEL)
    for rows in _average_rows(image):
        if data := deflate.compress(rows):
            chunks += _chunk(b"IDAT", data)
    chunks += _chunk(b"IDAT", deflate.flush())
    chunks += _chunk(b"IEND", b"")
    return b"".join(chunks)


def _encode_png16(image: NDArray[Any], metadata: Metadata, provenance: Provenance | None) -> bytes:
    return _encode_png(image if image.dtype == np.uint16 else image * np.uint16(257), metadata, provenance)


def _tiff(exif: bytes) -> bytes:
    """The EXIF payload without JPEG's header."""
    return exif.removeprefix(_EXIF)


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(data)) + kind, data, struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind)))


def _average_rows(image: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """PNG rows filtered by Average, in bands [rows, 1 + W * B] uint8 from top to bottom, B bytes per pixel: the
    filter's number, then x − ⌊(left + above) / 2⌋, with 0 outside the image. 16-bit values are big-endian."""
    height, width = image.shape[1:]
    channels = image.shape[0] * image.itemsize
    rows_at_a_time = max(1, _BAND // (channels * width))
    for top in range(0, height, rows_at_a_time):
        bottom = min(top + rows_at_a_time, height)
        pixels = _interleaved(image[:, max(top - 1, 0) : bottom])
        x = pixels.astype(pixels.dtype.newbyteorder(">"), copy=False).view(np.uint8).reshape(-1, channels * width)
        if top == 0:
            x = np.concatenate([np.zeros_like(x[:1]), x])
        filtered = np.empty((bottom - top, 1 + x.shape[1]), np.uint8)
        filtered[:, 0] = _AVERAGE
        x, above, residual = x[1:], x[:-1], filtered[:, 1:]
        np.subtract(x[:, :channels], above[:, :channels] >> 1, out=residual[:, :channels])
        left, above = x[:, :-channels], above[:, channels:]
        mean = left ^ above  # (a + b) // 2 in eight bits is (a & b) + ((a ^ b) >> 1)
        mean >>= 1
        mean += left & above
        np.subtract(x[:, channels:], mean, out=residual[:, channels:])
        yield filtered


def _encode_webp(image: NDArray[Any], metadata: Metadata, provenance: Provenance | None) -> bytes:
    options = {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
    options = {name: data for name, data in options.items() if data}
    out = io.BytesIO()
    Image.fromarray(_interleaved(image)).save(out, "WEBP", lossless=True, quality=0, method=0, **options)
    return out.getvalue()


def _encode_jxl(image: NDArray[Any], metadata: Metadata, provenance: Provenance | None) -> bytes:
    import pylibjxl  # noqa: PLC0415  # an extra

    exif = _tiff(metadata.exif) if metadata.exif else None

    def encode(profile: bytes | None) -> bytes:
        data: bytes = pylibjxl.encode(
            _interleaved(image), effort=1, lossless=True, icc=profile, exif=exif, xmp=metadata.xmp
        )
        return data

    if metadata.icc:
        try:
            return encode(metadata.icc)
        except RuntimeError:  # the error does not say whether it is the profile
            pass
    return encode(None)


def _encode_npy(image: NDArray[Any], metadata: Metadata, provenance: Provenance | None) -> bytes:
    out = io.BytesIO()
    np.save(out, _interleaved(image))
    return out.getvalue()


def _interleaved(image: NDArray[Any]) -> NDArray[Any]:
    return image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))


_ENCODERS: dict[Format, Callable[[NDArray[Any], Metadata, Provenance | None], bytes]] = {
    "png": _encode_png,
    "png16": _encode_png16,
    "webp": _encode_webp,
    "jxl": _encode_jxl,
    "npy": _encode_npy,
}
