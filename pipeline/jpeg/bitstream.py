"""Bytes of a JPEG file → its coefficients and metadata, or a typed error. Nothing in the bytes is trusted.

The header is checked in `header`; the entropy-coded data (T.81, F.2 and G.2) are libjpeg-turbo's, through jpeglib.
"""

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

MAX_PIXELS = 178_956_970
"""The size above which Pillow refuses a file as a decompression bomb; the limit where the caller sets none."""

MAX_STEP = 8191
"""libjpeg-turbo's encoder keeps 8 times a step in 16 bits, so no image of its own has a larger one."""

MAX_SCANS = 500
"""Each scan walks the whole image, however few bytes it has; real progressive files have about ten."""

_VERSION = "turbo210"
# A marker that libjpeg refuses at any place after the header. It follows the data, so that libjpeg fails where it would
# otherwise make up an end of image; more than 65,535 bytes of it, so that no segment's length reaches beyond.
_SENTINEL = b"\xff\xc0" * 32800
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_MARKER = re.compile(rb"\xff([^\x00-\xbf\xd0-\xd7\xff])")  # neither invalid nor a restart marker
_ANY_MARKER = re.compile(rb"\xff[^\x00\xff]")

Plane = NDArray[np.int16]


@dataclass(frozen=True)
class Bitstream:
    """One file's coefficients, and what is carried over to the restored image.

    coefficients: of N = 1 image, on the CPU; padding blocks zero whatever the file has there.
    icc: the ICC profile, or None.
    exif: the EXIF payload as Pillow's `exif=` takes it, or None.
    progressive: whether the file was progressive.
    quality: the libjpeg quality, 1..100, whose luma table is nearest.
    recovered: the coefficients were recovered from decoded pixels, so that some may not be the file's own.
    """

    coefficients: Coefficients
    icc: bytes | None
    exif: bytes | None
    progressive: bool
    quality: int
    recovered: bool = False


@dataclass(frozen=True)
class Layout:
    """All of a file but its coefficients. tables: each component's 64 steps, natural order."""

    header: Header
    sampling: Subsampling
    tables: list[tuple[int, ...]]

    @property
    def quality(self) -> int:
        """The libjpeg quality, 1..100, whose luma table is nearest."""
        return _quality(self.tables[0])

    def with_whole_blocks(self, data: bytes) -> bytes:
        """The file as one whose image goes on to the end of its last MCUs or, where the file may have no more than the
        image's own blocks (T.81, A.2.2), of its last luma blocks. Its blocks are the same, but no decoder cuts off what
        hangs over the edge. Of the metadata there is none; JFIF says that the colours are YCbCr."""
        header, sampling = self.header, self.sampling
        blocks = sampling.true_blocks if _may_have_scans(header) else sampling.plane_blocks
        rows, columns = blocks(0, header.size)
        size = (8 * rows, 8 * columns)
        segments = resized(header, size if max(size) <= MAX_DIMENSION else header.size)
        return b"".join((segments[:2], _JFIF, segments[2:], data[header.scan_offset :]))

    def bitstream(self, planes: Iterable[Tensor], recovered: bool = False) -> Bitstream:
        """The file with its coefficients, planes as `Coefficients` has them, on the CPU."""
        coefficients = Coefficients(
            planes=tuple(planes),
            tables=torch.tensor(self.tables, dtype=torch.int32).reshape(1, -1, 8, 8),
            sampling=self.sampling,
            size=self.header.size,
        )
        header = self.header
        progressive = header.process == "progressive"
        return Bitstream(coefficients, header.icc, header.exif, progressive, self.quality, recovered)


def read_bitstream(data: bytes, max_pixels: int | None = None) -> Bitstream:
    """What a JPEG file says: the first image in `data`, which may be followed by others or by garbage.

    Damage inside the scans is read as libjpeg-turbo reads it, to whatever coefficients it recovers; a file that ends
    before its image does is refused. `max_pixels` bounds the size before memory is taken (None: MAX_PIXELS); at most 18
    bytes per pixel are taken, 6 of them kept on return.

    Raises BitstreamError when the file is broken or larger than `max_pixels`, UnsupportedJpeg when it is of a kind that
    is not modelled, which does not vouch for the rest of the file; no other exception for any bytes. Safe to call from
    several threads. libjpeg reports damage with a line on standard error; nothing here can prevent that.
    """
    return read_scans(read_layout(data, max_pixels), data)


def read_scans(layout: Layout, data: bytes, planes: Sequence[Tensor] | None = None) -> Bitstream:
    """The rest of `read_bitstream`, once it is known what the header says. planes: where the coefficients are to go,
    shaped as `Coefficients` has them, of any content before; otherwise into memory of their own."""
    sampling, size = layout.sampling, layout.header.size
    if planes is None:
        blocks = [sampling.plane_blocks(component, size) for component in range(sampling.components)]
        planes = [torch.empty((1, *shape, 8, 8), dtype=torch.int16) for shape in blocks]
    _read_planes(layout.header, data, sampling, [plane.numpy() for plane in planes])
    return layout.bitstream(planes)


def read_layout(data: bytes, max_pixels: int | None = None) -> Layout:
    """What a JPEG file says before and between its scans, whose entropy-coded data are not decoded. Takes no memory for
    the image. Raises as `read_bitstream` does."""
    header = read_header(data)
    _check_size(header, MAX_PIXELS if max_pixels is None else max_pixels)
    sampling = _sampling(header)
    _check_scans(header, data)
    return Layout(header, sampling, _component_tables(header, data))


