"""PSNR and exactness of the restoration, after `project_exact`, beside Pillow's plain decode of the same files.

python bench/quality.py --data val.tar --quality 10 20 30 40
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from photographs import Pixels, load, to_jpeg
from PIL import Image
from tqdm import tqdm

from pipeline.restorer import DEFAULT_WEIGHTS, Restorer
from pipeline.sink import encode_image
from pipeline.verify import count_mismatches


@dataclass(frozen=True)
class Row:
    """One quality. PSNR in dB, the mean over images. mismatches: coefficients that differ when the PNG is compressed
    again by libjpeg-turbo with the file's tables, of `coefficients` in all; `claimed` is what the certificates say."""

    quality: int
    sampling: str
    images: int
    plain: float
    restored: float
    gain: float
    mismatches: int
    claimed: int
    coefficients: int


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def measure(restorer: Restorer, images: list[Pixels], quality: int, sampling: str) -> Row:
    plain, restored, mismatches, claimed, coefficients = [], [], 0, 0, 0
    for number, image in enumerate(tqdm(images, desc=f"quality {quality}", unit="img", leave=False)):
        data = to_jpeg(image, quality, sampling)
        result = restorer.restore(data, key=str(number))
        plain.append(psnr(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), image))
        restored.append(psnr(result.pixels(), image))
        mismatches += count_mismatches(encode_image(result.image.numpy()), result.bitstream)
        claimed += result.mismatches
        coefficients += result.coefficients
    means = float(np.mean(plain)), float(np.mean(restored))
    return Row(quality, sampling, len(images), *means, means[1] - means[0], mismatches, claimed, coefficients)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a file")
    parser.add_argument("--quality", type=int, nargs="+", default=[10, 20, 30, 40], help="[10 20 30 40]")
    parser.add_argument("--sampling", nargs="+", default=["4:2:0"], help="[4:2:0]")
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help="[%(default)s]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    restorer = Restorer.from_pretrained(options.weights, options.device, options.dtype)
    images = load(options.data, options.limit)
    print("| quality | sampling | images | plain dB | restored dB | gain dB | mismatches | coefficients |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for sampling in options.sampling:
        for quality in options.quality:
            row = measure(restorer, images, quality, sampling)
            rows.append(row)
            print(
                f"| {row.quality} | {sampling} | {row.images} | {row.plain:.2f} | {row.restored:.2f} | {row.gain:+.2f} "
                f"| {row.mismatches} | {row.coefficients} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    false = [row for row in rows if row.mismatches != row.claimed]
    if false:
        print(f"certificates that are not true: {false}", file=sys.stderr)
    return bool(false)


if __name__ == "__main__":
    sys.exit(main())
