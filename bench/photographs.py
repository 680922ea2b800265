"""Clean photographs for the benchmarks, and the options that select them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.listing import SourceError
from train.data.photographs import DATA_HELP, Photographs

Pixels = NDArray[np.uint8]
SAMPLE = Path(__file__).parents[1] / "pipeline" / "sample" / "sample.tar"


def load(path: Path, limit: int | None = None) -> list[Pixels]:
    """The first `limit` photographs under `path` (a tar, a folder or a file), each [H, W, 3]. Raises SourceError."""
    return [np.ascontiguousarray(image.permute(1, 2, 0)) for _, image in Photographs(path, limit)]


def load_or_exit(options: argparse.Namespace) -> list[Pixels]:
    """`load` with the options of `command_line`. Ends the program with code 2 where there are no photographs."""
    try:
        return load(options.data, options.limit)
    except SourceError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)


def command_line(description: str | None, limit: int | None = None) -> argparse.ArgumentParser:
    """A parser with --data and --limit. description: the module's docstring, printed unchanged. limit: the default."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{Path(sys.argv[0]).stem}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    parser.add_argument("--limit", type=int, default=limit, help=f"only the first N images [{limit or 'all'}]")
    return parser


def listed(values: Iterable[object]) -> str:
    """Default values as they are typed, for the help of an option."""
    return f"[{' '.join(map(str, values))}]"
