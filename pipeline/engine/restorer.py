"""The engine: JPEG bytes in, certified 8-bit images out.

restorer = Restorer.from_pretrained()
restored = restorer.restore(Path("photo.jpg").read_bytes())
Image.fromarray(restored.pixels()).save("photo.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, project_exact
from model.generator import Generator, Noise, three_tables
from model.noise import derive_pairs, derive_seed
from model.weights import load
from pipeline.engine import tiling
from pipeline.engine.device import choose_device, choose_dtype, compile_network, one_thread, use_ieee_float32
from pipeline.engine.results import Failure, Restored, Work
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.transfers import Part, Piece, Transfers, send
from pipeline.jpeg.bitstream import Bitstream, Layout, parse, read_scans
from pipeline.jpeg.dali_frontend import DaliFrontend, as_read
from pipeline.jpeg.errors import JpegError

Mode = Literal["sample", "mean", "mmse"]
MODES: tuple[str, ...] = get_args(Mode)
Frontend = Literal["libjpeg", "dali"]
FRONTENDS: tuple[str, ...] = get_args(Frontend)
SAMPLER, REGRESSION = "posterior", "mmse"
"""The weights that ship."""

SAMPLINGS = list(Subsampling)

SIDES = (128, 192, 256, 384, 512, 768, 1024, 1536)
"""Pixels of the sides of a batch's tiles, where an image is smaller than a tile; the tile's own beside them."""

MAX_BATCH = 64
"""Tiles in a batch."""

DRAWS = 8
"""Samples from one pass of the trunk. More would save little of it, and each is a float image in memory."""


class ModeError(ValueError):
    """A mode that the weights cannot serve; the message says which they can."""


@dataclass(frozen=True)
class Options:
    """How to restore.

    mode: `sample` draws, `mean` averages `samples` draws, in antithetic pairs, `mmse` regresses, with a regression's
        weights or a sampler's; None: draw if the weights can, or regress.
    tile: pixels a side, halo included, a multiple of 16. batch: tiles that go through the network together on a GPU,
    and more of small ones (on the CPU they take turns: a core is busy with one, and no result can depend on how many
    there are). max_pixels: larger images are refused before memory is taken for them. frontend: `libjpeg` reads the
    coefficients, `dali` recovers them from the pixels that NVIDIA DALI decodes, not every one of them exactly. compile:
    the network, on a GPU."""

    mode: Mode | None = None
    samples: int = 1
    tile: int = 1536
    batch: int = 8
    max_pixels: int = 1 << 28
    frontend: Frontend = "libjpeg"
    compile: bool = False


@dataclass
class Restorer:
    """See the module. Make one with `from_pretrained`; it may be used for any number of files, one thread at a time
    (on the CPU, from several threads, unless DALI is the front end). batched: tiles go through the network in batches
    of one of few shapes, filled up with whatever there is, as a GPU wants them."""

    generator: Generator
    digest: str
    device: torch.device
    dtype: torch.dtype
    options: Options = field(default_factory=Options)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    batched: bool = False

    def __post_init__(self) -> None:
        self.batched = self.batched or self.device.type == "cuda"
        self._transfers = Transfers(self.device) if self.device.type == "cuda" else None
        self.dali = DaliFrontend(self.device) if self.options.frontend == "dali" else None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        options: Options | None = None,
    ) -> Restorer:
        """weights: a shipped name or a path; None takes those that ship for the mode. Raises WeightsError, ModeError,
        FrontendError, or ValueError for a bad option."""
        options = options or Options()
        if weights is None:
            weights = REGRESSION if options.mode == "mmse" else SAMPLER
        loaded, where = load(weights), choose_device(device)
        check_mode(loaded.generator, loaded.name, options)
        tiling.plan((1, 1), options.tile, tiling.halo_of(loaded.generator))  # raises ValueError where it cannot be
        number = choose_dtype(dtype, where)
        generator = loaded.generator.to(where).convolve_in(number)
        if where.type == "cuda":
            use_ieee_float32()
        if options.compile:
            compile_network(generator, where, 2 * (len(SIDES) + 1) ** 2)  # of DRAWS samples, and of those left over
        return cls(generator, loaded.digest, where, number, options)

    @property
    def mode(self) -> Mode:
        """What is done with these weights."""
        return self.options.mode or ("sample" if self.generator.config.noise else "mmse")

    def parse(self, data: bytes) -> Layout | JpegError:
        """What a JPEG file's header says, or why the file cannot be restored."""
        return parse(data, self.options.max_pixels)

    def read(self, data: bytes, layout: Layout | JpegError | None = None) -> Bitstream:
        """What a JPEG file says. layout: what `parse` has found, if that has been called. Raises JpegError."""
        layout = layout or self.parse(data)
        if self.dali is not None:
            return as_read(self.read_many([data], [layout])[0])
        if isinstance(layout, JpegError):
            raise layout
        with self.stopwatch("bitstream"):
            return read_scans(layout, data)

    def get_ready(self, processes: int = 0, progress: bool = False) -> None:
        """Compiles the kernels for a GPU in so many processes (0: one for each core but one), and checks the front end.
        Raises FrontendError when that does not work here. Call it after forking: DALI and CUDA have threads."""
        if self.device.type == "cuda":
            from kernels.triton_ops.warm_up import compile_kernels  # noqa: PLC0415  # the CPU needs no Triton

            compile_kernels(self.device, processes, progress)
        if self.dali is not None:
            self.dali.check()

    def read_many(self, files: Sequence[bytes], layouts: Sequence[Layout | JpegError]) -> list[Bitstream | JpegError]:
        """What JPEG files say, whose headers have been parsed, read together by DALI, the front end `dali`."""
        assert self.dali is not None
        with self.stopwatch("bitstream"):
            return self.dali.read_scans(files, layouts)

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

    def restore_bitstream(self, bitstream: Bitstream, seed: int = 0, key: str = "") -> Restored:
        """The same from coefficients that have been read already."""
        work = self.begin(bitstream, seed, key)
        shapes: dict[tuple[int, int], list[Part]] = {}
        for part in work.parts:
            shapes.setdefault(self.shape(part), []).append(part)
        for shape, parts in shapes.items():
            step = self.max_batch(shape)
            for first in range(0, len(parts), step):
                batch = parts[first : first + step]
                for part, piece in zip(batch, self.restore_parts(batch)(), strict=True):
                    work.put(part, piece)
        return work.restored()

    def begin(self, bitstream: Bitstream, seed: int = 0, key: str = "") -> Work:
        """A file's parts, to be restored one by one or together with those of other files."""
        count = self.options.samples
        if self.mode == "mean":
            seeds = derive_pairs(seed, key, count)
        else:
            seeds = [derive_seed(seed, key, draw) for draw in range(count)]
        return Work(bitstream, seed, self.parts(bitstream.coefficients, tuple(seeds)), self.images)

    def tiles(self, size: tuple[int, int]) -> list[tiling.Tile]:
        """How an image of (height, width) pixels is cut."""
        return tiling.plan(size, self.options.tile, tiling.halo_of(self.generator), whole=self.batched)

    def parts(self, c: Coefficients, seeds: tuple[int, ...] = ()) -> list[Part]:
        return [Part(tiling.tile_coefficients(c, tile), tile, seeds) for tile in self.tiles(c.size)]

    @property
    def images(self) -> int:
        """How many images a file becomes."""
        return 1 if self.mode == "mean" else self.options.samples

    def shape(self, part: Part) -> tuple[int, int]:
        """(height, width) in pixels of what the network is given for a part. A function of the part alone, so that no
        result depends on its company."""
        height, width = tiling.aligned(part.c.size[0]), tiling.aligned(part.c.size[1])
        if not self.batched:
            return height, width
        sides = [side for side in SIDES if side < self.options.tile] + [self.options.tile]
        return min(s for s in sides if s >= height), min(s for s in sides if s >= width)

    def max_batch(self, shape: tuple[int, int]) -> int:
        """How many parts of a shape are a batch."""
        if not self.batched:
            return 1
        return max(1, min(MAX_BATCH, self.options.batch * self.options.tile**2 // (shape[0] * shape[1])))

    @torch.inference_mode()
    def restore_parts(self, parts: Sequence[Part]) -> Callable[[], list[Piece]]:
        """Restores parts of one shape, no more than are a batch. On a GPU that is only begun when this returns, and
        ended when the function is called that it returns."""
        with self._timed("decode"):
            parts = [self.load(part) for part in parts]
            decoded = [self.decode(part) for part in parts]
        images: list[list[Tensor]] = [[] for _ in parts]
        mismatches: list[list[Tensor]] = [[] for _ in parts]
        for restored in self._restored(parts, decoded):
            with self._timed("project"):
                for number, (part, x) in enumerate(zip(parts, restored, strict=True)):
                    for core in tiling.cut_core(x, part.tile).split(1):
                        image, wrong = self.project(part, core)
                        images[number].append(image)
                        mismatches[number].append(wrong)
        return self._end([torch.cat(x) for x in images], [torch.cat(x) for x in mismatches])

    def _restored(self, parts: Sequence[Part], decoded: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Of each part some of its images before projection, [k, C, H, W], until there are all."""
        count, totals = len(parts[0].seeds), [torch.zeros(())] * len(parts)
        for first in range(0, count, DRAWS):
            with self._timed("network"):
                drawn = self.draw(parts, decoded, [part.seeds[first : first + DRAWS] for part in parts])
            if self.mode == "mean":
                totals = [total.to(x.device) + x.sum(0, keepdim=True) for total, x in zip(totals, drawn, strict=True)]
            else:
                yield drawn
        if self.mode == "mean":
            yield [total / count for total in totals]

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        """Measures a stage, on a GPU by its stream's time."""
        return self.stopwatch.on_gpu(stage, self.device) if self.device.type == "cuda" else self.stopwatch(stage)

    def load(self, part: Part) -> Part:
        """The part, its coefficients on the device."""
        if self._transfers is not None:
            return replace(part, c=self._transfers.up(part.c))
        return part

    def decode(self, part: Part) -> Tensor:
        """A loaded part's tile as an ordinary decoder shows it, padded: [1, C, H, W] float32, 0..255."""
        with one_thread(self.device):
            return tiling.pad(decode(part.c), self.shape(part))

    @torch.inference_mode()
    def draw(self, parts: Sequence[Part], decoded: Sequence[Tensor], seeds: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the network makes of each part's decoded tile, for each of its K seeds, as many for all parts:
        [K, C, H, W] float32, gray levels, not limited to 0..255. In mode mmse the seeds are not used, and K is 1. Gray
        is seen as three equal planes, and averaged on the way back. Parts may be of different files."""
        missing = self.max_batch(self.shape(parts[0])) - len(parts) if self.batched else 0
        x = torch.cat([tile.expand(-1, 3, -1, -1) for tile in decoded])
        tables = torch.cat([three_tables(part.c.tables) for part in parts])
        own = seeds if self.mode != "mmse" else [()] * len(parts)
        rows = [
            (SAMPLINGS.index(part.c.sampling), *part.tile.origin, *some) for some, part in zip(own, parts, strict=True)
        ]
        if missing:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing))
            tables = torch.cat([tables, tables[:1].expand(missing, -1, -1, -1)])
            rows += [(0,) * len(rows[0])] * missing
        numbers = send(torch.tensor(rows), self.device)
        if self.mode == "mmse":
            restored = self.generator(x / 255, tables, numbers[:, 0])[:, None]
        else:
            restored = self.generator(x / 255, tables, numbers[:, 0], Noise(numbers[:, 3:], numbers[:, 1:3])).samples
        images = (restored[: len(parts)].float() * 255).unbind()
        return [y if tile.shape[1] == 3 else y.mean(1, keepdim=True) for y, tile in zip(images, decoded, strict=True)]

    def project(self, part: Part, core: Tensor) -> tuple[Tensor, Tensor]:
        """A core [1, C, h, w], gray levels, made exactly consistent with its loaded part: uint8, and [1] mismatches."""
        with one_thread(self.device):
            return project_exact(core, tiling.core_of_tile(part.c, part.tile))

    def _end(self, images: list[Tensor], mismatches: list[Tensor]) -> Callable[[], list[Piece]]:
        """What waits for the device and brings its results; images come as encoders take them, [K, H, W, C]."""
        if self._transfers is None:
            return lambda: _pieces(images, mismatches)
        wait = self._transfers.down([x.contiguous(memory_format=torch.channels_last) for x in images], mismatches)

        def end() -> list[Piece]:
            found = wait()
            self.stopwatch.settle()
            return _pieces(*found)

        return end


def _pieces(images: list[Tensor], mismatches: list[Tensor]) -> list[Piece]:
    return [Piece(image, tuple(wrong.tolist())) for image, wrong in zip(images, mismatches, strict=True)]


def check_mode(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights can serve the mode."""
    if options.mode is not None and options.mode not in MODES:
        raise ModeError(f"mode {options.mode!r}: expected {', '.join(MODES)}")
    if options.samples < 1:
        raise ModeError(f"samples {options.samples}: expected at least 1")
    if options.mode == "mmse" and not generator.config.regresses:
        raise ModeError(f"weights {name!r} only draw samples: mode mmse wants others, such as {REGRESSION!r}")
    if options.mode in ("sample", "mean") and not generator.config.noise:
        raise ModeError(
            f"weights {name!r} are deterministic, trained with MSE: mode {options.mode} has nothing to draw. "
            "Use mode mmse, or weights that take noise"
        )
    if (options.mode == "mmse" or not generator.config.noise) and options.samples > 1:
        raise ModeError("mode mmse gives one image a file: samples must be 1")