def parse(data: bytes, max_pixels: int | None = None) -> Layout | JpegError:
    """`read_layout`, what it raises returned."""
    try:
        return read_layout(data, max_pixels)
    except JpegError as error:
        return error


def _check_size(header: Header, max_pixels: int) -> None:
    height, width = header.size
    if height * width > max_pixels:
        raise BitstreamError(
            f"the header claims {width}x{height} = {height * width} pixels, more than the limit of {max_pixels}"
        )
    if (height + 15) * (width + 15) >= 2**31:  # jpeglib counts coefficients in 32 bits
        raise UnsupportedJpeg(f"{width}x{height} pixels are more than 2^31 coefficients")


def _may_have_scans(header: Header) -> bool:
    """Whether more scans may follow the first. libjpeg refuses them after a sequential one of all components."""
    return header.process == "progressive" or len(header.first_scan) < len(header.components)


def _check_scans(header: Header, data: bytes) -> None:
    if _may_have_scans(header) and data.count(b"\xff\xda", header.scan_offset) >= MAX_SCANS:
        raise UnsupportedJpeg(f"the file has more than {MAX_SCANS} scans")


def _sampling(header: Header) -> Subsampling:
    """The layout of the file's components, factors compared by ratio. Raises UnsupportedJpeg when it is another one."""
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
    """libjpeg's guess at the colour space of three components: JFIF decides, then Adobe, then their identifiers."""
    if header.jfif:
        return False
    if header.adobe_transform is not None:
        return header.adobe_transform == 0
    return bytes(c.identifier for c in header.components) == b"RGB"


def _component_tables(header: Header, data: bytes) -> list[tuple[int, ...]]:
    """Each component's quantisation steps: those that its selector names when its first scan begins, as libjpeg takes
    them. Raises BitstreamError for a missing table, UnsupportedJpeg when a component has no scan or a step is not in
    1..MAX_STEP. A step of 0 is invalid (T.81, B.2.4.1), but decoders accept it; tables that no component uses are not
    looked at."""
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
    """Fills [1, rows, columns, 8, 8] planes in our geometry, padding blocks with zeros."""
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
    """The header's segments for an image that fills its last MCUs: libjpeg then writes planes in our geometry itself.

    None where that image would have other blocks: scans of one component leave the padding out (T.81, A.2.2)."""
    (rows, columns), (height, width) = sampling.mcu_grid(header.size), sampling.mcu
    size = rows * height, columns * width
    return None if _may_have_scans(header) or max(size) > MAX_DIMENSION else resized(header, size)


def resized(header: Header, size: tuple[int, int]) -> bytes:
    """The header's segments, (height, width) replaced."""
    before, after = header.segments[: header.size_offset], header.segments[header.size_offset + 4 :]
    return before + pack(">HH", *size) + after


def _read_blocks(header: Header, segments: bytes, data: bytes, blocks: list[Plane]) -> None:
    """Fills `blocks` from the scans of `data`. Raises BitstreamError when the image is not complete.

    A file that may have more scans is complete at its end-of-image marker. One of a single scan is complete, for every
    decoder that reads on demand, when its last block is, whatever follows: so if no such marker does, Pillow decides.
    """
    scans = memoryview(data)[header.scan_offset :]
    if data.rfind(b"\xff\xd9", header.scan_offset) >= 0:
        if _libjpeg_reads((segments, scans, _SENTINEL), blocks):
            return
        reason = "truncated or damaged: libjpeg-turbo could not read to an end-of-image marker (it says why on stderr)"
    else:
        reason = "truncated: the file has no end-of-image marker"
    if _may_have_scans(header) or pillow_error(data) is not None:
        raise BitstreamError(reason)
    # What follows the scan must not matter. Any marker ends it, except that a decoder looking for the next restart
    # marker passes over invalid ones.
    end = (_MARKER if header.restart_interval else _ANY_MARKER).search(scans)
    if not _libjpeg_reads((segments, scans[: end.start()] if end else scans, b"\xff\xd9", _SENTINEL), blocks):
        raise BitstreamError(reason)


def _libjpeg_reads(stream: Iterable[bytes | memoryview], blocks: list[Plane]) -> bool:
    """Whether libjpeg reads `stream` without an error. Fills `blocks`, an array for each component, of just its size.

    jpeglib cannot survive an error before the first scan, and trusts the caller with the arrays' sizes. So it is given
    the header that was checked here, not the file's own. Its Python layer is left out: it decodes each file twice, goes
    through a temporary file, and keeps its choice of libjpeg in a global variable."""
    pointers = [block.ctypes.data for block in blocks] + [None] * (4 - len(blocks))
    descriptor = os.memfd_create("jpeg")
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.writelines(stream)
        file.flush()
        path = b"/proc/self/fd/%d" % descriptor
        if _libjpeg()(path, *pointers, None, None):
            return True
        os.close(os.open(path, os.O_RDONLY))  # raises OSError if that was why: too many open files, or no /proc
        return False


@cache
def _libjpeg() -> Callable[..., int]:
    """jpeglib's `read_jpeg_dct(path, Y, Cb, Cr, K, tables, selectors)` → 1, or 0 after an error.

    Raises RuntimeError when the installed jpeglib is not one whose function has this signature."""
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
