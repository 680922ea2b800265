"""Other programs that restore JPEG files, compared with this decoder on the same files.

jpegqs (jpeg-quantsmooth), jpeg2png and knusperli also choose values inside the coefficients' intervals, by smoothness
instead of a network. They are run if they are on the PATH; bench/quality.py prints the table.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.engine.restorer import Restorer
from train.measures import Compressed
from train.restorations import Restoration
from train.table import Column, Originals, RowAccumulator

MESSAGE = 500
"""How many characters of the end of a program's output an error message has."""


class RivalError(RuntimeError):
    """A program failed; the message names it, the file, and its output."""


@dataclass(frozen=True)
class Decoded:
    """image: [C, H, W] uint8, of the file's components. seconds: wall time. claimed: mismatches according to the
    decoder itself; None when it makes no claim."""

    image: Tensor
    seconds: float
    claimed: int | None = None


Decoder = Callable[[Compressed], Decoded]


@dataclass(frozen=True)
class Program:
    """A decoder of one file. command: name and arguments; {input} and {output} are replaced by paths. writes: the
    output's suffix, of a format that Pillow reads. timeout: seconds for one file."""

    name: str
    command: tuple[str, ...]
    writes: str
    timeout: float = 600

    @property
    def found(self) -> bool:
        return shutil.which(self.command[0]) is not None

    def decode(self, compressed: Compressed) -> Decoded:
        """Starts the program; the seconds include its start and the writing of its output. Raises RivalError."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            source, output = Path(folder, "input.jpg"), Path(folder, f"output{self.writes}")
            source.write_bytes(compressed.data)
            start = time.perf_counter()
            said = self._run(source, output, compressed.key)
            seconds = time.perf_counter() - start
            try:
                image = read_image(output, gray=len(compressed.truth) == 1)
            except OSError as error:
                raise RivalError(f"{self.name} left no image of {compressed.key}: {error}; it said: {said}") from error
        if image.shape != compressed.truth.shape:
            sizes = [f"{shape[2]}x{shape[1]}" for shape in (image.shape, compressed.truth.shape)]
            raise RivalError(f"{self.name} wrote {sizes[0]} pixels of {compressed.key}, which has {sizes[1]}")
        return Decoded(image, seconds)

    def _run(self, source: Path, output: Path, key: str) -> str:
        """The end of the program's output on both streams. Raises RivalError."""
        arguments = [part.format(input=source, output=output) for part in self.command]
        messages = source.with_name("messages")
        with messages.open("wb") as file:
            try:
                status = wait(arguments, file.fileno(), self.timeout)
            except OSError as error:
                raise RivalError(f"{self.name} cannot be started: {error}") from error
        said = messages.read_text(errors="replace").strip()[-MESSAGE:] or "nothing"
        if status is None:
            raise RivalError(f"{self.name} took more than {self.timeout:g} s on {key} and was killed; it said: {said}")
        if status:
            raise RivalError(f"{self.name} failed on {key} with exit code {status}; it said: {said}")
        return said


PROGRAMS = (
    Program("jpegqs", ("jpegqs", "-q", "6", "{input}", "{output}"), ".jpg"),
    Program("jpeg2png", ("jpeg2png", "-q", "{input}", "-o", "{output}"), ".png"),
    Program("knusperli", ("knusperli", "{input}", "{output}"), ".png"),
)
"""jpegqs, here at its best quality, writes a JPEG file with steps of 1; -q of jpeg2png means quiet."""


def wait(arguments: list[str], output: int, timeout: float) -> int | None:
    """The exit code, negative for a signal; None after more than `timeout` seconds. The process and all its children
    are then killed, and also on an interruption. output: a file descriptor for both its streams. Raises OSError."""
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_image(path: Path, gray: bool) -> Tensor:
    """[1 or 3, H, W] uint8. Raises OSError."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("L" if gray else "RGB"))
    return torch.from_numpy(pixels)[None] if gray else torch.from_numpy(pixels).permute(2, 0, 1)


def engine(restorer: Restorer) -> Decoder:
    """This decoder: `restore`, from the file's bytes to the 8-bit image and its certificate."""

    def decode(compressed: Compressed) -> Decoded:
        start = time.perf_counter()
        restored = restorer.restore(compressed.data, key=compressed.key)
        return Decoded(restored.image, time.perf_counter() - start, restored.mismatches)

    return decode


def choose(names: Iterable[str]) -> tuple[list[Program], list[str]]:
    """(those that are on the PATH, the names of the others). Raises RivalError for a name that is not in PROGRAMS."""
    wanted, known = list(names), {program.name: program for program in PROGRAMS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise RivalError(f"programs {', '.join(unknown)}: expected some of {', '.join(known)}")
    chosen = [known[name] for name in wanted]
    return [program for program in chosen if program.found], [program.name for program in chosen if not program.found]


@dataclass(frozen=True)
class Figures:
    """One decoder at one quality: columns of train.table.TableRow. speed: megapixels a second, over all files."""

    quality: int
    decoder: str
    psnr: float
    gain: float
    consistency: float
    mismatches: int
    coefficients: int
    disputed: int | None
    speed: float


COLUMNS: list[Column] = [
    ("quality", "quality", ""),
    ("decoder", "decoder", ""),
    ("PSNR dB", "psnr", ".2f"),
    ("gain dB", "gain", "+.2f"),
    ("consistency", "consistency", ".4f"),
    ("mismatches", "mismatches", ""),
    ("in dispute", "disputed", ""),
    ("MP/s", "speed", ".3f"),
]


class Contest:
    """Has every decoder restore each file that train.evaluate compresses, and sums up the figures."""

    def __init__(self, decoders: Mapping[str, Decoder]) -> None:
        self.decoders = decoders
        self._start()

    def _start(self) -> None:
        self.tallies = {name: RowAccumulator(name, {}) for name in self.decoders}
        self.seconds = dict.fromkeys(self.decoders, 0.0)
        self.pixels = 0

    def on_image(self, position: int, compressed: Compressed, found: Mapping[str, Restoration]) -> None:
        """The `on_image` of train.evaluate.evaluate. Raises RivalError."""
        self.pixels += compressed.truth[0].numel()
        for name, decode in self.decoders.items():
            decoded = decode(compressed)
            self.tallies[name].add(compressed, Restoration(decoded.image, decoded.claimed))
            self.seconds[name] += decoded.seconds

    def finish(self, quality: int) -> list[Figures]:
        """One row for each decoder, over all files since the last call."""
        figures = []
        for name, tally in self.tallies.items():
            row = tally.row(quality, Originals())
            figures.append(
                Figures(
                    quality=quality,
                    decoder=name,
                    psnr=row.psnr,
                    gain=row.gain,
                    consistency=row.consistency,
                    mismatches=row.mismatches,
                    coefficients=row.coefficients,
                    disputed=row.disputed,
                    speed=self.pixels / 1e6 / self.seconds[name],
                )
            )
        self._start()
        return figures
