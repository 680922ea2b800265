"""The engine: JPEG bytes in, certified 8-bit images out.

restorer = Restorer.from_pretrained()
restored = restorer.restore(Path("photo.jpg").read_bytes())
Image.fromarray(restored.pixels()).save("photo.png")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, project_exact
from model.generator import Generator, Noise
from model.noise import derive_seed
from model.weights import load
from pipeline import tiling
from pipeline.bitstream import Bitstream, read_bitstream
from pipeline.markers import JpegError, UnsupportedJpeg
from pipeline.stopwatch import Stopwatch

Mode = Literal["sample", "mean", "mmse"]
MODES: tuple[str, ...] = get_args(Mode)
DEFAULT_WEIGHTS = "mmse"
SAMPLINGS = list(Subsampling)


class ModeError(ValueError):
    """A mode that the weights cannot serve; the message says which they can."""


@dataclass(frozen=True)
class Options:
    """How to restore.

    mode: `mmse` regresses, `sample` draws, `mean` averages `samples` draws. tile: pixels a side, halo included, a
    multiple of 16. batch: tiles of one image that go through the network together on a GPU (on the CPU they take turns:
    the cores are busy with one, and no result can depend on how many there are). max_pixels: larger images are refused
    before memory is taken for them."""

    mode: Mode = "mmse"
    samples: int = 1
    tile: int = 1536
    batch: int = 8
    max_pixels: int = 1 << 28


@dataclass(frozen=True)
class Restored:
    """One file's result.

    images: [K, C, H, W] uint8, K > 1 only for several samples. sample_mismatches: for each of them, how many of its
    `coefficients` libjpeg-turbo would write differently. `bitstream` is what the file said: tables, sampling, ICC
    profile, EXIF."""

    images: Tensor
    sample_mismatches: list[int]
    coefficients: int
    seed: int
    bitstream: Bitstream

    @property
    def image(self) -> Tensor:
        """[C, H, W] uint8: the (first) image."""
        return self.images[0]

    @property
    def mismatches(self) -> int:
        """Over all images; 0: libjpeg-turbo compresses each of them to exactly the file's coefficients."""
        return sum(self.sample_mismatches)

    def pixels(self, sample: int = 0) -> NDArray[np.uint8]:
        """[H, W, 3] or, gray, [H, W] uint8, as Pillow takes it."""
        return as_pixels(self.images[sample])


def as_pixels(image: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] uint8 → [H, W, 3] or [H, W]."""
    pixels: NDArray[np.uint8] = image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """The JPEG operators' tensors are too small to share out on a CPU: threads would wait for one another."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Failure:
    """A file that gave no image. `unsupported` when it is a kind of JPEG that is not modelled."""

    key: str
    error: JpegError

    @property
    def unsupported(self) -> bool:
        return isinstance(self.error, UnsupportedJpeg)


def choose_device(name: str) -> torch.device:
    """`auto` takes the first GPU that PyTorch sees. Raises ValueError when a named one is not there."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r}: expected auto, cpu or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the hardware multiplies it: GPUs, and CPUs with AMX or AVX512-BF16."""
    if name == "auto":
        capable = torch.cpu.get_capabilities()
        fast = device.type == "cuda" or capable.get("amx_bf16", False) or capable.get("avx512_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r}: expected auto, {' or '.join(dtypes)}")
    return dtypes[name]


