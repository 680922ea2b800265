"""JPEG files for the tests, made by real encoders from photograph-like noise, and marker surgery on them."""

from __future__ import annotations

import io
import re
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
    """Whether Pillow loads the whole file without an exception."""
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


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """One to three random injuries: bits and bytes changed, stretches removed, repeated, swapped, cut off; most of them
    anywhere, every other near a marker, where they hurt."""
    mutated = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        if len(mutated) < 8:
            break
        position = int(generator.integers(len(mutated)))
        if generator.random() < 0.5:
            markers = [match.start() for match in re.finditer(rb"\xff[^\0]", bytes(mutated))] or [0]
            position = min(len(mutated) - 1, markers[generator.integers(len(markers))] + int(generator.integers(24)))
        length = int(generator.integers(1, 40))
        match int(generator.integers(8)):
            case 0:
                mutated[position] ^= 1 << int(generator.integers(8))
            case 1:
                mutated[position] = int(generator.integers(256))
            case 2:
                del mutated[position : position + length]
            case 3:
                mutated[position:position] = mutated[position : position + length]
            case 4:
                mutated[position:position] = generator.bytes(length)
            case 5:
                mutated[position : position + 1] = bytes((0xFF, int(generator.integers(0xC0, 0xFF))))
            case 6:
                mutated[position] = int(generator.choice([0, 1, 2, 3, 4, 0x11, 0x22, 0x12, 0x21, 0x7F, 0x80, 0xFF]))
            case 7:
                if generator.random() < 0.3:
                    del mutated[position:]
    return bytes(mutated)
