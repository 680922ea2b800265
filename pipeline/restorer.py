"""The engine: JPEG bytes in, certified 8-bit images out.

restorer = Restorer.from_pretrained()
restored = restorer.restore(Path("photo.jpg").read_bytes())
Image.fromarray(restored.pixels()).save("photo.png")
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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

    mode: `mmse` regresses, `sample` draws, `mean` averages `samples` draws. tile: pixels a side, halo included, a multiple
    of 16. batch: tiles of one image that go through the network together (on the CPU they take turns: the cores are
    busy with one). max_pixels: larger images are refused before memory is taken for them."""

    mode: Mode = "mmse"
    samples: int = 1
    tile: int = 1024
    batch: int = 8
    max_pixels: int = 1 << 28


@dataclass(frozen=True)
class Restored:
    """One file's result.

    images: [K, C, H, W] uint8, K > 1 only for several samples. mismatches: [K], coefficients that libjpeg-turbo would
    write differently (0: certified), of `coefficients` each. `bitstream` is what the file said: tables, sampling, ICC
    profile, EXIF."""

    images: Tensor
    mismatches: list[int]
    coefficients: int
    seed: int
    bitstream: Bitstream

    @property
    def image(self) -> Tensor:
        """[C, H, W] uint8: the (first) image."""
        return self.images[0]

    @property
    def certified(self) -> bool:
        return not any(self.mismatches)

    def pixels(self, sample: int = 0) -> NDArray[np.uint8]:
        """[H, W, 3] or, gray, [H, W] uint8, as Pillow takes it."""
        return as_pixels(self.images[sample])


def as_pixels(image: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] uint8 → [H, W, 3] or [H, W]."""
    return image[0].numpy() if image.shape[0] == 1 else np.ascontiguousarray(image.permute(1, 2, 0).numpy())


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
        tiling.plan((1, 1), options.tile)
        number = choose_dtype(dtype, where)
        return cls(loaded.generator.to(where).convolve_in(number), loaded.digest, where, number, options)

    def read(self, data: bytes) -> Bitstream:
        """What a JPEG file says. Raises JpegError."""
        with self.stopwatch("bitstream"):
            return read_bitstream(data, self.options.max_pixels)

    def restore(self, data: bytes, seed: int = 0, key: str = "") -> Restored:
        """Restores one JPEG file. The noise depends on `seed` and `key` alone. Raises JpegError for a file that is broken,
        or (UnsupportedJpeg) of a kind that is not modelled."""
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
        draws = options.samples if options.mode != "mmse" else 1
        outputs = 1 if options.mode == "mean" else draws
        images = [tiling.canvas(c.sampling.components, c.size) for _ in range(outputs)]
        mismatches = [0] * outputs
        seeds = [derive_seed(seed, key, draw) for draw in range(draws)]
        tiles = tiling.plan(c.size, options.tile)
        for first in range(0, len(tiles), options.batch):
            self._restore_tiles(c, tiles[first : first + options.batch], seeds, images, mismatches)
        return Restored(torch.stack(images), mismatches, c.count, seed, bitstream)

    def _restore_tiles(
        self, c: Coefficients, tiles: list[tiling.Tile], seeds: list[int], images: list[Tensor], mismatches: list[int]
    ) -> None:
        with self.stopwatch("decode"), one_thread(self.device):
            decoded = [decode(tiling.tile_coefficients(c, tile).to(self.device)) for tile in tiles]
        drawn = [self._network(c, decoded, tiles, seed) for seed in seeds]
        if self.options.mode == "mean":
            drawn = [[torch.stack(draws).mean(0) for draws in zip(*drawn, strict=True)]]
        for output, restored in enumerate(drawn):
            for tile, x in zip(tiles, restored, strict=True):
                with self.stopwatch("project"), one_thread(self.device):
                    core, wrong = project_exact(x, tiling.core_coefficients(c, tile).to(self.device))
                    tiling.paste(images[output], core[0].cpu(), tile)
                    mismatches[output] += int(wrong)

    def _network(self, c: Coefficients, decoded: list[Tensor], tiles: list[tiling.Tile], seed: int) -> list[Tensor]:
        """One draw for each tile: its core, [1, C, h, w] float32, 0..255. On the CPU tiles take turns, so that a result
        cannot depend on how many there are."""
        step = 1 if self.device.type == "cpu" else len(tiles)
        cores: list[Tensor] = []
        with self.stopwatch("network"):
            for first in range(0, len(tiles), step):
                part = slice(first, first + step)
                inputs = torch.cat([tiling.pad(x) for x in decoded[part]])
                outputs = run_generator(self.generator, inputs, c, seed, tiles[part])
                cores += [tiling.cut_core(x[None], tile) for x, tile in zip(outputs, tiles[part], strict=True)]
        return cores


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
    """Padded tiles [n, C, H, W], 0..255, of one image → restored, float32, of the same shape. Gray is seen as three equal
    planes, and averaged on the way back."""
    n, channels = decoded.shape[:2]
    sampling = torch.full((n,), SAMPLINGS.index(c.sampling), device=decoded.device)
    noise = None
    if generator.config.noise:
        seeds = torch.full((n,), seed, dtype=torch.int64, device=decoded.device)
        noise = Noise(seeds, torch.tensor([tile.origin for tile in tiles], device=decoded.device))
    tables = c.tables.to(decoded.device).expand(n, -1, -1, -1)
    restored = generator(decoded.expand(-1, 3, -1, -1) / 255, tables, sampling, noise).float() * 255
    return restored if channels == 3 else restored.mean(1, keepdim=True)


def plain_decode(data: bytes) -> tuple[Image.Image, Tensor]:
    """What an ordinary decoder (Pillow) makes of a file that is not modelled: the image for its mode and metadata, and
    its pixels, [C, H, W] uint8, RGB or gray. Raises OSError."""
    image = Image.open(io.BytesIO(data))
    pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    tensor = torch.from_numpy(pixels.copy())
    return image, tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
