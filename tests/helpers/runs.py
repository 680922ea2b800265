"""The command line run in this process or in a forked one, what it left behind, and an independent judge of it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jpeglib
import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, Pixels, encode, photograph
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import get_sampling

from model.generator import Generator, GeneratorConfig
from model.weights import save
from pipeline import restore
from pipeline.outputs.history import HISTORY
from pipeline.outputs.manifest_file import LOCK, MANIFEST

Line = dict[str, Any]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
"""An ICC profile."""


def tiny_weights(folder: Path, noise: bool = False) -> Path:
    """Weights of a generator of 8 features that changes its input, and with `noise` visibly so."""
    path = folder / f"tiny{'-noisy' * noise}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(features=8, blocks=2, noise=noise))
        with torch.no_grad():
            generator.tail.weight.normal_(0, 0.02)
            if noise:
                generator.noise_head.amplitudes.bias.fill_(2.0)
    save(generator, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(regression, sampler): paths of tiny ones."""
    folder = tmp_path_factory.mktemp("weights")
    return str(tiny_weights(folder)), str(tiny_weights(folder, noise=True))


def exif(orientation: int = 6) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def corrupt_exif() -> bytes:
    """A tag's text lies beyond its end, of which Pillow warns when it reads it."""
    tags = Image.Exif()
    tags[0x010E] = "a description"
    return tags.tobytes()[:-8]


def bag(scale: int = 1) -> dict[str, bytes]:
    """File names and files: every sampling, gray, progressive, odd sizes, with and without metadata, q 10 to 95."""

    def image(height: int, width: int, seed: int) -> Pixels:
        return photograph(scale * height, scale * width, seed)

    files = {f"{s.replace(':', '')}-q{q}": encode(image(77, 101, q), s, q) for s in SAMPLINGS for q in (10, 50)}
    files |= {f"{s.replace(':', '')}-q95": encode(image(40, 57, 3), s, 95) for s in SAMPLINGS}
    files["gray"] = encode(image(50, 33, 0), "gray", 30)
    files["gray-q95"] = encode(image(50, 33, 0), "gray", 95)
    files["progressive"] = encode(image(64, 95, 1), "4:2:0", 40, progressive=True)
    files["metadata"] = encode(image(90, 61, 2), "4:2:0", 20, icc_profile=SRGB, exif=exif())
    return {f"{name}.jpg": data for name, data in files.items()}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def run(source: Path, output: Path, *options: str | Path, code: int = 0) -> dict[str, Line]:
    """Runs the command line, which must end with `code`; the manifest's lines by source."""
    found = restore.main(command(source, output, *options))
    assert found == code
    return lines(output)


def command(source: Path, output: Path, *options: str | Path) -> list[str]:
    return ["--quiet", "--input-dir", str(source), "--output-dir", str(output), *map(str, options)]


def lines(output: Path) -> dict[str, Line]:
    """The manifest's lines by source, of which each must have one."""
    records = [json.loads(line) for line in (output / MANIFEST).read_bytes().splitlines()]
    by_source = {record["source"]: record for record in records}
    assert len(by_source) == len(records)
    return by_source


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file below the folder but the runs' times; of the manifest, the lines in sorted order."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = {name: data for name, data in found.items() if not name.startswith(HISTORY) and name != LOCK}
    found[MANIFEST] = b"\n".join(sorted(found[MANIFEST].splitlines()))
    return found


def images(folder: Path, parts: bool = False) -> dict[str, bytes]:
    """Every file below the folder but the manifest's, which may still be in parts."""
    if parts:
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("manifest.", ".man"))}
    return {name: data for name, data in outputs(folder).items() if not name.startswith("manifest.")}


class Rank:
    """The command line in a forked process, as one of those that torchrun starts."""

    def __init__(self, arguments: list[str], rank: int, ranks: int, log: Path) -> None:
        self.environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        self.log = log
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments,))
        self.process.start()

    def _run(self, arguments: list[str]) -> None:
        os.environ.update(self.environment)
        torch.set_num_threads(1)  # OpenMP's own threads did not come along
        with self.log.open("w", buffering=1) as sys.stderr:
            sys.exit(restore.main(arguments))

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int | None, str]:
        """Waits for it. The exit code, and what it wrote to standard error."""
        self.process.join(60)
        return self.process.exitcode, self.log.read_text()


def in_a_child(work: Callable[[], int], meanwhile: Callable[[int], object] = lambda child: None) -> int:
    """`work` in a forked process, which ends with its result, and `meanwhile`, given the process's id, here. Returns
    the exit code; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's own threads did not come along
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
            os._exit(work())
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    try:
        meanwhile(child)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `python -m MODULE …` or `python FILE …` does in a folder, in a forked process that need not import
    everything again."""
    output, errors = folder.parent / f"{folder.name}.stdout", folder.parent / f"{folder.name}.stderr"

    def work() -> int:
        os.chdir(folder)
        for number, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        sys.argv = list(arguments[arguments[0] == "-m" :])
        try:
            if arguments[0] == "-m":
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
        return 0

    code = in_a_child(work)
    return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())


def mismatches(jpeg: bytes, output: bytes) -> int:
    """How many coefficients of the output, compressed as the JPEG file was, are not the file's: by Pillow (4:4:0, which
    Pillow cannot write: by jpeglib) without a line of the pipeline."""
    original = Image.open(io.BytesIO(jpeg))
    image = Image.open(io.BytesIO(output)).convert(original.mode)
    with tempfile.NamedTemporaryFile(suffix=".jpg") as before, tempfile.NamedTemporaryFile(suffix=".jpg") as after:
        Path(before.name).write_bytes(jpeg)
        if original.mode == "L":
            image.save(after, "JPEG", qtables=original.quantization)
        elif get_sampling(original) >= 0:
            image.save(after, "JPEG", qtables=original.quantization, subsampling=get_sampling(original))
        else:
            tables = [original.quantization[i] for i in (0, 1, 1)]
            with jpeglib.version("turbo210"):
                unsaved = jpeglib.from_spatial(np.asarray(image))
                unsaved.samp_factor = "4:4:0"
                unsaved.write_spatial(after.name, qt=np.array(tables, np.uint16).reshape(3, 8, 8))
        found = [jpeglib.read_dct(file.name) for file in (before, after)]
    planes = zip(*((x.Y, x.Cb, x.Cr) for x in found), strict=True)
    return sum(int((mine != theirs).sum()) for mine, theirs in planes if mine is not None)
