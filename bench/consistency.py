"""The certificate of the command line, from outside: restores JPEG files with it, compresses every PNG with Pillow,
using the file's own tables and sampling, and compares both files' coefficients as jpeglib reads them. Nothing of the
pipeline takes part in the comparison.

python -m bench.consistency --data val.tar --quality 5 10 20 30 50 75 90 95 --sampling 4:2:0 4:4:4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jpeglib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from tqdm import tqdm

from bench.photographs import load, to_jpeg


@dataclass(frozen=True)
class Row:
    """mismatches: coefficients that differ, counted here; claimed: by the manifest; disputed: files where these two
    numbers are not the same."""

    files: int
    restored: int
    mismatches: int
    claimed: int
    disputed: int
    coefficients: int


def coefficients(path: Path) -> list[NDArray[np.int16]]:
    """All components' blocks as jpeglib reads them, without padding."""
    dct = jpeglib.read_dct(str(path))
    return [plane for plane in (dct.Y, dct.Cb, dct.Cr) if plane is not None]


def recount(jpeg: Path, output: Path, again: Path) -> tuple[int, int]:
    """(coefficients that differ, all) of an output compressed, into the file `again`, as the JPEG file was."""
    with Image.open(jpeg) as original, Image.open(output) as image:
        assert isinstance(original, JpegImageFile)
        sampling = {} if original.mode == "L" else {"subsampling": get_sampling(original)}
        image.save(again, "JPEG", qtables=original.quantization, **sampling)
    pairs = list(zip(coefficients(jpeg), coefficients(again), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)


def measure(folder: Path, output: Path, arguments: list[str]) -> Row:
    command = [sys.executable, "-m", "pipeline.restore", "--input-dir", str(folder), "--output-dir", str(output)]
    subprocess.run([*command, "--quiet", *arguments], check=True)
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    counts = [
        recount(folder / line["source"], output / line["outputs"][0], output / "again.jpg")
        for line in tqdm(lines, desc="recount", unit="img", leave=False)
    ]
    return Row(
        files=len(lines),
        restored=sum(line["status"] == "restored" for line in lines),
        mismatches=sum(wrong for wrong, _ in counts),
        claimed=sum(line["mismatches"] for line in lines),
        disputed=sum(wrong != line["mismatches"] for (wrong, _), line in zip(counts, lines, strict=True)),
        coefficients=sum(count for _, count in counts),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a file")
    parser.add_argument("--quality", type=int, nargs="+", default=[5, 10, 20, 30, 50, 75, 90, 95], help="[%(default)s]")
    parser.add_argument("--sampling", nargs="+", default=["4:2:0", "4:4:4"], help="[%(default)s]")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    options, arguments = parser.parse_known_args()  # the rest is the command line's own: --weights, --device, …
    images = load(options.data, options.limit)
    print("| quality | sampling | files | restored | mismatches | the manifest's | files in dispute | coefficients |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    disputed = 0
    for sampling in options.sampling:
        for quality in options.quality:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "files"
                folder.mkdir()
                for number, image in enumerate(images):
                    (folder / f"{number:04}.jpg").write_bytes(to_jpeg(image, quality, sampling))
                row = measure(folder, Path(scratch) / "restored", arguments)
            disputed += row.disputed
            cells = (quality, sampling, *vars(row).values())
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return int(disputed > 0)


if __name__ == "__main__":
    sys.exit(main())
