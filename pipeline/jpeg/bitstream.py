"""Reads the coefficients and metadata of a JPEG file, or raises a typed error. No byte of the file is trusted.

The header is checked in `header`; the entropy-coded data (T.81, F.2 and G.2) are decoded by libjpeg-turbo, through
jpeglib."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from struct import pack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling
from kernels.tables import nearest_quality
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.fallback import pillow_error
from pipeline.jpeg.header import (
    DQT,
    EOI,
    MAX_DIMENSION,
    SOS,
    Component,
    Header,
    quantisation_tables,
    read_header,
    scan_components,
    segment,
)
from pipeline.jpeg.metadata import Metadata

MAX_PIXELS = 178_956_970
"""The size above which Pillow refuses a file as a decompression bomb; the default limit."""

MAX_STEP = 8191
"""libjpeg-turbo's encoder stores 8 times a quantisation step in 16 bits, so it cannot use a larger one."""

MAX_SCANS = 500
"""Each scan is a pass over the whole image, however few bytes it has; progressive files have about ten."""

_VERSION = "turbo210"
# A marker that libjpeg refuses after the header. It is appended to the data so that libjpeg fails at the end of a
# truncated file instead of inserting an end of image. It is longer than the 65,535 bytes that a segment can skip.
_SENTINEL = b"\xff\xc0" * 32800
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_MARKER = re.compile(rb"\xff([^\x00-\xbf\xd0-\xd7\xff])")  # valid markers other than restart markers
_ANY_MARKER = re.compile(rb"\xff[^\x00\xff]")

Plane = NDArray[np.int16]


@dataclass(frozen=True)
class Bitstream:
    """One file's coefficients and metadata.

    coefficients: of N = 1 image, on the CPU; padding blocks are zero, whatever the file has there.
    metadata: colour profile, EXIF, XMP and resolution.
    progressive: whether the file is progressive.
    quality: the libjpeg quality, 1..100, with the nearest luma table.
    recovered: the coefficients were recovered from decoded pixels, so some may differ from the file's."""

    coefficients: Coefficients
    metadata: Metadata
    progressive: bool
    quality: int
    recovered: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything in a file but its coefficients. tables: each component's 64 quantisation steps, in natural order."""

    header: Header
    sampling: Subsampling
    tables: list[tuple[int, ...]]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.header.size

    @property
    def quality(self) -> int:
        """The libjpeg quality, 1..100, with the nearest luma table."""
        return _quality(self.tables[0])

    def with_whole_blocks(self, data: bytes) -> bytes:
        """The file with a header that claims whole MCUs or, where padding blocks may be missing (T.81, A.2.2), whole
        luma blocks, so that decoders do not crop the last ones. Its blocks are the same. Metadata are dropped; a JFIF
        segment marks the colours as YCbCr."""
        header, sampling = self.header, self.sampling
        blocks = sampling.true_blocks if _may_have_scans(header) else sampling.plane_blocks
        rows, columns = blocks(0, header.size)
        size = (8 * rows, 8 * columns)
        segments = resized(header, size if max(size) <= MAX_DIMENSION else header.size)
        return b"".join((segments[:2], _JFIF, segments[2:], data[header.scan_offset :]))

    def bitstream(self, planes: Iterable[Tensor], recovered: bool = False) -> Bitstream:
        """The file with its coefficients. planes: as in `Coefficients`, N = 1, on the CPU."""
        coefficients = Coefficients(
            planes=tuple(planes),
            tables=torch.tensor(self.tables, dtype=torch.int32).reshape(1, -1, 8, 8),
            sampling=self.sampling,
            size=self.size,
        )
        progressive = self.header.process == "progressive"
        return Bitstream(coefficients, self.header.metadata, progressive, self.quality, recovered)


def read_bitstream(data: bytes, max_pixels: int | None = None) -> Bitstream:
    """Reads a JPEG file: the first image in `data`, which other images or garbage may follow.

    Damage inside the scans gives whatever coefficients libjpeg-turbo recovers; a file that ends before its image does
    is refused.

    max_pixels: limit of the size, checked before memory is allocated; None: MAX_PIXELS. At most 18 bytes per pixel are
        allocated, 6 of which are returned.

    Raises BitstreamError for a file that is broken or larger than `max_pixels`, and UnsupportedJpeg for a kind that is
    not modelled, without checking the rest of the file. No bytes raise any other exception. Thread-safe. libjpeg prints
    a line to standard error for damaged files, which cannot be switched off."""
    return read_scans(read_layout(data, max_pixels), data)


def read_scans(layout: Layout, data: bytes, planes: Sequence[Tensor] | None = None) -> Bitstream:
    """Reads the coefficients of a file whose layout is known.

    planes: buffers for them, shaped as in `Coefficients`, N = 1, int16, uninitialised; None: they are allocated.

    Raises as `read_bitstream` does."""
    sampling, size = layout.sampling, layout.size
    if planes is None:
        blocks = [sampling.plane_blocks(component, size) for component in range(sampling.components)]
        planes = [torch.empty((1, *shape, 8, 8), dtype=torch.int16) for shape in blocks]
    _read_planes(layout.header, data, sampling, [plane.numpy() for plane in planes])
    return layout.bitstream(planes)


