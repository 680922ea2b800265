"""Clean photographs for the benchmarks, and the options that select them."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.listing import list_sources
from pipeline.inputs.source import Item, read

Pixels = NDArray[np.uint8]
SAMPLE = Path(__file__).parents[1] / "pipeline" / "sample" / "sample.tar"


def load(path: Path, limit: int | None = None) -> list[Pixels]:
    """The first `limit` JPEG files under `path` (a tar, a folder or a file), each [H, W, 3]. Raises SourceError."""
    images: list[Pixels] = []
    for item in read(list_sources(path)):
        if isinstance(item, Item) and item.data is not None and (limit is None or len(images) < limit):
            images.append(np.asarray(Image.open(io.BytesIO(item.data)).convert("RGB")))
    return images


def command_line(description: str | None, limit: int | None = None) -> argparse.ArgumentParser:
    """A parser with --data and --limit. description: the module's docstring, printed unchanged. limit: the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a JPEG file")
    parser.add_argument("--limit", type=int, default=limit, help=f"only the first N images [{limit or 'all'}]")
    return parser
