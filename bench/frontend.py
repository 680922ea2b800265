"""The DALI front end beside libjpeg's: what share of the coefficients it recovers, and what reading costs with each.

python -m bench.frontend --data val.tar
python -m bench.frontend --data val.tar --device cuda --quality 75 95 --limit 1000 --json frontend.json

Coefficients: how many there are. recovered: those that are the file's own; blocks and files: those of which every one
is. Speed is of reading alone, files in memory → coefficients in the CPU's memory, in one process, with as many threads
of DALI's as there are cores; the best of --repeat rounds that take turns. CPU time: user and system, all threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from bench.encoders import processor
from bench.photographs import load, to_jpeg
from pipeline.engine.device import choose_device
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.dali_frontend import DaliFrontend, FrontendError, bitstream_or_raise
from pipeline.jpeg.errors import JpegError

Reader = Callable[[Sequence[bytes]], Sequence[Bitstream | JpegError]]
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@dataclass
class Speed:
    """Seconds by the clock and of CPU time for all files, of the best round."""

    clock: float = float("inf")
    cpu: float = float("inf")


@dataclass
class Row:
    """Counts, over all files of a kind; `right` ones have every coefficient recovered."""

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

    def count(self, found: Bitstream, own: Bitstream) -> None:
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
        speeds = [
            f"{amount:.1f}"
            for speed in (self.libjpeg, self.dali)
            for amount in (self.megapixels / speed.clock, speed.cpu / self.megapixels * 1e3)
        ]
        return [
            self.sampling,
            str(self.quality),
            str(self.coefficients),
            *(f"{100 * share:.{digits}f}%" for share, digits in zip(shares, (4, 3, 1), strict=True)),
            *speeds,
        ]


HEAD = ["sampling", "quality", "coefficients", "recovered", "blocks", "files",
        "libjpeg MP/s", "CPU ms/MP", "DALI MP/s", "CPU ms/MP"]  # fmt: skip


def read_in_turn(files: Sequence[bytes]) -> list[Bitstream]:
    return [read_bitstream(data) for data in files]


def timed(reader: Reader, files: Sequence[bytes], speed: Speed) -> Sequence[Bitstream | JpegError]:
    clock, cpu = time.perf_counter(), time.process_time()
    found = reader(files)
    speed.clock = min(speed.clock, time.perf_counter() - clock)
    speed.cpu = min(speed.cpu, time.process_time() - cpu)
    return found


def measure(front_end: DaliFrontend, row: Row, files: Sequence[bytes], repeat: int) -> Row:
    front_end.read_many(files[:1])  # warms up
    for _ in range(repeat):
        own = timed(read_in_turn, files, row.libjpeg)
        found = timed(front_end.read_many, files, row.dali)
    for a, b in zip(found, own, strict=True):
        row.count(bitstream_or_raise(a), bitstream_or_raise(b))
    return row


def dali_version() -> str:
    for name in DALI:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "DALI"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a file")
    add("--quality", type=int, nargs="+", default=[10, 30, 50, 75, 90, 95], help="[%(default)s]")
    add("--sampling", nargs="+", default=["gray", "4:4:4", "4:2:2", "4:2:0"], help="[%(default)s]")
    add("--limit", type=int, help="the first so many images only")
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="where DALI decodes [%(default)s]")
    add("--repeat", type=int, default=3, help="rounds [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        device = choose_device(options.device)
        front_end = DaliFrontend(device)
        front_end.check()
    except (FrontendError, ValueError) as error:
        sys.exit(f"frontend: {error}")
    images = load(options.data, options.limit)
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    where = processor() if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, {processor()}"
    print(f"`python -m bench.frontend {' '.join(sys.argv[1:])}`, {where}, {dali_version()}, {len(images)} images.\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    rows = []
    kinds = [(sampling, quality) for sampling in options.sampling for quality in options.quality]
    for sampling, quality in tqdm(kinds, leave=False):
        files = [to_jpeg(image, quality, sampling) for image in images]
        rows.append(measure(front_end, Row(sampling, quality, megapixels), files, options.repeat))
        tqdm.write(f"| {' | '.join(rows[-1].cells())} |", file=sys.stdout)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
