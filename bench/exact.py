"""Cost and remaining mismatches of the exact projection, on real restorations and one core. The cost is CPU time, as a
multiple of what Pillow takes to decode the same JPEG file and write it as PNG of level 1.

python -m bench.exact --data val.tar
python -m bench.exact --data val.tar --quality 95 100 --sampling 4:4:4 --weights mmse --limit 20

The exit code is 1 when a certificate is false.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.markdown import header, line
from bench.photographs import Pixels, command_line, listed, load_or_exit
from bench.pillow import SAMPLINGS, decode, encode_png, to_jpeg
from kernels import Coefficients, project_exact
from kernels.libjpeg import compress
from pipeline.engine.options import REGRESSION, SAMPLER
from pipeline.engine.restorer import Restorer
from pipeline.jpeg.bitstream import read_bitstream
from train.restorations import FileSampler

QUALITIES = (10, 50, 75, 85, 90, 92, 94, 95, 96, 97, 98, 99, 100)
DAMAGE = 0.1
"""The share of coefficients of a damaged file that are changed, each by up to 300."""


@dataclass
class Sums:
    """Over the images of one row. ours, pillow: CPU seconds. wrong: coefficients. worst: the largest ratio of CPU times
    of an image. false: certificates."""

    ours: float = 0.0
    pillow: float = 0.0
    megapixels: float = 0.0
    coefficients: int = 0
    wrong: int = 0
    worst: float = 0.0
    false: int = 0

    def cells(self) -> list[str]:
        costs = [f"{self.ours / self.pillow:.2f}", f"{self.worst:.1f}"]
        costs += [f"{seconds / self.megapixels:.3f}" for seconds in (self.ours, self.pillow)]
        return [*costs, str(self.wrong), str(self.coefficients)]


def cpu_seconds(function: Callable[[], object]) -> float:
    """Of the fastest of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def damaged(c: Coefficients, seed: int) -> Coefficients:
    """With random changes, as if bytes of the file had been flipped; padding blocks, which no file holds, stay."""
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
    """(JPEG file, its coefficients, the network's output [1, C, H, W]) of each image."""
    for number, image in enumerate(images):
        data = to_jpeg(image, quality, sampling)
        c = read_bitstream(data, image.size).coefficients
        yield data, c, FileSampler(restorer, c).draw(number)


def measure(images: list[Pixels], quality: int, sampling: str, restorer: Restorer, damage: bool) -> Sums:
    sums = Sums()
    for number, (data, own, x) in enumerate(restorations(images, quality, sampling, restorer)):
        c = damaged(own, number) if damage else own
        image, mismatches = project_exact(x, c)
        ours = cpu_seconds(lambda: project_exact(x, c))  # noqa: B023  # called here
        pillow = cpu_seconds(lambda: encode_png(decode(data)))  # noqa: B023
        sums.ours, sums.pillow = sums.ours + ours, sums.pillow + pillow
        sums.megapixels += x.shape[2] * x.shape[3] / 1e6
        sums.coefficients, sums.wrong = sums.coefficients + c.count, sums.wrong + int(mismatches)
        sums.worst = max(sums.worst, ours / pillow)
        sums.false += int(mismatches) != int(compress(image, c.tables, c.sampling).mismatches(c))
    return sums


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--quality", type=int, nargs="+", default=QUALITIES, help=listed(QUALITIES))
    parser.add_argument("--sampling", nargs="+", choices=SAMPLINGS, default=["4:2:0", "4:4:4"], help="[4:2:0 4:4:4]")
    parser.add_argument("--weights", nargs="+", default=[SAMPLER, REGRESSION], help=f"[{SAMPLER} {REGRESSION}]")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = load_or_exit(options)
    false = 0
    columns = ["times Pillow", "worst image", "s/MP", "Pillow s/MP", "wrong", "of"]
    print(header(["weights", "sampling", "quality", *columns]))
    for weights in options.weights:
        restorer = Restorer.from_pretrained(weights, "cpu")
        for sampling in options.sampling:
            for quality, damage in [*((quality, False) for quality in options.quality), (50, True)]:
                sums = measure(images, quality, sampling, restorer, damage)
                false += sums.false
                print(line([weights, sampling, f"{quality}{', damaged' * damage}", *sums.cells()]), flush=True)
    if false:
        print(f"exact: {false} certificates are false", file=sys.stderr)
    return int(bool(false))


if __name__ == "__main__":
    sys.exit(main())
