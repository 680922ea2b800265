"""The engine: JPEG bytes in, certified images out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, project_exact
from model.generator import Generator, Noise, three_tables
from model.noise import derive_pairs, derive_seed
from model.weights import load
from pipeline.engine import tiling
from pipeline.engine.device import choose_device, choose_dtype, compile_network, one_thread, use_ieee_float32
from pipeline.engine.memory import empty_images
from pipeline.engine.options import REGRESSION, SAMPLER, Mode, Options, check_mode
from pipeline.engine.results import Failure, PendingFile, Restoration, Restored, Source, data_of
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sixteen_bits import project_16
from pipeline.engine.stage import Stage, group_by_key, run_stages
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.transfers import Deviations, ImageState, TileTask, Transfers, send
from pipeline.jpeg.bitstream import Bitstream, Layout, parse, read_scans
from pipeline.jpeg.dali_frontend import MAX_BATCH as DALI_BATCH
from pipeline.jpeg.dali_frontend import DaliFrontend, bitstream_or_raise
from pipeline.jpeg.errors import JpegError

T = TypeVar("T")
SAMPLINGS = list(Subsampling)

MAX_BATCH = 64
"""Tiles in a batch."""

SAMPLES_PER_PASS = 8
"""Samples from one pass of the trunk. More would save little of it, and each is a float image in memory."""


@dataclass
class Restorer:
    """See the module. Made by `from_pretrained`, for any number of files, used by one thread at a time (on the CPU by
    several, unless DALI is the front end). batched: tiles go through the network in filled batches of few shapes."""

    generator: Generator
    digest: str
    device: torch.device
    dtype: torch.dtype
    options: Options = field(default_factory=Options)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    batched: bool = False

    def __post_init__(self) -> None:
        self.batched = self.batched or self.device.type == "cuda"
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
        generator = loaded.generator.convolve_in(number)
        if where.type == "cuda":
            use_ieee_float32()
        if options.compile:
            compile_network(generator, where, 2 * (len(tiling.BATCH_SIDES) + 1) ** 2)  # of DRAWS samples, and of fewer
        return cls(generator, loaded.digest, where, number, options)

    @cached_property
    def _transfers(self) -> Transfers:
        """Of a device, to which the network goes with it: until a tile is loaded, this process can be forked."""
        self.generator.to(self.device)
        return Transfers(self.device)

    @property
    def mode(self) -> Mode:
        """What is done with these weights."""
        return self.options.mode or ("sample" if self.generator.config.noise else "mmse")

    def parse(self, data: bytes) -> Layout | JpegError:
        """What a JPEG file's header says, or why the file cannot be restored."""
        return parse(data, self.options.max_pixels)

    def read(
        self, data: bytes, layout: Layout | JpegError | None = None, planes: Sequence[Tensor] | None = None
    ) -> Bitstream:
        """What a JPEG file says. layout: what `parse` has found, if that has been called. planes: where the
        coefficients are to go (memory.Buffers). Raises JpegError."""
        layout = layout or self.parse(data)
        if self.dali is not None:
            return bitstream_or_raise(self.read_many([data], [layout])[0])
        if isinstance(layout, JpegError):
            raise layout
        with self.stopwatch("bitstream"):
            return read_scans(layout, data, planes)

    def prepare_device(self, processes: int = 0, progress: bool = False) -> None:
        """Compiles a GPU's kernels in so many processes (0: one for each core but one), and checks the front end. To be
        called after forking: DALI and CUDA have threads. Raises FrontendError."""
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

    def restore(self, source: Source, seed: int = 0, key: str = "") -> Restored:
        """Restores one JPEG file: its bytes, its path, or a file open for reading in binary mode. The noise depends on
        `seed` and `key` alone. Raises JpegError for a file that is broken, or (UnsupportedJpeg) of a kind that is not
        modelled, and OSError for one that cannot be read."""
        return self.restore_bitstream(self.read(data_of(source)), seed, key)

    def restore_many(
        self, files: Iterable[tuple[str, Source]], seed: int = 0, workers: int = 0
    ) -> Iterator[tuple[str, Restored | Failure]]:
        """(key, file) → (key, result), in order; a bad file becomes a Failure and the others go on. Several files are
        under way at once, so `files` is read ahead. On a GPU tiles of several are batches; what is done file by file,
        and on a CPU the tiles, is done by so many threads (0: as many as PyTorch uses here)."""
        threads = torch.get_num_threads()
        scheduler = Scheduler(
            self._stages(seed),
            PendingFile.on_error,
            workers=workers or max(threads, 1 + self.batched),
            max_items=2 * MAX_BATCH if self.batched else 0,
            prepare=partial(torch.set_num_threads, 1),
            stopwatch=self.stopwatch,
        )
        try:
            with scheduler:
                for file in scheduler.run(PendingFile.opened(key, source) for key, source in files):
                    yield file.key, file.result()
        finally:
            torch.set_num_threads(threads)

    def _stages(self, seed: int) -> list[Stage[PendingFile]]:
        dali = self.dali is not None  # which several threads cannot use
        reading: Stage[PendingFile] = Stage(
            split=lambda file: (file,),
            do=lambda files: lambda: self._read_files(files, seed),
            merge=lambda file, unit, work: PendingFile(file.key, b"", work),
            place="device" if dali else "worker",
            max_batch=lambda kind: DALI_BATCH if dali else 1,
        )
        return [reading, self.tiles_stage(lambda file: file.work if isinstance(file.work, Restoration) else None)]

    def _read_files(self, files: Sequence[PendingFile], seed: int) -> list[Restoration | JpegError]:
        layouts = [self.parse(file.data) for file in files]
        if self.dali is None:
            found: Sequence[Bitstream | JpegError] = list(map(self.read, (file.data for file in files), layouts))
        else:
            found = self.read_many([file.data for file in files], layouts)
        works = zip(files, found, strict=True)
        return [x if isinstance(x, JpegError) else self.begin(x, seed, file.key) for file, x in works]

    def tiles_stage(self, work_of: Callable[[T], Restoration | None]) -> Stage[T]:
        """A Scheduler's stage that restores the tiles of items' works: on a GPU in batches, on a CPU by workers."""

        def split(item: T) -> Sequence[TileTask]:
            work = work_of(item)
            return [] if work is None else work.tasks

        def merge(item: T, task: TileTask, deviations: Deviations) -> T:
            work = work_of(item)
            assert work is not None
            work.deviations.append(deviations)
            return item

        return Stage(
            split=split,
            do=self.restore_tiles,
            merge=merge,
            place="device" if self.batched else "worker",
            kind=self.shape,
            max_batch=self.max_batch,
        )

    def restore_bitstream(self, bitstream: Bitstream, seed: int = 0, key: str = "") -> Restored:
        """The same from coefficients that have been read already."""
        tiles: Stage[Restoration] = self.tiles_stage(lambda work: work)
        return run_stages([tiles], self.begin(bitstream, seed, key)).restored()

    def begin(self, bitstream: Bitstream, seed: int = 0, key: str = "", images: Tensor | None = None) -> Restoration:
        """A file's tiles, to be restored one by one or together with those of other files. images: where the result is
        to go (memory.Buffers), or else into memory of its own."""
        return Restoration(bitstream, seed, self.tile_tasks(bitstream.coefficients, self._seeds(seed, key), images))

    def tile_tasks(self, c: Coefficients, seeds: tuple[int, ...] = (), images: Tensor | None = None) -> list[TileTask]:
        """The tiles of a file's coefficients."""
        tiles = self.tiles(c.size)
        if images is None:
            images = empty_images(c.sampling, c.size, self.images, self.options.pixel)
        image = ImageState(c, images, seeds, len(tiles))
        return [TileTask(image, tile) for tile in tiles]

    def _seeds(self, seed: int, key: str) -> tuple[int, ...]:
        count = self.options.samples
        if self.mode == "mean":
            return tuple(derive_pairs(seed, key, count))
        return tuple(derive_seed(seed, key, draw) for draw in range(count))

    def tiles(self, size: tuple[int, int]) -> list[tiling.Tile]:
        """How an image of (height, width) pixels is cut."""
        return tiling.plan(size, self.options.tile, tiling.halo_of(self.generator), whole=self.batched)

    @property
    def images(self) -> int:
        """How many images a file becomes."""
        return 1 if self.mode == "mean" else self.options.samples

    def shape(self, task: TileTask) -> tuple[int, int]:
        """(height, width) in pixels of what the network is given for a part. A function of the part alone, so that no
        result depends on its company."""
        height, width = map(tiling.aligned, task.size)
        if not self.batched:
            return height, width
        sides = [side for side in tiling.BATCH_SIDES if side < self.options.tile] + [self.options.tile]
        return min(s for s in sides if s >= height), min(s for s in sides if s >= width)

    def max_batch(self, shape: tuple[int, int]) -> int:
        """How many parts of a shape are a batch."""
        if not self.batched:
            return 1
        return max(1, min(MAX_BATCH, self.options.batch * self.options.tile**2 // (shape[0] * shape[1])))

    @torch.inference_mode()
    def restore_tiles(self, tasks: Sequence[TileTask]) -> Callable[[], list[Deviations]]:
        """Restores tiles of one shape, no more than are a batch, into their pictures' images. On a GPU that is only
        begun when this returns, and ended when the function is called that it returns."""
        with self._timed("decode"):
            loaded = self.load(tasks)
            decoded = self.decode(loaded)
        deviations = []
        for first, restored in self._restored(loaded, decoded):
            with self._timed("project"):
                cores = [tiling.cut_core(x, task.tile) for x, task in zip(restored, tasks, strict=True)]
                for draw in range(len(restored[0])):
                    exact, wrong = self.project(loaded, [core[draw : draw + 1] for core in cores])
                    for task, core in zip(loaded, exact, strict=True):
                        tiling.paste(task.image.images[first + draw], core, task.tile)
                    deviations.append(wrong)
        return self._end(tasks, torch.stack(deviations, 1))

    def _restored(self, tasks: Sequence[TileTask], decoded: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Of each tile some of its images before projection, [k, C, H, W], and the number of the first of them, until
        there are all."""
        seeds = [task.image.seeds for task in tasks]
        totals = [torch.zeros((), device=self.device)] * len(tasks)
        for first in range(0, len(seeds[0]), SAMPLES_PER_PASS):
            with self._timed("network"):
                drawn = self.draw(tasks, decoded, [some[first : first + SAMPLES_PER_PASS] for some in seeds])
            if self.mode == "mean":
                totals = [total + x.sum(0, keepdim=True) for total, x in zip(totals, drawn, strict=True)]
            else:
                yield first, drawn
        if self.mode == "mean":
            yield 0, [total / len(seeds[0]) for total in totals]

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        """Measures a stage, on a GPU by its stream's time."""
        return self.stopwatch.on_gpu(stage, self.device) if self.device.type == "cuda" else self.stopwatch(stage)

    def load(self, tasks: Sequence[TileTask]) -> Sequence[TileTask]:
        """The parts, their coefficients on the device."""
        return self._transfers.to_device(tasks) if self.batched else tasks

    def decode(self, tasks: Sequence[TileTask]) -> list[Tensor]:
        """Loaded parts of one shape as an ordinary decoder shows them, padded: [1, C, H, W] float32, 0..255. Those of
        one sampling and size are decoded together."""
        found: dict[int, Tensor] = {}
        with one_thread(self.device):
            for numbers in group_by_key(tasks, lambda task: (task.sampling, task.size)).values():
                c = Coefficients.cat([tasks[n].c for n in numbers])
                tiles = tiling.pad(decode(c), self.shape(tasks[numbers[0]]))
                found |= zip(numbers, tiles.split(1), strict=True)
        return [found[n] for n in range(len(tasks))]

    @torch.inference_mode()
    def draw(
        self, tasks: Sequence[TileTask], decoded: Sequence[Tensor], seeds: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """What the network makes of each part's decoded tile, for each of its K seeds, as many for all parts:
        [K, C, H, W] float32, gray levels, not limited to 0..255. In mode mmse the seeds are not used, and K is 1. Gray
        is seen as three equal planes, and averaged on the way back. Parts may be of different files."""
        missing = self.max_batch(self.shape(tasks[0])) - len(tasks) if self.batched else 0
        x = torch.cat([tile.expand(-1, 3, -1, -1) for tile in decoded])
        tables = torch.cat([three_tables(task.image.c.tables) for task in tasks])
        own = seeds if self.mode != "mmse" else [()] * len(tasks)
        rows = [
            (SAMPLINGS.index(task.sampling), *task.tile.origin, *some) for some, task in zip(own, tasks, strict=True)
        ]
        if missing:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing))
            tables = torch.cat([tables, tables[:1].expand(missing, -1, -1, -1)])
            rows += [(0,) * len(rows[0])] * missing
        numbers = send(torch.tensor(rows), self.device)
        if self.mode == "mmse":
            restored = self.generator(x / 255, tables, numbers[:, 0])[:, None]
        else:
            drawn = self.generator(x / 255, tables, numbers[:, 0], Noise(numbers[:, 3:], numbers[:, 1:3]))
            restored = drawn.at(self.options.strength)
        images = (restored[: len(tasks)].float() * 255).unbind()
        return [y if tile.shape[1] == 3 else y.mean(1, keepdim=True) for y, tile in zip(images, decoded, strict=True)]

    def project(self, tasks: Sequence[TileTask], cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Loaded parts' cores [1, C, h, w], gray levels, made exactly consistent with the files: each [C, h, w] uint8,
        and [parts] int64 mismatches; of 16 bits see `project_16`. Those of one sampling and size are projected
        together."""
        to_intervals = project_exact if self.options.bits == 8 else project_16
        found: dict[int, tuple[Tensor, Tensor]] = {}
        with one_thread(self.device):
            for numbers in group_by_key(tasks, lambda task: (task.sampling, task.core_size)).values():
                x = torch.cat([cores[n] for n in numbers]) if len(numbers) > 1 else cores[numbers[0]]
                exact, wrong = to_intervals(x, Coefficients.cat([tasks[n].core for n in numbers]))
                found |= zip(numbers, zip(exact, wrong, strict=True), strict=True)
        images, deviations = zip(*(found[n] for n in range(len(tasks))), strict=True)
        return list(images), torch.stack(deviations)

    def _end(self, tasks: Sequence[TileTask], deviations: Tensor) -> Callable[[], list[Deviations]]:
        """What waits for the device, and brings its results."""
        wait = self._transfers.to_host(tasks, deviations) if self.batched else None

        def end() -> list[Deviations]:
            found = deviations if wait is None else wait()
            self.stopwatch.settle()
            return [tuple(some) for some in found.tolist()]

        return end
