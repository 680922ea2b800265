"""Throughput of the host with a device that takes no time: the pipeline with one that only copies pixels, compared with
entropy decoding and image encoding of the same files alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.end_to_end.measure import Setup, files
from bench.end_to_end.report import Timed
from bench.markdown import header, line
from kernels import decode
from pipeline.engine.restorer import Restorer
from pipeline.engine.transfers import Deviations, TileTask
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.outputs.formats import encode_image


class StandIn(Restorer):
    """Forms batches as for a GPU, but only copies `pixels` [3, side, side], which were decoded once. It claims 0
    mismatches, which is false."""

    pixels: Tensor

    def restore_tiles(self, parts: Sequence[TileTask]) -> Callable[[], list[Deviations]]:
        for part in parts:
            top, bottom, left, right = part.tile.core
            images = part.image.images
            images[:, :, top:bottom, left:right] = self.pixels[: images.shape[1], : bottom - top, : right - left]
        return lambda: [(0,) * self.images] * len(parts)


def stand_in(setup: Setup, shards: Path) -> StandIn:
    """A `Factory`; the pixels are those of the first files of the shards."""
    like = setup.restorer()
    device = StandIn(like.generator, like.digest, like.device, like.dtype, like.options, batched=True)
    device.pixels = mosaic(
        [decoded(data) for _, data in zip(range(64), files(shards), strict=False)], like.options.tile
    )
    return device


def decoded(data: bytes) -> Tensor:
    """[3, H, W] uint8, by plain decoding."""
    image = decode(read_bitstream(data).coefficients)[0]
    return image.expand(3, -1, -1).clamp(0, 255).round().to(torch.uint8)


def mosaic(images: Sequence[Tensor], side: int) -> Tensor:
    """[3, side, side], interleaved in memory: images one below the other, each repeated by mirroring to the width."""
    rows: list[Tensor] = []
    while sum(row.shape[1] for row in rows) < side:
        x = images[len(rows) % len(images)]
        while x.shape[2] < side:
            x = torch.cat((x, x.flip(2)), 2)
        rows.append(x[:, :, :side])
    return torch.cat(rows, 1)[:, :side].permute(1, 2, 0).contiguous().permute(2, 0, 1)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Limits this process, and those that it starts meanwhile, to so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Alone:
    """CPU seconds for all files in one thread: reading the coefficients, writing the image."""

    decode: float
    encode: float


def measure_alone(setup: Setup, shards: Path) -> Alone:
    device = stand_in(setup, shards)
    torch.set_num_threads(1)
    took = [0.0, 0.0]
    for data in files(shards):
        start = time.thread_time()
        c = read_bitstream(data, device.options.max_pixels).coefficients
        middle = time.thread_time()
        parts = device.tile_tasks(c)
        device.restore_tiles(parts)
        before = time.thread_time()
        encode_image(parts[0].image.images[0].numpy())
        took = [took[0] + middle - start, took[1] + time.thread_time() - before]
    return Alone(*took)


@dataclass(frozen=True)
class Host(Timed):
    """A workload restored by the stand-in."""

    alone: Alone

    @property
    def ceiling(self) -> float:
        """Megapixels a second, if the cores only decoded and encoded."""
        return min(self.workers, self.cores) * self.run.megapixels / (self.alone.decode + self.alone.encode)

    def figures(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"rate": self.rate, "ceiling": self.ceiling}


def table(hosts: Sequence[Host]) -> str:
    """CPU times in milliseconds a megapixel."""
    names = ["files", "workers", "decode alone", "encode alone", "CPU, all", "MP/s", "ceiling", "share"]
    rows = [header(names, "---:")]
    for host in hosts:
        each = [1000 * x / host.run.megapixels for x in (host.alone.decode, host.alone.encode, host.run.cpu)]
        cells = [str(host.workload), str(host.workers), *(f"{x:.1f}" for x in each)]
        rows.append(line([*cells, f"{host.rate:.1f}", f"{host.ceiling:.1f}", f"{host.rate / host.ceiling:.0%}"]))
    text = "\n".join(rows)
    return f"### The host, with a device that only copies\n\n{text}\n\nCPU time in ms/MP, user and system.\n"
