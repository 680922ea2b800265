"""The marker segments of a JPEG file up to its first scan (ITU-T T.81, annex B).

A header is accepted if both Pillow and libjpeg-turbo would accept it, so that libjpeg only receives checked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from operator import itemgetter
from struct import unpack
from typing import Any

from kernels.tables import zigzag
from pipeline.jpeg.errors import BitstreamError
from pipeline.jpeg.metadata import XMP, Metadata, jfif_dpi, join_profile

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
DHT, DAC, DQT, DNL, DRI, DHP, COM = 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xFE
RESTARTS = range(0xD0, 0xD8)
SKIPPED = frozenset((*range(0xE0, 0xF0), COM, DNL))
"""Segments without influence on the coefficients. (DNL, the number of lines, has, but neither decoder reads it.)"""
PROCESSES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, DHP), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic"),
    0xCB: "lossless",
}
"""The coding process that a start-of-frame marker announces (T.81, table B.1)."""

MAX_DIMENSION = 65500  # libjpeg's JPEG_MAX_DIMENSION
MAX_COMPONENTS = 10  # libjpeg's MAX_COMPONENTS
_NATURAL = itemgetter(*zigzag().argsort().tolist())
_OTHER_FORMATS = {
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP or another RIFF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
}


@dataclass(frozen=True)
class Component:
    """One component of the frame header (T.81, B.2.2): its identifier, sampling factors (1..4) and table selector."""

    identifier: int
    horizontal: int
    vertical: int
    table: int


@dataclass(frozen=True)
class Header:
    """The fields of a file's header. No scan has been decoded.

    size: (height, width) in pixels, each 1..65500.
    process: `baseline`, `extended`, `progressive`, `lossless`, `arithmetic` or `hierarchical`.
    precision: bits per sample.
    components: in the frame's order.
    tables: selector → 64 quantisation steps in natural order, as defined before the first scan. A step may be 0 here.
    restart_interval: in MCUs; 0 for none.
    jfif, adobe_transform: determine the colour space; adobe_transform is None without an Adobe segment.
    metadata: colour profile, EXIF, XMP and resolution.
    first_scan: indices of the components in the first scan.
    segments: a copy of the header without application data, from SOI to the first scan's own header.
    size_offset: position of the frame's height and width in `segments`, two bytes each.
    scan_offset: where the first scan's entropy-coded data begin."""

    size: tuple[int, int]
    process: str
    precision: int
    components: tuple[Component, ...]
    tables: dict[int, tuple[int, ...]]
    restart_interval: int
    jfif: bool
    adobe_transform: int | None
    metadata: Metadata
    first_scan: tuple[int, ...]
    segments: bytes
    size_offset: int
    scan_offset: int


@dataclass
class _Draft:
    """The fields of a header that is being read."""

    size: tuple[int, int] = (0, 0)
    process: str = ""
    precision: int = 0
    components: tuple[Component, ...] = ()
    tables: dict[int, tuple[int, ...]] = field(default_factory=dict)
    restart_interval: int = 0
    jfif: bool = False
    adobe_transform: int | None = None
    metadata: Metadata = field(default_factory=Metadata)
    exif: list[bytes] = field(default_factory=list)
    profile_chunks: list[bytes] = field(default_factory=list)
    segments: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    size_offset: int = 0


def read_header(data: bytes) -> Header:
    """Reads a JPEG file's header from its marker segments.

    Raises BitstreamError if they are broken, or contain what neither Pillow nor libjpeg-turbo reads."""
    if not data.startswith(b"\xff\xd8\xff"):
        raise BitstreamError(_not_a_jpeg(data))
    draft, position = _Draft(), 2
    while True:
        code, position = _next_marker(data, position)
        if code in RESTARTS:
            continue
        if code not in _SEGMENTS:
            name = {SOI: "a second start of image", EOI: "an end of image"}.get(code, f"marker ff {code:02x}")
            raise BitstreamError(f"{name} stands where a header segment was expected")
        payload, end = segment(data, position, code)
        if code == SOS:
            first_scan = scan_components(payload, draft.components)
            draft.segments.append(data[position - 2 : end])
            return _finish(draft, first_scan, end)
        _read_segment(draft, code, payload)
        position = end


