"""Names of input files: recognises JPEG files and tars, refuses unsafe names, and shortens lists of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class UnsafeNameError(ValueError):
    """A name that is absolute, contains `..`, or cannot be a file's name."""


@dataclass(frozen=True)
class ImageKind:
    """Image files of some kind, recognised by their extensions."""

    label: str
    suffixes: frozenset[str]

    def includes(self, name: str) -> bool:
        """Whether the extension is one of this kind's, in any case."""
        return PurePosixPath(name).suffix.lower() in self.suffixes


JPEG = ImageKind("JPEG", frozenset({".jpg", ".jpeg", ".jpe", ".jfif"}))
JPEG_OR_PNG = ImageKind("JPEG or PNG", JPEG.suffixes | {".png"})


def is_shard(name: str) -> bool:
    """Whether the extension is a tar's, in any case."""
    return name.lower().endswith(SHARD_SUFFIXES)


def safe_name(name: str) -> str:
    """The relative path `name`, without `./` and doubled slashes.

    Raises UnsafeNameError for a path that is absolute or empty or contains `..` or a NUL character. Such a name is not
    repaired, because the result could be the name of another file."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise UnsafeNameError(f"{name!r} is an absolute path")
    if ".." in parts:
        raise UnsafeNameError(f"{name!r} leads out of its folder")
    if "\0" in name or not parts:
        raise UnsafeNameError(f"{name!r} cannot be the name of a file")
    return "/".join(parts)


def digest(text: str) -> bytes:
    """A 12-byte hash of a name. Millions fit in a set; a collision among ten million has a probability of 1e-15."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def first_names(names: Sequence[str], most: int) -> str:
    """The first `most` names and the number of the others, for a message: `a, b and 3 more`."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others
