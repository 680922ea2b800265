"""Files with other tables than those of training: what a restoration gains over the plain decode, in PSNR.

python -m bench.tables --data val.tar --limit 20
python -m bench.tables --data val.tar --weights runs/mine/generator.safetensors

The tables: libjpeg's at high qualities; MozJPEG's default (N. Robidoux's, from ImageMagick) at three qualities; flat
ones. Mode mmse, 4:2:0.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image

from bench.markdown import header, line
from bench.photographs import Pixels, command_line, load_or_exit
from bench.pillow import decode, encode_jpeg
from kernels import quality_to_tables
from kernels.tables import scale_tables
from pipeline import Options, Restorer
from pipeline.engine.options import REGRESSION
from train.measures import psnr

ROBIDOUX = (
    *(16, 16, 16, 18, 25, 37, 56, 85),
    *(16, 17, 20, 27, 34, 40, 53, 75),
    *(16, 20, 24, 31, 43, 62, 91, 135),
    *(18, 27, 31, 40, 53, 74, 106, 156),
    *(25, 34, 43, 53, 69, 94, 131, 189),
    *(37, 40, 62, 74, 94, 124, 169, 238),
    *(56, 53, 91, 106, 131, 169, 226, 311),
    *(85, 75, 135, 156, 189, 238, 311, 418),
)
"""At quality 50, by row, for luma and chroma."""


def scaled(base: tuple[int, ...], quality: int) -> list[int]:
    """`scale_tables` of 64 steps."""
    scaled_steps: list[int] = scale_tables(torch.tensor(base), quality).tolist()
    return scaled_steps


def all_tables() -> dict[str, list[list[int]]]:
    """Luma's and chroma's tables by name, each of 64 steps by row."""
    libjpeg = {f"libjpeg {q}": quality_to_tables(q, 2).flatten(1).tolist() for q in (75, 90, 97, 98, 99, 100)}
    mozjpeg = {f"MozJPEG {q}": [scaled(ROBIDOUX, q)] * 2 for q in (50, 75, 90)}
    return libjpeg | mozjpeg | {f"flat {step}": [[step] * 64] * 2 for step in (4, 8, 16, 32)}


def measure(images: list[Pixels], tables: list[list[int]], restorer: Restorer) -> list[object]:
    """Mean PSNR of the plain decodes, mean and least gain of the restorations, and their mismatches."""
    plain, gains, mismatches = [], [], 0
    for pixels in images:
        data = encode_jpeg(Image.fromarray(pixels), 50, "4:2:0", qtables=tables)  # 50: as they are
        restored = restorer.restore(data)
        mismatches += restored.mismatches or 0
        original = torch.tensor(pixels)
        plain.append(psnr(torch.tensor(np.asarray(decode(data))), original))
        gains.append(psnr(torch.tensor(restored.pixels()), original) - plain[-1])
    return [f"{np.mean(plain):.2f}", f"{np.mean(gains):+.2f}", f"{min(gains):+.2f}", mismatches]


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--weights", nargs="+", default=[REGRESSION], help=f"[{REGRESSION}]")
    options = parser.parse_args(arguments)
    images = load_or_exit(options)
    print(header(["weights", "tables", "plain dB", "gain dB", "least gain", "mismatches"]))
    for weights in options.weights:
        restorer = Restorer.from_pretrained(weights, options=Options("mmse"))
        for name, tables in all_tables().items():
            print(line([weights, name, *measure(images, tables, restorer)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