def read_layout(data: bytes, max_pixels: int | None = None) -> Layout:
    """Parses a file's header and the segments between its scans, without decoding entropy-coded data or allocating
    memory for the image. Raises as `read_bitstream` does."""
    header = read_header(data)
    try:
        _check_size(header, MAX_PIXELS if max_pixels is None else max_pixels)
        sampling = _sampling(header)
        _check_scans(header, data)
        return Layout(header, sampling, _component_tables(header, data))
    except UnsupportedJpeg as error:
        error.size = header.size
        raise


def parse(data: bytes, max_pixels: int | None = None) -> Layout | JpegError:
    """As `read_layout`, but returns the JpegError instead of raising it."""
    try:
        return read_layout(data, max_pixels)
    except JpegError as error:
        return error


def _check_size(header: Header, max_pixels: int) -> None:
    height, width = header.size
    if height * width > max_pixels:
        size = f"{width}x{height} = {height * width} pixels"
        raise BitstreamError(f"the header claims {size}, more than the limit of {max_pixels} (--max-pixels)")
    if (height + 15) * (width + 15) >= 2**31:  # jpeglib counts coefficients in 32 bits
        raise UnsupportedJpeg(f"{width}x{height} pixels are more than 2^31 coefficients")


def _may_have_scans(header: Header) -> bool:
    """Whether more scans may follow the first. libjpeg permits none after a sequential scan of all components."""
    return header.process == "progressive" or len(header.first_scan) < len(header.components)


def _check_scans(header: Header, data: bytes) -> None:
    if _may_have_scans(header) and data.count(b"\xff\xda", header.scan_offset) >= MAX_SCANS:
        raise UnsupportedJpeg(f"the file has more than {MAX_SCANS} scans")


def _sampling(header: Header) -> Subsampling:
    """The chroma sampling, from the ratios of the factors. Raises UnsupportedJpeg if it is not modelled."""
    if header.process not in ("baseline", "extended", "progressive"):
        raise UnsupportedJpeg(f"{header.process} coding is not modelled")
    if header.precision != 8:
        raise UnsupportedJpeg(f"{header.precision}-bit samples are not modelled")
    if len(header.components) == 1:
        return Subsampling.GRAY
    if len(header.components) != 3:
        kind = " (CMYK or YCCK)" if len(header.components) == 4 else ""
        raise UnsupportedJpeg(f"{len(header.components)} colour components{kind} are not modelled")
    if is_rgb(header):
        raise UnsupportedJpeg("RGB components are not modelled, only YCbCr")
    luma, *chroma = ((c.vertical, c.horizontal) for c in header.components)
    for sampling in (Subsampling.S444, Subsampling.S422, Subsampling.S440, Subsampling.S420):
        vertical, horizontal = sampling.factors
        if all(luma == (vertical * v, horizontal * h) for v, h in chroma):
            return sampling
    factors = ", ".join(f"{c.horizontal}x{c.vertical}" for c in header.components)
    raise UnsupportedJpeg(f"sampling factors {factors} are not modelled")


def is_rgb(header: Header) -> bool:
    """libjpeg's rule for the colour space of three components: JFIF decides, then Adobe, then the identifiers."""
    if header.jfif:
        return False
    if header.adobe_transform is not None:
        return header.adobe_transform == 0
    return bytes(c.identifier for c in header.components) == b"RGB"


def _component_tables(header: Header, data: bytes) -> list[tuple[int, ...]]:
    """Each component's quantisation steps. As in libjpeg, the table that its selector names when its first scan begins
    is used.

    Raises BitstreamError for a missing table, UnsupportedJpeg if a component has no scan or a step is not in
    1..MAX_STEP. A step of 0 is invalid (T.81, B.2.4.1), but decoders accept it; unused tables are not checked."""
    latched: dict[int, tuple[int, ...]] = {}
    available, scan, position = dict(header.tables), header.first_scan, header.scan_offset
    while True:
        for index in scan:
            latched.setdefault(index, _selected(header.components[index], available))
        scan = ()
        found = _MARKER.search(data, position) if len(latched) < len(header.components) else None
        if found is None or found[1][0] == EOI:
            break
        payload, position = segment(data, found.end(), found[1][0])
        if found[1][0] == DQT:
            available.update(quantisation_tables(payload))
        elif found[1][0] == SOS:
            scan = scan_components(payload, header.components)
    for index, component in enumerate(header.components):
        if index not in latched:
            raise UnsupportedJpeg(f"component {component.identifier} has no scan")
        if max(latched[index]) > MAX_STEP:
            raise UnsupportedJpeg(f"a quantisation step of {max(latched[index])} is more than the {MAX_STEP} modelled")
    return [latched[index] for index in range(len(header.components))]


