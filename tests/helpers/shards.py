"""Tar shards for the tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from jpegs import encode, photograph


def write_tar(path: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A shard of these members in their order; given as pairs, a name may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            shard.addfile(header, io.BytesIO(data))
    return path


def clean_shard(folder: Path, sizes: Iterable[tuple[int, int]]) -> Path:
    """Photographs of these sizes, named by their number, hardly compressed."""
    pictures = {f"{n}.jpg": encode(photograph(*size, n), "4:4:4", 97) for n, size in enumerate(sizes)}
    return write_tar(folder / "clean.tar", pictures)
