"""The DALI front end compared with libjpeg's: the share of coefficients that it recovers, and the cost of reading.

python -m bench.frontend --data val.tar
python -m bench.frontend --data val.tar --device cuda --quality 75 95 --limit 1000

Recovered: coefficients that equal the file's; blocks and files: those in which every coefficient does. Speed is of
reading alone, from files in memory to coefficients in the CPU's memory, in one process, with as many DALI threads as
there are cores; the best of --repeat rounds, in which both take turns. CPU time: user and system, all threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from bench.machine import processor, versions
from bench.markdown import header, line
from bench.photographs import command_line, listed, load_or_exit
from bench.pillow import SAMPLINGS, to_jpeg
from pipeline.engine.device import choose_device
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.dali_frontend import DaliFrontend, FrontendError, bitstream_or_raise
from pipeline.jpeg.errors import JpegError

Reader = Callable[[Sequence[bytes]], Sequence[Bitstream | JpegError]]
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
COLUMNS = ["sampling", "quality", "coefficients", "recovered", "blocks", "files",
           "libjpeg MP/s", "CPU ms/MP", "DALI MP/s", "CPU ms/MP"]  # fmt: skip


@dataclass
class Speed:
    """Seconds for all files in the best round."""

    wall: float = float("inf")
    cpu: float = float("inf")


@dataclass
class Recovery:
    """Counts over all files of one sampling and quality; `right` ones have every coefficient recovered."""

    sampling: str
    quality: int
    megapixels: float
    files: int = 0
    right_files: int = 0
    coefficients: int = 0
    recovered: int = 0
    blocks: int = 0
    right_blocks: int = 0
    libjpeg: Speed = field(default_factory=Speed)
    dali: Speed = field(default_factory=Speed)

    def add(self, found: Bitstream, own: Bitstream) -> None:
        """One file. found: as DALI recovers it; own: as libjpeg reads it."""
        c, true = found.coefficients, own.coefficients
        missed = int(c.mismatches(true))
        self.files += 1
        self.right_files += missed == 0
        self.coefficients += c.count
        self.recovered += c.count - missed
        self.blocks += c.count // 64
        wrong = sum(int((a != b).flatten(3).any(3).sum()) for a, b in zip(c.planes, true.planes, strict=True))
        self.right_blocks += c.count // 64 - wrong

    def cells(self) -> list[str]:
        shares = (self.recovered / self.coefficients, self.right_blocks / self.blocks, self.right_files / self.files)
        cells = [self.sampling, str(self.quality), str(self.coefficients)]
        cells += [f"{100 * share:.{digits}f}%" for share, digits in zip(shares, (4, 3, 1), strict=True)]
        for speed in (self.libjpeg, self.dali):
            cells += [f"{self.megapixels / speed.wall:.1f}", f"{speed.cpu / self.megapixels * 1e3:.1f}"]
        return cells


def read_in_turn(files: Sequence[bytes]) -> list[Bitstream]:
    return [read_bitstream(data) for data in files]


def timed(reader: Reader, files: Sequence[bytes], speed: Speed) -> Sequence[Bitstream | JpegError]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = reader(files)
    speed.wall = min(speed.wall, time.perf_counter() - wall)
    speed.cpu = min(speed.cpu, time.process_time() - cpu)
    return found


def measure(front_end: DaliFrontend, files: Sequence[bytes], recovery: Recovery, repeat: int) -> None:
    """Fills in `recovery`."""
    front_end.read_many(files[:1])  # warm-up
    for _ in range(repeat):
        own = timed(read_in_turn, files, recovery.libjpeg)
        found = timed(front_end.read_many, files, recovery.dali)
    for a, b in zip(found, own, strict=True):
        recovery.add(bitstream_or_raise(a), bitstream_or_raise(b))


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--quality", type=int, nargs="+", default=[10, 30, 50, 75, 90, 95], help="[10 30 50 75 90 95]")
    add("--sampling", nargs="+", choices=SAMPLINGS, default=SAMPLINGS, help=listed(SAMPLINGS))
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="where DALI decodes [%(default)s]")
    add("--repeat", type=int, default=3, help="rounds [%(default)s]")
    return parser.parse_args()


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    try:
        device = choose_device(options.device)
        front_end = DaliFrontend(device)
        front_end.check()
    except (FrontendError, ValueError) as error:
        sys.exit(f"frontend: {error}")
    images = load_or_exit(options)
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    where = processor() if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, {processor()}"
    print(f"`python -m bench.frontend {' '.join(sys.argv[1:])}`, {where}, {versions(DALI)}, {len(images)} images.\n")
    print(header(COLUMNS))
    kinds = [(sampling, quality) for sampling in options.sampling for quality in options.quality]
    for sampling, quality in tqdm(kinds, leave=False):
        recovery = Recovery(sampling, quality, megapixels)
        measure(front_end, [to_jpeg(image, quality, sampling) for image in images], recovery, options.repeat)
        tqdm.write(line(recovery.cells()), file=sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
