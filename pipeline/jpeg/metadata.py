"""What a JPEG file says of its image in its application segments: colour profile, EXIF, XMP and resolution."""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack

from pipeline.jpeg.errors import BitstreamError

XMP = b"http://ns.adobe.com/xap/1.0/\0"
"""Signature of an APP1 segment with an XMP packet (ISO 16684-3; also XMP Specification Part 3, 1.1.3)."""

_INCHES = {1: 1.0, 2: 2.54}
"""JFIF's units of density → how many of them an inch has; 0 is a ratio alone."""


@dataclass(frozen=True)
class Metadata:
    """What is carried from a JPEG file to the output; None: the file has none of it.

    icc: the ICC profile; None also if a part of it is missing.
    exif: the EXIF payload, from its `Exif` signature on, as Pillow's `exif=` takes it.
    xmp: the XMP packet; the extension that a packet over 64 KB has in further segments is not read.
    dpi: (horizontal, vertical) pixels per inch, as the JFIF segment says."""

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


def join_profile(chunks: list[bytes]) -> bytes | None:
    """Joins the ICC profile's APP2 payloads (ICC.1:2022, B.4); byte 12 is a chunk's number, byte 13 their count. Raises
    BitstreamError for a payload that is cut short."""
    chunks = sorted(chunks)
    if chunks and len(chunks[0]) < 14:
        raise BitstreamError("an ICC profile segment is cut short")
    if not chunks or chunks[0][13] != len(chunks):
        return None
    return b"".join(chunk[14:] for chunk in chunks)


def jfif_dpi(payload: bytes) -> tuple[float, float] | None:
    """The density in a JFIF segment's payload of 14 bytes or more, in pixels per inch."""
    unit, x, y = unpack(">BHH", payload[7:12])
    return (x * _INCHES[unit], y * _INCHES[unit]) if unit in _INCHES and x and y else None
