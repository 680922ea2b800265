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

from kernels import Coefficients, decode, project_exact
from model.generator import SAMPLINGS, Generator, Noise, three_tables
from model.noise import derive_pairs, derive_seed
from model.weights import load
from pipeline.engine import tiling
from pipeline.engine.byte_limit import ByteLimit, max_bytes
from pipeline.engine.device import check_gpu, choose_hardware, network_memory, one_thread, prepare_gpu, prepare_network
from pipeline.engine.memory import empty_images
from pipeline.engine.options import REGRESSION, SAMPLER, Mode, Options, check_mode
from pipeline.engine.results import Failure, FileRestoration, PendingFile, Restored, Source, data_of
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sixteen_bits import project_16
from pipeline.engine.stage import Stage, map_groups, run_stages
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.transfers import Deviations, ImageState, TileTask, Transfers, send
from pipeline.jpeg.bitstream import Bitstream, Layout, parse, read_scans
from pipeline.jpeg.dali_frontend import MAX_BATCH as DALI_BATCH
from pipeline.jpeg.dali_frontend import DaliFrontend, bitstream_or_raise
from pipeline.jpeg.errors import JpegError

T = TypeVar("T")

MAX_BATCH = 64
"""Tiles per batch, at most."""

SAMPLES_PER_PASS = 8
"""Samples per pass of the trunk. More would save little, and each is a float image in memory."""


