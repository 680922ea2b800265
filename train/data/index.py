"""The index of training images in folders, files and tar shards: which are usable, and the offsets of their bytes.
Built from headers alone.

    index = open_index(["photos", "shards/000.tar"], smallest=128, cache=Path("cache"))
    index.read(7), index.sizes[7]       # index.skipped: the images that are left out, with reasons

A catalogue in the cache folder, one line of JSON for each file, stores the result; a file whose size and modification
time have not changed is not opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.atomic import write_atomically
from pipeline.inputs.listing import SourceError
from pipeline.inputs.names import JPEG_OR_PNG, digest, is_shard
from pipeline.inputs.source import SIZE_LIMIT
from pipeline.inputs.tar import TarHeader, members_of
from pipeline.jpeg.bitstream import MAX_PIXELS, is_rgb
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.jpeg.header import Header, read_header

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD, _TAIL = 1 << 14, 64
_BROKEN = "broken.jsonl"

Reader = Callable[[int, int], bytes]
"""(offset, count) → bytes of one image, fewer at its end."""


@dataclass
class Index:
    """The usable images of some paths, numbered in a fixed order."""

    files: list[str]  # paths of the image files and shards
    members: list[str]  # the name of each image inside its shard; empty for a file of its own
    extents: NDArray[np.int64]  # [images, 3]: number of the file, offset and length in bytes
    sizes: NDArray[np.int32]  # [images, 2]: height and width in pixels
    skipped: dict[str, str] = field(default_factory=dict)  # name → reason of the images left out
    broken: dict[int, str] = field(default_factory=dict)  # image → reason of those that failed to decode, in this run
    # or an earlier one; they keep their numbers

    def __len__(self) -> int:
        return len(self.members)

    def name(self, image: int) -> str:
        """The path of the image; a shard counts as a folder."""
        return _name(self.files[self.extents[image, 0]], self.members[image])

    def read(self, image: int) -> bytes:
        """The encoded image. Raises OSError if it cannot be read completely."""
        number, offset, length = map(int, self.extents[image])
        with Path(self.files[number]).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, offset)
        if len(data) < length:
            raise OSError(f"expected {length} bytes, got {len(data)}: the file has changed")
        return data

    def fingerprint(self) -> str:
        """A hash of sizes, offsets and order of the images, independent of the location of their folder."""
        hashed = blake2b(self.extents.tobytes(), digest_size=12)
        hashed.update(self.sizes.tobytes())
        return hashed.hexdigest()


def open_index(paths: Sequence[str], smallest: int, cache: Path) -> Index:
    """Indexes all images below `paths` (folders, tar shards, JPEG and PNG files) that are at least `smallest` pixels
    high and wide and that Pillow and DALI decode equally.

    Left out, and listed in `skipped`: broken headers, truncated files, CMYK, RGB-coded, arithmetic-coded, lossless and
    12-bit JPEGs, 16-bit PNGs, and compressed tars, which have no random access. Transparency is ignored, and of an
    animation the first image is taken, as by Pillow's `convert("RGB")`. A lock serialises processes that share a cache
    folder.

    Raises SourceError if no image is usable, a path is missing, or the cache folder cannot be written.
    """
    builder = _IndexBuilder(smallest)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "lock"):
            for path in paths:
                for name, record in _catalogued(Path(path), cache):
                    builder.add(name, record)
            index = builder.index()
            index.broken = _read_broken(index, cache)
    except OSError as error:
        raise SourceError(f"cannot index {', '.join(paths)} in the cache folder {cache}: {error}") from error
    if not len(index):
        raise SourceError(
            f"no image of at least {smallest}x{smallest} pixels in {', '.join(paths)}{_sample(index)}: give larger ones"
        )
    return index


def record_broken(index: Index, image: int, reason: str, cache: Path) -> None:
    """Records in the index and in the cache, for later runs, that an image with a sound header cannot be decoded. The
    record is valid until the file changes."""
    index.broken[image] = reason
    path = index.files[index.extents[image, 0]]
    line = json.dumps([path, index.members[image], *_stamp(path), reason])
    with suppress(OSError), (cache / _BROKEN).open("a") as file:  # without the record a later run detects it again
        file.write(line + "\n")


def image_size(read: Reader, length: int) -> tuple[int, int]:
    """(height, width) in pixels of a JPEG or PNG image of `length` bytes, from its header.

    Raises JpegError, with the reason, if its header or end is broken, or if it is of a kind that Pillow and DALI decode
    differently."""
    if length > SIZE_LIMIT:
        raise UnsupportedJpeg(f"{length} bytes are more than the limit of {SIZE_LIMIT}")
    head = read(0, min(_HEAD, length))
    if head.startswith(PNG_SIGNATURE):
        size, start, end = _png_size(head), len(PNG_SIGNATURE), b"IEND"
    else:
        header = _jpeg_header(head, read, length)
        size, start, end = header.size, header.scan_offset, b"\xff\xd9"
    if size[0] * size[1] > MAX_PIXELS:
        raise UnsupportedJpeg(f"{size[1]}x{size[0]} pixels are more than the limit of {MAX_PIXELS}")
    last = max(start, length - _TAIL)
    if end not in read(last, length - last) and read(0, length).rfind(end, start) < 0:
        raise BitstreamError("truncated: the end of the image is missing")
    return size


def _jpeg_header(head: bytes, read: Reader, length: int) -> Header:
    try:
        header = read_header(head)
    except BitstreamError:
        if length <= len(head):
            raise
        header = read_header(read(0, length))  # a long profile, or a preview image, before the frame header
    if header.process not in ("baseline", "extended", "progressive") or header.precision != 8:
        raise UnsupportedJpeg(f"a JPEG of {header.precision}-bit samples, {header.process}")
    if len(header.components) not in (1, 3):
        raise UnsupportedJpeg(f"a JPEG of {len(header.components)} colour components")
    if len(header.components) == 3 and is_rgb(header):
        raise UnsupportedJpeg("a JPEG of RGB components, not YCbCr")
    return header


def _png_size(head: bytes) -> tuple[int, int]:
    """From the IHDR chunk (PNG specification, 11.2.1)."""
    chunk = head[12:29]
    if head[8:16] != b"\0\0\0\x0dIHDR" or crc32(chunk) != int.from_bytes(head[29:33], "big"):
        raise BitstreamError("a PNG without a sound header")
    width, height = int.from_bytes(chunk[4:8], "big"), int.from_bytes(chunk[8:12], "big")
    if chunk[12] > 8:
        raise UnsupportedJpeg(f"a PNG of {chunk[12]}-bit samples")
    if not width or not height:
        raise BitstreamError(f"the PNG header claims {width}x{height} pixels")
    return height, width


class _IndexBuilder:
    """An index under construction, in compact arrays for millions of images."""

    def __init__(self, smallest: int) -> None:
        self._smallest = smallest
        self._files: list[str] = []
        self._members: list[str] = []
        self._extents, self._sizes = array("q"), array("i")
        self._skipped: dict[str, str] = {}

    def add(self, path: str, record: dict[str, Any]) -> None:
        before = len(self._members)
        for member, offset, length, height, width in record["images"]:
            if min(height, width) < self._smallest:
                small = f"{width}x{height} pixels are too small for crops of {self._smallest}"
                self._skipped[_name(path, member)] = small
                continue
            self._members.append(member)
            self._extents.extend((len(self._files), offset, length))
            self._sizes.extend((height, width))
        for member, reason in record["skipped"].items():
            self._skipped[_name(path, member)] = reason
        if len(self._members) > before:
            self._files.append(path)

    def index(self) -> Index:
        extents = np.array(self._extents, np.int64).reshape(-1, 3)
        sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        return Index(self._files, self._members, extents, sizes, self._skipped)


def _catalogued(root: Path, cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, record) of each file below `root`, from the catalogue, or for new and changed files from their headers.
    Updates the catalogue."""
    catalogue = cache / f"{root.name}-{digest(str(root.resolve())).hex()}.v1.jsonl"
    known = _read_catalogue(catalogue)
    lines: list[str] = []
    fresh = 0
    with tqdm(desc=f"reading headers of {root.name}", unit="img", leave=False, delay=1) as progress:
        for path, stamp in _files(root):
            line = known.pop(path, "")
            record = json.loads(line) if line else {}
            if record.get("stamp") != stamp:
                record = {"file": path, "stamp": stamp, **_inspect(path, progress)}
                line = json.dumps(record)
                fresh += 1
            lines.append(line)
            yield path, record
    if fresh or known:
        write_atomically(catalogue, "".join(line + "\n" for line in lines).encode())


