"""JPEG files for the tests, made by real encoders from photograph-like noise, and marker surgery on them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
SAMPLINGS = ("4:4:4", "4:2:2", "4:4:0", "4:2:0")


def photograph(height: int, width: int, seed: int = 0) -> Pixels:
    """[height, width, 3]: gradients, waves and low-passed noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 37 + y / 91), np.cos(y / 23 - x / 60), np.sin((x + y) / 53)], axis=-1)
    noise = generator.normal(0, 14, (height, width, 3))
    noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 2
    return (128 + 80 * waves + noise).clip(0, 255).astype(np.uint8)


def encode(pixels: Pixels, sampling: str = "4:2:0", quality: int = 75, **options: Any) -> bytes:
    """Pillow's encoder, and simplejpeg's where Pillow lacks the sampling (4:4:0)."""
    if sampling == "4:4:0":
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="440"))
    image = Image.fromarray(pixels)
    if sampling == "gray":
        image = image.convert("L")
    else:
        options["subsampling"] = sampling
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def pillow_loads(data: bytes) -> bool:
    """Whether Pillow loads the whole file without an exception, with or without warnings."""
    with warnings.catch_warnings(action="ignore"):
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:
            return False
    return True


def pixels_of(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)))


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker code, offset of the marker, end) of each segment up to the first scan's header, inclusive."""
    position = 2
    while True:
        code = data[position + 1]
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield code, position, end
        if code == 0xDA:
            return
        position = end


def edit(data: bytes, code: int, change: Callable[[bytearray], object]) -> bytes:
    """The file with the payload of its first segment `code` changed in place, at the same length."""
    offset, end = next((offset, end) for found, offset, end in segments(data) if found == code)
    payload = bytearray(data[offset + 4 : end])
    change(payload)
    return data[: offset + 4] + bytes(payload) + data[end:]


def without(data: bytes, code: int) -> bytes:
    """The file without its header segments `code`."""
    cuts = [(offset, end) for found, offset, end in segments(data) if found == code]
    for offset, end in reversed(cuts):
        data = data[:offset] + data[end:]
    return data


def insert(data: bytes, code: int, payload: bytes, at: int = 2) -> bytes:
    """The file with one more segment."""
    return data[:at] + bytes((0xFF, code)) + (len(payload) + 2).to_bytes(2, "big") + payload + data[at:]


def one_scan_each(planes: list[Pixels], sampling: str, qualities: list[int], number: int = 0, **options: Any) -> bytes:
    """A file with a scan of its own for each component, each with the tables of its own `quality`, all of them defined
    as table `number` just before their scan: spliced from gray files of the planes, which Pillow writes."""
    grays = [encode(p, "gray", quality, **options) for p, quality in zip(planes, qualities, strict=True)]
    vertical, horizontal = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:4:0": (2, 1), "4:2:0": (2, 2)}[sampling]
    spliced = [b"\xff\xd8"]
    for index, gray in enumerate(grays):
        for code, offset, end in segments(gray):
            payload = bytearray(gray[offset + 4 : end])
            if code == 0xDB:
                payload[0] = number
            elif code in (0xC0, 0xC2):
                if index:
                    continue
                factors = (16 * horizontal + vertical, 0x11, 0x11)
                payload[5:] = bytes([3, *(byte for i in range(3) for byte in (i + 1, factors[i], number))])
            elif code not in (0xC4, 0xDA, 0xDD):
                continue
            if code == 0xDA:
                break
            spliced.append(insert(b"", code, bytes(payload), 0))
        spliced.append(re.sub(rb"\xff\xda\0\x08\x01\x01", bytes((0xFF, 0xDA, 0, 8, 1, index + 1)), gray[offset:-2]))
    return b"".join(spliced) + b"\xff\xd9"


def _flip(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at] ^= 1 << int(generator.integers(8))


def _overwrite(data: bytearray, at: int, generator: np.random.Generator) -> None:
    telling = (0, 1, 2, 3, 4, 0x11, 0x12, 0x21, 0x22, 0x7F, 0x80, 0xFF, int(generator.integers(256)))
    data[at] = telling[generator.integers(len(telling))]


def _remove(data: bytearray, at: int, generator: np.random.Generator) -> None:
    del data[at : at + int(generator.integers(1, 40))]


def _repeat(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = data[at : at + int(generator.integers(1, 40))]


def _add(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = generator.bytes(int(generator.integers(1, 40)))


def _mark(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at : at + 1] = bytes((0xFF, int(generator.integers(0xC0, 0xFF))))


def _cut(data: bytearray, at: int, generator: np.random.Generator) -> None:
    if generator.random() < 0.3:
        del data[at:]


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """One to three random injuries, half of them anywhere and half near a marker, where they hurt."""
    mutated = bytearray(data)
    injuries = (_flip, _overwrite, _remove, _repeat, _add, _mark, _cut)
    for _ in range(int(generator.integers(1, 4))):
        position = int(generator.integers(len(mutated)))
        if generator.random() < 0.5:
            markers = [match.start() for match in re.finditer(rb"\xff[^\0]", bytes(mutated))] or [0]
            position = min(len(mutated) - 1, markers[generator.integers(len(markers))] + int(generator.integers(24)))
        injuries[generator.integers(len(injuries))](mutated, position, generator)
        mutated = mutated or bytearray(1)
    return bytes(mutated)