@dataclass
class Restorer:
    """Restores JPEG files. Made by `from_pretrained`; used by one thread at a time (by several on a CPU with libjpeg as
    the front end). digest: hash of the weights. batched: tiles are restored in full batches of few shapes; always on a
    GPU."""

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
        cls, weights: str | None = None, device: str = "auto", dtype: str = "auto", options: Options | None = None
    ) -> Restorer:
        """Loads weights: a shipped name or a path; None: those that ship for the mode. Raises WeightsError, ModeError,
        FrontendError, or ValueError for another bad option."""
        options = options or Options()
        if weights is None:
            weights = REGRESSION if options.mode == "mmse" else SAMPLER
        loaded = load(weights)
        where, number_type = choose_hardware(device, dtype)
        check_mode(loaded.generator, loaded.name, options)
        tiling.plan((1, 1), options.tile, tiling.halo_of(loaded.generator))  # raises ValueError for a bad tile size
        generator = loaded.generator.convolve_in(number_type)
        shapes = 2 * (len(tiling.BATCH_SIDES) + 1) ** 2  # each with SAMPLES_PER_PASS samples, and with a remainder
        prepare_network(generator, where, shapes if options.compile else 0)
        return cls(generator, loaded.digest, where, number_type, options)

    @cached_property
    def _transfers(self) -> Transfers:
        """Made with the first tile, when the network moves to the device: until then this process can be forked."""
        self.generator.to(self.device)
        return Transfers(self.device)

    @property
    def mode(self) -> Mode:
        """The mode; the weights' default if the options name none."""
        return self.options.mode or ("sample" if self.generator.config.noise else "mmse")

    def parse(self, data: bytes) -> Layout | JpegError:
        """A JPEG file's header, or the reason for which the file cannot be restored."""
        return parse(data, self.options.max_pixels)

    def read(
        self, data: bytes, layout: Layout | JpegError | None = None, planes: Sequence[Tensor] | None = None
    ) -> Bitstream:
        """Reads a JPEG file. layout: what `parse` returned, if it was called; planes: buffers for the coefficients
        (memory.Buffers). Raises JpegError."""
        layout = layout or self.parse(data)
        if self.dali is not None:
            return bitstream_or_raise(self.read_many([data], [layout])[0])
        if isinstance(layout, JpegError):
            raise layout
        with self.stopwatch("bitstream"):
            return read_scans(layout, data, planes)

    def prepare_device(self, processes: int = 0, progress: bool = False) -> None:
        """Compiles a GPU's kernels in so many processes (0: one per core but one), and checks the front end. Must be
        called after forking, because DALI and CUDA start threads. Raises FrontendError, and DeviceError for a GPU on
        which kernels cannot be compiled."""
        if self.device.type == "cuda":
            prepare_gpu(self.device, self.dtype, processes, progress)
        if self.dali is not None:
            self.dali.check()

    def read_many(self, files: Sequence[bytes], layouts: Sequence[Layout | JpegError]) -> list[Bitstream | JpegError]:
        """Reads files together by DALI, the front end `dali`; layouts: their parsed headers."""
        assert self.dali is not None
        with self.stopwatch("bitstream"):
            return self.dali.read_scans(files, layouts)

    def restore(self, source: Source, seed: int = 0, key: str = "") -> Restored:
        """Restores one JPEG file: its bytes, its path, or a file open for reading in binary mode. The noise depends on
        `seed` and `key` alone. Raises JpegError for a broken file, its subclass UnsupportedJpeg for a kind that is not
        modelled, and OSError for a file that cannot be read."""
        return self.restore_bitstream(self.read(data_of(source)), seed, key)

    def restore_many(
        self, files: Iterable[tuple[str, Source]], seed: int = 0, workers: int = 0
    ) -> Iterator[tuple[str, Restored | Failure]]:
        """(key, file) → (key, result), in order; a file that cannot be restored gives a Failure. Several files are
        restored at once, so `files` is read ahead.

        workers: number of threads; 0: as many as PyTorch uses. On a GPU one more restores tiles, in batches."""
        threads = torch.get_num_threads()
        count = workers or threads
        within = max_bytes(count, self.batched)
        limit = ByteLimit[PendingFile](within, lambda file: self.estimate_bytes(file.layout.size, file.data))
        scheduler = Scheduler(
            self._stages(seed),
            PendingFile.on_error,
            workers=count,
            admit=limit,
            max_items=2 * MAX_BATCH if self.batched else 0,
            prepare=partial(torch.set_num_threads, 1),
            name=lambda file: file.key,
        )
        try:
            with scheduler:
                for file in scheduler.run(PendingFile.opened(key, source, self.parse) for key, source in files):
                    yield file.key, file.result()
        finally:
            torch.set_num_threads(threads)

    def _stages(self, seed: int) -> list[Stage[PendingFile]]:
        dali = self.dali is not None  # not thread-safe
        reading: Stage[PendingFile] = Stage(
            split=lambda file: (file,),
            do=lambda files: lambda: self._read_files(files, seed),
            merge=lambda file, unit, work: file.read(work),
            place="device" if dali else "worker",
            max_batch=lambda kind: DALI_BATCH if dali else 1,
            check=partial(check_gpu, self.device),
        )
        return [reading, self.tiles_stage(lambda file: file.work if isinstance(file.work, FileRestoration) else None)]

    def _read_files(self, files: Sequence[PendingFile], seed: int) -> list[FileRestoration | JpegError]:
        data, layouts = [file.data for file in files], [file.layout for file in files]
        found = list(map(self.read, data, layouts)) if self.dali is None else self.read_many(data, layouts)
        pairs = zip(files, found, strict=True)
        return [x if isinstance(x, JpegError) else self.begin(x, seed, file.key) for file, x in pairs]

    def tiles_stage(self, work_of: Callable[[T], FileRestoration | None]) -> Stage[T]:
        """The scheduler's stage that restores the tiles of items: on a GPU in batches, on a CPU by workers. work_of:
        the item's restoration, if it has one."""

        def split(item: T) -> Sequence[TileTask]:
            return [] if (work := work_of(item)) is None else work.tasks

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
            check=partial(check_gpu, self.device),
        )

    def restore_bitstream(self, bitstream: Bitstream, seed: int = 0, key: str = "") -> Restored:
        """Restores a file whose coefficients have been read; see `restore`."""
        tiles: Stage[FileRestoration] = self.tiles_stage(lambda work: work)
        return run_stages([tiles], self.begin(bitstream, seed, key)).restored()

    def begin(
        self, bitstream: Bitstream, seed: int = 0, key: str = "", images: Tensor | None = None
    ) -> FileRestoration:
        """Splits a file into tiles, to be restored in any order. images: buffer for the result (memory.Buffers)."""
        return FileRestoration(bitstream, seed, self.tile_tasks(bitstream.coefficients, self._seeds(seed, key), images))

    def tile_tasks(self, c: Coefficients, seeds: tuple[int, ...] = (), images: Tensor | None = None) -> list[TileTask]:
        """The tiles of a file's coefficients. seeds: of each draw; images: as in `begin`."""
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
        """The tiles of an image of `size`, (height, width) in pixels."""
        return tiling.plan(size, self.options.tile, tiling.halo_of(self.generator), whole=self.batched)

    @property
    def images(self) -> int:
        """Images per file."""
        return 1 if self.mode == "mean" else self.options.samples

    def estimate_bytes(self, size: tuple[int, int] | None, data: bytes = b"") -> int:
        """Estimated bytes of a JPEG file (its data), its coefficients, images and image files. size: if known."""
        return len(data) + (size[0] * size[1] if size else 0) * (6 + 6 * self.images * self.options.pixel.itemsize)

    def shape(self, task: TileTask) -> tuple[int, int]:
        """(height, width) in pixels of the network's input for a tile. It depends on the tile alone, so that a result
        does not depend on what else is in the batch."""
        return tiling.input_size(task.size, self.options.tile if self.batched else None)

    def max_batch(self, shape: tuple[int, int]) -> int:
        """Tiles per batch. shape: as `shape` returns it."""
        if not self.batched:
            return 1
        return max(1, min(MAX_BATCH, self.options.batch * self.options.tile**2 // (shape[0] * shape[1])))

    @torch.inference_mode()
    def restore_tiles(self, tasks: Sequence[TileTask]) -> Callable[[], list[Deviations]]:
        """Restores tiles of one shape, at most a batch, into their images. On a GPU this only launches the work; the
        returned function waits for it. It returns each tile's deviations."""
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
        """(number of the first sample, [K, C, H, W] before projection for each tile), SAMPLES_PER_PASS samples at a
        time."""
        seeds = [task.image.seeds for task in tasks]
        totals = [torch.zeros((), device=self.device)] * len(tasks)
        for first in range(0, len(seeds[0]), SAMPLES_PER_PASS):
            with self._timed("network"), network_memory():
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
        """The tasks with their coefficients on the device."""
        return self._transfers.to_device(tasks) if self.batched else tasks

    def decode(self, tasks: Sequence[TileTask]) -> list[Tensor]:
        """Decodes tiles of one shape, as `load` returns them, like libjpeg-turbo (kernels.decode), and pads them to the
        network's input shape: [1, C, H, W] float32, 0..255, for each. Tiles of equal sampling and size are decoded
        together."""

        def decode_group(group: list[TileTask]) -> Sequence[Tensor]:
            x = decode(Coefficients.cat([task.c for task in group]))
            return tiling.pad(x, self.shape(group[0])).unsqueeze(1).unbind()

        with one_thread(self.device):
            return map_groups(tasks, lambda task: (task.sampling, task.size), decode_group)

    @torch.inference_mode()
    def draw(
        self, tasks: Sequence[TileTask], decoded: Sequence[Tensor], seeds: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Runs the network on the tiles that `decode` returned; they may be of several files. seeds: K for each tile,
        the same K for all; unused in mode mmse, where K is 1. Returns [K, C, H, W] float32 for each tile, gray levels,
        not clipped to 0..255. A gray tile is repeated as three planes, and the result averaged over them."""
        missing = self.max_batch(self.shape(tasks[0])) - len(tasks) if self.batched else 0
        x = torch.cat([tile.expand(-1, 3, -1, -1) for tile in decoded])
        tables = torch.cat([three_tables(task.image.c.tables) for task in tasks])
        own = seeds if self.mode != "mmse" else [()] * len(tasks)
        rows = [(SAMPLINGS.index(task.sampling), *task.tile.origin, *s) for task, s in zip(tasks, own, strict=True)]
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
        """Makes tiles, as `load` returns them, exactly consistent with their files (kernels.project_exact; with 16 bits
        `project_16`). cores: [1, C, h, w] each, gray levels. Returns [C, h, w] uint8 or uint16 for each, and [tiles]
        int64 mismatches (with 16 bits, float64 excess). Tiles of equal sampling and size are projected together."""
        to_intervals = project_exact if self.options.bits == 8 else project_16

        def project_group(group: list[tuple[TileTask, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
            x = torch.cat([core for _, core in group]) if len(group) > 1 else group[0][1]
            return zip(*to_intervals(x, Coefficients.cat([task.core for task, _ in group])), strict=True)

        with one_thread(self.device):
            pairs = list(zip(tasks, cores, strict=True))
            found = map_groups(pairs, lambda pair: (pair[0].sampling, pair[0].core_size), project_group)
        images, deviations = zip(*found, strict=True)
        return list(images), torch.stack(deviations)

    def _end(self, tasks: Sequence[TileTask], deviations: Tensor) -> Callable[[], list[Deviations]]:
        """A function that waits for the device and returns each tile's deviations."""
        wait = self._transfers.to_host(tasks, deviations) if self.batched else None

        def end() -> list[Deviations]:
            found = deviations if wait is None else wait()
            self.stopwatch.settle()
            return [tuple(some) for some in found.tolist()]

        return end