def segment(data: bytes, position: int, code: int) -> tuple[bytes, int]:
    """(payload, end) of the segment of marker `code` whose length field is at `position` (T.81, B.1.1.4).

    Raises BitstreamError if it is longer than the file, or if its length is below 2, which is tolerated in application
    data only, as decoders do."""
    length = int.from_bytes(data[position : position + 2], "big")
    end = position + max(length, 2)
    if end > len(data):
        raise BitstreamError(f"truncated: the file ends at byte {len(data)}, inside a header segment")
    if length < 2 and code not in SKIPPED:
        raise BitstreamError(f"the segment of marker ff {code:02x} has the impossible length {length}")
    return data[position + 2 : end], end


def quantisation_tables(payload: bytes) -> dict[int, tuple[int, ...]]:
    """The tables of a DQT segment (T.81, B.2.4.1): selector → 64 steps in natural order.

    Raises BitstreamError for a malformed segment."""
    tables, position = {}, 0
    while position < len(payload):
        wide, selector = payload[position] >> 4, payload[position] & 15
        if selector > 3:
            raise BitstreamError(f"a quantisation table is numbered {selector}; there are only 0 to 3")
        end = position + (129 if wide else 65)
        if end > len(payload):
            raise BitstreamError("a quantisation table is cut short")
        steps = payload[position + 1 : end]
        tables[selector] = _NATURAL(unpack(">64H", steps) if wide else steps)
        position = end
    return tables


def scan_components(payload: bytes, components: tuple[Component, ...]) -> tuple[int, ...]:
    """Indices of the components of a scan, from its header (T.81, B.2.3), `payload`.

    Raises BitstreamError if it is malformed, or names components that the frame does not have in that order."""
    if not components:
        raise BitstreamError("a scan begins before any frame header")
    count = payload[0] if payload else 0
    if not 1 <= count <= 4 or len(payload) != 4 + 2 * count:
        raise BitstreamError("a scan header has the wrong length")
    scan: list[int] = []
    for identifier in payload[1 : 1 + 2 * count : 2]:
        # libjpeg's rule for components in the frame's order, which also covers duplicate identifiers
        found = (i for i in range(len(scan), min(len(components), 4)) if components[i].identifier == identifier)
        index = next(found, None)
        if index is None or index in scan:
            raise BitstreamError(f"a scan names component {identifier}, which the frame does not have there")
        scan.append(index)
    return tuple(scan)


def _not_a_jpeg(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if b"\xff\xd8\xff".startswith(data[:3]):
        return "truncated: the file ends after its first bytes"
    name = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), None)
    found = f"this is a {name} file" if name else f"the file begins with {data[:3].hex(' ')}"
    return f"not a JPEG: {found}, expected ff d8 ff"


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """(code, position after it) of the next marker; bytes between segments are skipped, as decoders do."""
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 1] == b"\xff":
            position += 1
        if position == len(data):
            break
        position += 1
        if data[position - 1]:
            return data[position - 1], position
    raise BitstreamError("truncated: the file ends before its first scan")


def _read_segment(draft: _Draft, code: int, payload: bytes) -> None:
    if code in PROCESSES:
        _read_frame(draft, code, payload)
    elif code in SKIPPED:
        _APPLICATION_READERS.get(code, _ignore)(draft, payload)
        return
    else:
        _TABLE_READERS[code](draft, payload)
    draft.segments.append(bytes((0xFF, code)) + (len(payload) + 2).to_bytes(2, "big") + payload)


def _read_frame(draft: _Draft, code: int, payload: bytes) -> None:
    if draft.process == "hierarchical":
        return
    if draft.process:
        raise BitstreamError("the file has two frame headers")
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        raise BitstreamError("the frame header has the wrong length")
    draft.process = PROCESSES[code]
    draft.precision, height, width, count = unpack(">BHHB", payload[:6])
    if not count:
        raise BitstreamError("the frame header lists no components")
    if not height or not width:
        raise BitstreamError(f"the frame header claims {width}x{height} pixels")
    if max(height, width) > MAX_DIMENSION or count > MAX_COMPONENTS:
        limit = f"{MAX_COMPONENTS} components of {MAX_DIMENSION}x{MAX_DIMENSION} pixels"
        raise BitstreamError(f"the frame header claims {count} components of {width}x{height} pixels, over {limit}")
    triples = zip(payload[6::3], payload[7::3], payload[8::3], strict=True)
    draft.components = tuple(Component(i, factors >> 4, factors & 15, table) for i, factors, table in triples)
    for component in draft.components:
        if not (1 <= component.horizontal <= 4 and 1 <= component.vertical <= 4):
            raise BitstreamError(
                f"component {component.identifier} has sampling factors {component.horizontal}x{component.vertical}, "
                "expected 1 to 4"
            )
    draft.size = height, width
    draft.size_offset = sum(map(len, draft.segments)) + 5  # after marker, length, precision
    draft.metadata, draft.profile_chunks = replace(draft.metadata, icc=join_profile(draft.profile_chunks)), []