def _read_catalogue(path: Path) -> dict[str, str]:
    """File → its line. Invalid lines are ignored."""
    lines = {}
    for line in _lines(path):
        try:
            record = json.loads(line)
            if {"file", "stamp", "images", "skipped"} <= record.keys():
                lines[record["file"]] = line
        except (ValueError, AttributeError):
            continue
    return lines


def _read_broken(index: Index, cache: Path) -> dict[int, str]:
    found: dict[tuple[str, str], tuple[list[int], str]] = {}
    for line in _lines(cache / _BROKEN):
        try:
            path, member, size, changed, reason = json.loads(line)
            found[path, member] = ([size, changed], reason)
        except (ValueError, TypeError):
            continue
    if not found:
        return {}
    current = {path: _stamp(path) for path in {path for path, _ in found} & set(index.files)}
    broken = {}
    for image, member in enumerate(index.members):
        path = index.files[index.extents[image, 0]]
        if path in current and (path, member) in found:
            stamp, reason = found[path, member]
            if stamp == current[path]:
                broken[image] = reason
    return broken


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
    except FileNotFoundError:
        return


def _files(root: Path) -> Iterator[tuple[str, list[int]]]:
    """(path, stamp) of the images and shards at `root` or below, in the order of their names."""
    if root.is_dir():
        os.scandir(root).close()
        yield from _walk(root, frozenset())
        return
    root.stat()
    if not (is_shard(root.name) or JPEG_OR_PNG.includes(root.name)):
        raise SourceError(f"{root}: unsupported kind of file; expected a folder, a tar, a JPEG or a PNG file")
    yield str(root.absolute()), _stamp(root)


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[int]]]:
    """Follows links to folders, except to the folders in `above`, which are being walked."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    folders = []
    try:
        entries = sorted(os.scandir(folder.absolute()), key=lambda entry: entry.name)
    except OSError:
        yield str(folder.absolute()), [-1, -1]
        return
    for entry in entries:
        if entry.is_dir():
            folders.append(Path(entry.path))
        elif is_shard(entry.name) or JPEG_OR_PNG.includes(entry.name):
            yield entry.path, _stamp(entry.path)
    for inner in folders:
        yield from _walk(inner, above | {here})


def _stamp(path: str | Path) -> list[int]:
    """Size in bytes and modification time in nanoseconds; [-1, -1] for a broken link."""
    try:
        status = os.stat(path)  # noqa: PTH116 - faster, for millions of files
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _inspect(path: str, progress: tqdm[Any]) -> dict[str, Any]:
    """The record of a file. `images`: a list of [member, offset, length, height, width]; `skipped`: member → reason. A
    file that cannot be read has the stamp None, so that it is tried again next time."""
    images: list[list[Any]] = []
    skipped: dict[str, str] = {}
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):  # opening a pipe would block
            raise OSError("a folder that cannot be listed" if stat.S_ISDIR(mode) else "not a regular file")
        with Path(path).open("rb") as file:
            if is_shard(path):
                _inspect_shard(file, images, skipped, progress)
            else:
                _measure(file.fileno(), ("", 0, os.fstat(file.fileno()).st_size), images, skipped)
                progress.update()
    except OSError as error:
        skipped[""] = f"cannot be read: {error.strerror or error}"
        return {"images": images, "skipped": skipped, "stamp": None}
    return {"images": images, "skipped": skipped}


def _inspect_shard(file: IO[bytes], images: list[list[Any]], skipped: dict[str, str], progress: tqdm[Any]) -> None:
    count, repeats = 0, dict[str, int]()
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=TarHeader) as tar:
            for count, member in enumerate(members_of(tar), 1):  # noqa: B007
                if member.isdir() or not JPEG_OR_PNG.includes(member.name):
                    continue
                times = repeats[member.name] = repeats.get(member.name, 0) + 1
                name = member.name + (f"#{times}" if times > 1 else "")
                if not member.isreg() or member.issparse():
                    skipped[name] = "a link, special or sparse file in a tar, which is not followed"
                else:
                    _measure(file.fileno(), (name, member.offset_data, member.size), images, skipped)
                progress.update()
    except OSError:
        raise
    except Exception as error:  # tarfile raises a dozen types over damaged input
        what = str(error).partition("\n")[0] or type(error).__name__
        damage = f"the tar is damaged or cut off after {count} members: {what}"
        skipped[""] = damage if count else f"not an uncompressed tar archive: {what}"


def _measure(descriptor: int, extent: tuple[str, int, int], images: list[list[Any]], skipped: dict[str, str]) -> None:
    """Adds an image (name, offset, length) of an open file to `images`, or to `skipped`."""
    name, start, length = extent
    try:
        size = image_size(lambda offset, count: os.pread(descriptor, count, start + offset), length)
    except JpegError as error:
        skipped[name] = str(error)
    else:
        images.append([name, start, length, *size])


def _name(path: str, member: str) -> str:
    """A printable name; bytes that are not UTF-8 are escaped."""
    name = f"{path}/{member}" if member else path
    return name.encode("utf-8", "backslashreplace").decode()


def _sample(index: Index) -> str:
    left_out = [f"{name}: {reason}" for name, reason in index.skipped.items()]
    return f"; {len(left_out)} left out, such as {left_out[0]}" if left_out else ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
