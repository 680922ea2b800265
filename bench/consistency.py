"""Checks the command line's certificates independently: restores JPEG files, compresses every PNG with Pillow, using
the file's own tables and sampling, and compares the coefficients of both files as jpeglib reads them. The comparison
uses no code of the pipeline.

python -m bench.consistency --data val.tar --quality 5 10 20 30 50 75 90 95 --sampling 4:2:0 4:4:4

Further options, such as --weights and --device, are passed to `python -m pipeline.restore`. The exit code is 1 when a
count differs from the manifest's.
"""

from __future__ import annotations

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

from bench.markdown import header, line
from bench.photographs import command_line, listed, load_or_exit
from bench.pillow import SAMPLINGS, to_jpeg

QUALITIES = (5, 10, 20, 30, 50, 75, 90, 95)


@dataclass(frozen=True)
class Counts:
    """mismatches: coefficients that differ, counted here; claimed: by the manifest; disputed: files where these two
    numbers differ."""

    files: int
    mismatches: int
    claimed: int
    disputed: int
    coefficients: int


def coefficients(path: Path) -> list[NDArray[np.int16]]:
    """The blocks of each component as jpeglib reads them, without padding."""
    dct = jpeglib.read_dct(str(path))
    return [plane for plane in (dct.Y, dct.Cb, dct.Cr) if plane is not None]


def recount(jpeg: Path, output: Path, again: Path) -> tuple[int, int]:
    """(coefficients that differ, all). Compresses `output` with the parameters of `jpeg` into the file `again`."""
    with Image.open(jpeg) as original, Image.open(output) as image:
        assert isinstance(original, JpegImageFile)
        sampling = {} if original.mode == "L" else {"subsampling": get_sampling(original)}
        image.save(again, "JPEG", qtables=original.quantization, **sampling)
    pairs = list(zip(coefficients(jpeg), coefficients(again), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)


def measure(folder: Path, output: Path, arguments: list[str]) -> Counts:
    """Restores the files of `folder`. arguments: further options of the command line."""
    command = [sys.executable, "-m", "pipeline.restore", "--input-dir", str(folder), "--output-dir", str(output)]
    subprocess.run([*command, "--quiet", *arguments], check=True)
    records = [json.loads(text) for text in (output / "manifest.jsonl").read_text().splitlines()]
    for record in records:
        if record["mismatches"] is None:
            sys.exit(f"consistency: {record['source']} has no certificate: {record['reason'] or record['status']}")
    counts = [
        recount(folder / record["source"], output / record["outputs"][0], output / "again.jpg")
        for record in tqdm(records, desc="recount", unit="img", leave=False)
    ]
    return Counts(
        files=len(records),
        mismatches=sum(wrong for wrong, _ in counts),
        claimed=sum(record["mismatches"] for record in records),
        disputed=sum(wrong != record["mismatches"] for (wrong, _), record in zip(counts, records, strict=True)),
        coefficients=sum(count for _, count in counts),
    )


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--quality", type=int, nargs="+", default=QUALITIES, help=listed(QUALITIES))
    parser.add_argument("--sampling", nargs="+", choices=SAMPLINGS, default=["4:2:0", "4:4:4"], help="[4:2:0 4:4:4]")
    options, arguments = parser.parse_known_args()
    images = load_or_exit(options)
    columns = ["files", "mismatches", "the manifest's", "files in dispute", "coefficients"]
    print(header(["quality", "sampling", *columns]))
    disputed = 0
    for sampling in options.sampling:
        for quality in options.quality:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "files"
                folder.mkdir()
                for number, image in enumerate(images):
                    (folder / f"{number:04}.jpg").write_bytes(to_jpeg(image, quality, sampling))
                counts = measure(folder, Path(scratch) / "restored", arguments)
            disputed += counts.disputed
            print(line([quality, sampling, *vars(counts).values()]), flush=True)
    return int(disputed > 0)


if __name__ == "__main__":
    sys.exit(main())
