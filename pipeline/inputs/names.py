"""Names of input files: which are JPEG files and tars, and which are refused."""

from hashlib import blake2b
from pathlib import PurePosixPath

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class UnsafeNameError(ValueError):
    """A name that is absolute, climbs out of its folder, or cannot be a file's name."""


def is_jpeg(name: str) -> bool:
    """Whether the extension says JPEG, in either case."""
    return PurePosixPath(name).suffix.lower() in JPEG_SUFFIXES


def is_shard(name: str) -> bool:
    """Whether the extension says tar, in either case."""
    return name.lower().endswith(SHARD_SUFFIXES)


def safe_name(name: str) -> str:
    """The relative path `name` without `./` and doubled slashes.

    Raises UnsafeNameError for a path that is absolute, has a `..` or a NUL character, or is empty: such a name is
    refused, not mended, because what it would be mended to may be another file's name.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise UnsafeNameError(f"{name!r} is an absolute path")
    if ".." in parts:
        raise UnsafeNameError(f"{name!r} leads out of its folder")
    if "\0" in name or not parts:
        raise UnsafeNameError(f"{name!r} cannot be the name of a file")
    return "/".join(parts)


def digest(text: str) -> bytes:
    """A 12-byte stand-in for a name: millions fit in a set, and two of ten million agree with a chance of 1e-15."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
