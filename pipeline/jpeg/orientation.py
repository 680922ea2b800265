"""EXIF's orientation (CIPA DC-008, 4.6.4; TIFF 6.0, sections 2 and 8): reading it, turning images upright and back, and
saying in EXIF that they are upright."""

from __future__ import annotations

from struct import error as StructError
from struct import pack_into, unpack_from
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Pixel = TypeVar("Pixel", bound=np.generic)

UPRIGHT = 1
_TAG, _SHORT = 0x0112, 3
_SIGNATURE = b"Exif\0\0"
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""Orientation → what turns the stored image upright: exchange rows and columns; then reverse the rows, the columns."""

_OPPOSITE = {6: 8, 8: 6}
"""Orientation → the one that turns back; the others turn back themselves."""


def orientation_of(exif: bytes | None) -> int:
    """1 (upright) to 8; 1 also if EXIF says nothing that is valid. exif: as in Metadata."""
    found = _find(exif or b"")
    return UPRIGHT if found is None else found[0]


def exchanges_sides(orientation: int) -> bool:
    """Whether the upright image is as wide as the stored one is high."""
    return _TURNS[orientation][0]


def turn_upright(image: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """The upright image, a view. image: [H, W] or [H, W, C], as stored with this orientation."""
    exchange, rows, columns = _TURNS[orientation]
    image = image.swapaxes(0, 1) if exchange else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def turn_back(image: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """The inverse of `turn_upright`."""
    return turn_upright(image, _OPPOSITE.get(orientation, orientation))


def without_orientation(exif: bytes) -> bytes:
    """EXIF that says upright, if it said something else; all else, also what it holds in unknown places, stays."""
    found = _find(exif)
    if found is None:
        return exif
    _, order, place = found
    changed = bytearray(exif)
    pack_into(f"{order}H", changed, place, UPRIGHT)
    return bytes(changed)


def _find(exif: bytes) -> tuple[int, str, int] | None:
    """(orientation, byte order, place of its value in bytes) from the first directory; None if it has none."""
    start = len(_SIGNATURE) if exif.startswith(_SIGNATURE) else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[start : start + 4])
    if order is None:
        return None
    try:
        (first,) = unpack_from(f"{order}I", exif, start + 4)
        (entries,) = unpack_from(f"{order}H", exif, start + first)
        for place in range(start + first + 2, start + first + 2 + 12 * entries, 12):
            tag, kind, count, value = unpack_from(f"{order}HHIH", exif, place)
            if (tag, kind, count) == (_TAG, _SHORT, 1):
                return (value, order, place + 8) if value in _TURNS else None
    except StructError:  # it ends before
        pass
    return None
