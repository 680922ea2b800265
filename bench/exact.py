"""What the exact projection costs and leaves, on real restorations and one core: as a multiple of what Pillow takes to
decode the same JPEG file and write it as PNG of level 1, both in CPU seconds of this process, one after the other.

python -m bench.exact --data val.tar
python -m bench.exact --data val.tar --quality 95 100 --sampling 4:4:4 --weights mmse --limit 20
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.photographs import Pixels, load, to_jpeg
from kernels import Coefficients, Subsampling, project_exact
from kernels.libjpeg import compress
from pipeline.engine.options import REGRESSION, SAMPLER
from pipeline.engine.restorer import Restorer
from pipeline.inputs.listing import SourceError
from pipeline.jpeg.bitstream import read_bitstream
from train.restorations import FileSampler

QUALITIES = (10, 50, 75, 85, 90, 92, 94, 95, 96, 97, 98, 99, 100)
DAMAGE = 0.1
"""The share of coefficients of a damaged file that are changed, each by up to 300."""


@dataclass
class Sums:
    """Of one row: CPU seconds, megapixels, coefficients in all and wrong, and the largest multiple of any image."""

    ours: float = 0.0
    pillow: float = 0.0
    megapixels: float = 0.0
    coefficients: int = 0
    wrong: int = 0
    worst: float = 0.0
    untrue: int = 0


def timed(function: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def by_pillow(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    image.load()
    image.save(io.BytesIO(), "PNG", compress_level=1)


def damaged(c: Coefficients, seed: int) -> Coefficients:
    """As if bytes had been flipped: true blocks alone, as a file has them."""
    random = np.random.default_rng(seed)
    planes = []
    for component, plane in enumerate(c.planes):
        rows, columns = c.sampling.true_blocks(component, c.size)
        change = random.integers(-300, 301, plane.shape) * (random.random(plane.shape) < DAMAGE)
        change[:, rows:], change[:, :, columns:] = 0, 0
        planes.append(plane + torch.from_numpy(change.astype(np.int16)))
    return Coefficients(tuple(planes), c.tables, c.sampling, c.size)


def restorations(
    images: list[Pixels], quality: int, sampling: str, restorer: Restorer
) -> Iterator[tuple[bytes, Coefficients, Tensor]]:
    """(file, its coefficients, what the network makes of it, [1, C, H, W])."""
    for number, image in enumerate(images):
        data = to_jpeg(image, quality, sampling)
        c = read_bitstream(data, image.size).coefficients
        yield data, c, FileSampler(restorer, c).draw(number)


def measure(images: list[Pixels], quality: int, sampling: str, restorer: Restorer, damage: bool) -> Sums:
    sums = Sums()
    for number, (data, own, x) in enumerate(restorations(images, quality, sampling, restorer)):
        c = damaged(own, number) if damage else own
        image, mismatches = project_exact(x, c)
        ours, pillow = timed(lambda: project_exact(x, c)), timed(lambda: by_pillow(data))  # noqa: B023  # called here
        sums.ours, sums.pillow = sums.ours + ours, sums.pillow + pillow
        sums.megapixels += x.shape[2] * x.shape[3] / 1e6
        sums.coefficients, sums.wrong = sums.coefficients + c.count, sums.wrong + int(mismatches)
        sums.worst = max(sums.worst, ours / pillow)
        sums.untrue += int(mismatches) != int(compress(image, c.tables, c.sampling).mismatches(c))
    return sums


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [sampling.label for sampling in Subsampling if sampling is not Subsampling.S440]  # Pillow writes no 4:4:0
    parser.add_argument("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a JPEG file")
    parser.add_argument("--quality", type=int, nargs="+", default=QUALITIES, help="[%(default)s]")
    parser.add_argument("--sampling", nargs="+", choices=labels, default=["4:2:0", "4:4:4"], help="[4:2:0 4:4:4]")
    parser.add_argument("--weights", nargs="+", default=[SAMPLER, REGRESSION], help=f"[{SAMPLER} {REGRESSION}]")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        images = load(options.data, options.limit)
    except SourceError as error:
        print(f"exact: {error}", file=sys.stderr)
        return 2
    untrue = 0
    print("| weights | sampling | quality | times Pillow | worst image | s/MP | Pillow s/MP | wrong | of |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for weights in options.weights:
        restorer = Restorer.from_pretrained(weights, "cpu")
        for sampling in options.sampling:
            rows = [(quality, False) for quality in options.quality] + [(50, True)]
            for quality, damage in rows:
                s = measure(images, quality, sampling, restorer, damage)
                untrue += s.untrue
                print(
                    f"| {weights} | {sampling} | {f'{quality}, damaged' if damage else quality} "
                    f"| {s.ours / s.pillow:.2f} | {s.worst:.1f} | {s.ours / s.megapixels:.3f} "
                    f"| {s.pillow / s.megapixels:.3f} | {s.wrong} | {s.coefficients} |",
                    flush=True,
                )
    if untrue:
        print(f"exact: {untrue} certificates are not true", file=sys.stderr)
    return int(bool(untrue))


if __name__ == "__main__":
    sys.exit(main())