def _selected(component: Component, tables: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    table = tables.get(component.table)
    if table is None:
        raise BitstreamError(f"component {component.identifier} uses quantisation table {component.table}, not defined")
    if 0 in table:
        raise UnsupportedJpeg(f"quantisation table {component.table} holds a step of 0")
    return table


@lru_cache(maxsize=256)
def _quality(luma: tuple[int, ...]) -> int:
    return nearest_quality(torch.tensor(luma, dtype=torch.int32).reshape(1, 8, 8))


def _read_planes(header: Header, data: bytes, sampling: Subsampling, planes: list[Plane]) -> None:
    """Fills planes [1, rows, columns, 8, 8] of whole MCUs; padding blocks are zeroed."""
    true = [sampling.true_blocks(component, header.size) for component in range(sampling.components)]
    segments = _in_whole_mcus(header, sampling)
    if segments or true == [plane.shape[1:3] for plane in planes]:
        _read_blocks(header, segments or header.segments, data, planes)
    else:
        unpadded = [np.empty((*blocks, 8, 8), np.int16) for blocks in true]
        _read_blocks(header, header.segments, data, unpadded)
        for plane, read in zip(planes, unpadded, strict=True):
            plane[0, : read.shape[0], : read.shape[1]] = read
    for plane, (rows, columns) in zip(planes, true, strict=True):
        plane[0, rows:] = 0
        plane[0, :, columns:] = 0


def _in_whole_mcus(header: Header, sampling: Subsampling) -> bytes | None:
    """The header's segments with the size enlarged to whole MCUs, so that libjpeg fills the planes directly. None if
    that would change the number of blocks: scans of one component have no padding (T.81, A.2.2)."""
    (rows, columns), (height, width) = sampling.mcu_grid(header.size), sampling.mcu
    size = rows * height, columns * width
    return None if _may_have_scans(header) or max(size) > MAX_DIMENSION else resized(header, size)


def resized(header: Header, size: tuple[int, int]) -> bytes:
    """The header's segments with another size, (height, width) in pixels."""
    before, after = header.segments[: header.size_offset], header.segments[header.size_offset + 4 :]
    return before + pack(">HH", *size) + after


def _read_blocks(header: Header, segments: bytes, data: bytes, blocks: list[Plane]) -> None:
    """Fills `blocks` from the scans of `data`. Raises BitstreamError if the image is incomplete.

    A file that may have more scans is complete at its end-of-image marker. A file with one scan is complete when its
    last block is, whatever follows; so without the marker, it counts as complete if Pillow decodes it."""
    scans = memoryview(data)[header.scan_offset :]
    if data.rfind(b"\xff\xd9", header.scan_offset) >= 0:
        if _libjpeg_reads((segments, scans, _SENTINEL), blocks):
            return
        reason = "truncated or damaged: libjpeg-turbo could not read to an end-of-image marker"
    else:
        reason = "truncated: the file has no end-of-image marker"
    if _may_have_scans(header) or pillow_error(data) is not None:
        raise BitstreamError(reason)
    # Cut off what follows the scan. Any marker ends it, except that a decoder in search of a restart marker skips
    # invalid ones.
    end = (_MARKER if header.restart_interval else _ANY_MARKER).search(scans)
    if not _libjpeg_reads((segments, scans[: end.start()] if end else scans, b"\xff\xd9", _SENTINEL), blocks):
        raise BitstreamError(reason)


def _libjpeg_reads(stream: Iterable[bytes | memoryview], blocks: list[Plane]) -> bool:
    """Whether libjpeg reads `stream` without an error. Fills `blocks`, one array of the exact size per component.

    jpeglib crashes on an error before the first scan and does not check the arrays' sizes, so it gets the header that
    was checked here. Its public functions are bypassed: they decode each file twice, through a temporary file, and
    select libjpeg by a global variable."""
    pointers = [block.ctypes.data for block in blocks] + [None] * (4 - len(blocks))
    descriptor = os.memfd_create("jpeg")
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.writelines(stream)
        file.flush()
        path = b"/proc/self/fd/%d" % descriptor
        if _libjpeg()(path, *pointers, None, None):
            return True
        os.close(os.open(path, os.O_RDONLY))  # raises OSError if this was the cause: too many open files, no /proc
        return False


@cache
def _libjpeg() -> Callable[..., int]:
    """jpeglib's private C function `read_jpeg_dct(path, Y, Cb, Cr, K, tables, selectors)`: returns 1, or 0 after an
    error. jpeglib 1.0 has no public way to decode into given arrays.

    Raises RuntimeError if the installed jpeglib may have another signature."""
    installed, spec = version("jpeglib"), find_spec("jpeglib")
    folders = spec.submodule_search_locations if spec else None
    if not installed.startswith("1.0.") or not folders:
        raise RuntimeError(f"jpeglib {installed} is installed, expected 1.0.x: pip install 'jpeglib>=1.0.2,<1.1'")
    libraries = sorted(Path(folders[0]).glob(f"cjpeglib/cjpeglib_{_VERSION}.*"))
    if not libraries:
        raise RuntimeError(f"this build of jpeglib has no {_VERSION}: reinstall it from a wheel")
    function = ctypes.CDLL(str(libraries[0])).read_jpeg_dct
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 6
    return function