def _read_dqt(draft: _Draft, payload: bytes) -> None:
    draft.tables.update(quantisation_tables(payload))


def _read_dht(draft: _Draft, payload: bytes) -> None:
    """Checks Huffman tables (T.81, B.2.4.2) as libjpeg does before it builds its decoders."""
    position = 0
    while len(payload) - position > 16:
        if payload[position] & ~0x10 > 3:
            raise BitstreamError(f"a Huffman table is numbered {payload[position]:#04x}")
        count, left = sum(payload[position + 1 : position + 17]), len(payload) - position - 17
        if count > 256 or count > left:
            raise BitstreamError("a Huffman table is longer than its segment, or than 256 codes")
        position += 17 + count
    if position != len(payload):
        raise BitstreamError("a Huffman table segment has the wrong length")


def _read_dac(draft: _Draft, payload: bytes) -> None:
    if len(payload) % 2:
        raise BitstreamError("an arithmetic conditioning segment has the wrong length")
    for index, value in zip(payload[::2], payload[1::2], strict=True):
        if index > 31 or (index < 16 and value & 15 > value >> 4):
            raise BitstreamError("an arithmetic conditioning table is out of range")


def _read_dri(draft: _Draft, payload: bytes) -> None:
    if len(payload) != 2:
        raise BitstreamError("a restart interval segment has the wrong length")
    draft.restart_interval = int.from_bytes(payload, "big")


def _read_jfif(draft: _Draft, payload: bytes) -> None:
    if payload.startswith(b"JFIF") and len(payload) < 7:
        raise BitstreamError("the JFIF segment is cut short")
    if payload.startswith(b"JFIF\0") and len(payload) >= 14:
        draft.jfif, draft.metadata = True, replace(draft.metadata, dpi=jfif_dpi(payload))


def _read_exif_or_xmp(draft: _Draft, payload: bytes) -> None:
    if payload.startswith(b"Exif\0\0"):
        draft.exif.append(payload[6:] if draft.exif else payload)
    elif payload.startswith(XMP) and draft.metadata.xmp is None:
        draft.metadata = replace(draft.metadata, xmp=payload.removeprefix(XMP))


def _read_profile_chunk(draft: _Draft, payload: bytes) -> None:
    if payload.startswith(b"ICC_PROFILE\0"):
        draft.profile_chunks.append(payload)


def _read_adobe(draft: _Draft, payload: bytes) -> None:
    if payload.startswith(b"Adobe"):
        if len(payload) < 7:
            raise BitstreamError("the Adobe segment is cut short")
        if len(payload) >= 12:
            draft.adobe_transform = payload[11]


def _ignore(draft: _Draft, payload: bytes) -> None:
    pass


_Reader = Callable[[_Draft, bytes], None]
_TABLE_READERS: dict[int, _Reader] = {DQT: _read_dqt, DHT: _read_dht, DAC: _read_dac, DRI: _read_dri}
_APPLICATION_READERS: dict[int, _Reader] = {
    0xE0: _read_jfif,
    0xE1: _read_exif_or_xmp,
    0xE2: _read_profile_chunk,
    0xEE: _read_adobe,
}
_SEGMENTS = frozenset({SOS, *PROCESSES, *SKIPPED, *_TABLE_READERS})


_COPIED = tuple(field.name for field in fields(Header) if field.name not in ("first_scan", "segments", "scan_offset"))


def _finish(draft: _Draft, first_scan: tuple[int, ...], scan_offset: int) -> Header:
    draft.metadata = replace(draft.metadata, exif=b"".join(draft.exif) or None)
    values: dict[str, Any] = {name: getattr(draft, name) for name in _COPIED}
    return Header(**values, first_scan=first_scan, segments=b"".join(draft.segments), scan_offset=scan_offset)