@dataclass
class Restorer:
    """See the module. Make one with `from_pretrained`; it may be used for any number of files, one thread at a time."""

    generator: Generator
    digest: str
    device: torch.device
    dtype: torch.dtype
    options: Options = field(default_factory=Options)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def from_pretrained(
        cls,
        weights: str = DEFAULT_WEIGHTS,
        device: str = "auto",
        dtype: str = "auto",
        options: Options | None = None,
    ) -> Restorer:
        """weights: a shipped name or a path. Raises WeightsError, ModeError, or ValueError for a bad option."""
        options = options or Options()
        loaded, where = load(weights), choose_device(device)
        check_mode(loaded.generator, loaded.name, options)
        tiling.plan((1, 1), options.tile)  # raises ValueError for a tile that cannot be
        number = choose_dtype(dtype, where)
        return cls(loaded.generator.to(where).convolve_in(number), loaded.digest, where, number, options)

    def read(self, data: bytes) -> Bitstream:
        """What a JPEG file says. Raises JpegError."""
        with self.stopwatch("bitstream"):
            return read_bitstream(data, self.options.max_pixels)

    def restore(self, data: bytes, seed: int = 0, key: str = "") -> Restored:
        """Restores one JPEG file. The noise depends on `seed` and `key` alone. Raises JpegError for a file that is
        broken, or (UnsupportedJpeg) of a kind that is not modelled."""
        return self.restore_bitstream(self.read(data), seed, key)

    def restore_many(
        self, files: Iterable[tuple[str, bytes]], seed: int = 0
    ) -> Iterator[tuple[str, Restored | Failure]]:
        """(key, bytes) → (key, result), in order; a bad file becomes a Failure and the others go on."""
        for key, data in files:
            try:
                yield key, self.restore(data, seed, key)
            except JpegError as error:
                yield key, Failure(key, error)

    @torch.inference_mode()
    def restore_bitstream(self, bitstream: Bitstream, seed: int = 0, key: str = "") -> Restored:
        """The same from coefficients that have been read already."""
        c, options = bitstream.coefficients, self.options
        seeds = [derive_seed(seed, key, draw) for draw in range(options.samples)]
        averages = [seeds] if options.mode == "mean" else [[drawn] for drawn in seeds]
        images = tiling.canvas(len(averages), c.sampling.components, c.size)
        mismatches = [0] * len(averages)
        tiles = tiling.plan(c.size, options.tile)
        step = 1 if self.device.type == "cpu" else options.batch
        for first in range(0, len(tiles), step):
            batch = tiles[first : first + step]
            with self.stopwatch("decode"), one_thread(self.device):
                decoded = [tiling.pad(decode(tiling.tile_coefficients(c, tile).to(self.device))) for tile in batch]
            for output, averaged in enumerate(averages):
                with self.stopwatch("network"):
                    restored = self._average(c, torch.cat(decoded), batch, averaged)
                with self.stopwatch("project"), one_thread(self.device):
                    mismatches[output] += self._project(c, restored, batch, images[output])
        return Restored(images, mismatches, c.count, seed, bitstream)

    def _average(self, c: Coefficients, decoded: Tensor, tiles: list[tiling.Tile], seeds: list[int]) -> Tensor:
        """The mean of one draw for each seed, padded tiles [n, C, H, W] float32, 0..255."""
        total = run_generator(self.generator, decoded, c, seeds[0], tiles)
        for seed in seeds[1:]:
            total += run_generator(self.generator, decoded, c, seed, tiles)
        return total / len(seeds)

    def _project(self, c: Coefficients, restored: Tensor, tiles: list[tiling.Tile], image: Tensor) -> int:
        """Puts each tile's core, made exactly consistent, into the image [C, H, W]; returns the mismatches."""
        total = 0
        for x, tile in zip(restored, tiles, strict=True):
            core, wrong = project_exact(
                tiling.cut_core(x[None], tile), tiling.core_coefficients(c, tile).to(self.device)
            )
            tiling.paste(image, core[0].cpu(), tile)
            total += int(wrong)
        return total


def check_mode(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights can serve the mode."""
    if options.mode not in MODES:
        raise ModeError(f"mode {options.mode!r}: expected {', '.join(MODES)}")
    if options.samples < 1:
        raise ModeError(f"samples {options.samples}: expected at least 1")
    if options.mode == "mmse" and generator.config.noise:
        raise ModeError(
            f"weights {name!r} draw samples: mode mmse wants a regression network, such as {DEFAULT_WEIGHTS!r}"
        )
    if options.mode != "mmse" and not generator.config.noise:
        raise ModeError(
            f"weights {name!r} are deterministic, trained with MSE: mode {options.mode} has nothing to draw. "
            "Use mode mmse, or weights that take noise"
        )
    if options.mode == "mmse" and options.samples > 1:
        raise ModeError("mode mmse gives one image a file: samples must be 1")


def run_generator(
    generator: Generator, decoded: Tensor, c: Coefficients, seed: int, tiles: list[tiling.Tile]
) -> Tensor:
    """Padded tiles [n, C, H, W], 0..255, of one image → restored, float32, of the same shape. Gray is seen as three
    equal planes, and averaged on the way back."""
    n, channels = decoded.shape[:2]
    sampling = torch.full((n,), SAMPLINGS.index(c.sampling), device=decoded.device)
    noise = None
    if generator.config.noise:
        seeds = torch.full((n,), seed, dtype=torch.int64, device=decoded.device)
        noise = Noise(seeds, torch.tensor([tile.origin for tile in tiles], device=decoded.device))
    tables = c.tables.to(decoded.device).expand(n, -1, -1, -1)
    restored: Tensor = generator(decoded.expand(-1, 3, -1, -1) / 255, tables, sampling, noise).float() * 255
    return restored if channels == 3 else restored.mean(1, keepdim=True)
