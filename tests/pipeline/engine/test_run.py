"""What a file becomes depends on the file, the weights, the mode and the seed, and on nothing else."""

import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import bag, command, fill, images, in_a_child, lines, outputs, run, tiny_weights

from pipeline import restore
from pipeline.command_line import parse
from pipeline.engine import run as engine

NAMES = ("420-q10", "422-q50", "440-q10", "444-q50", "420-q95", "gray", "progressive", "metadata")
MODES = {
    "mmse": (),
    "sample": ("--mode", "sample", "--samples", "2", "--seed", "3"),
    "mean": ("--mode", "mean", "--samples", "2"),
}


def files(scale: int = 1) -> dict[str, bytes]:
    """One of each kind."""
    every = bag(scale)
    return {f"{name}.jpg": every[f"{name}.jpg"] for name in NAMES}


@pytest.fixture(scope="module", params=MODES)
def mode(request, tmp_path_factory) -> tuple[str | Path, ...]:
    """The options of a mode, weights included."""
    folder = tmp_path_factory.mktemp("weights")
    return ("--weights", tiny_weights(folder, noise=request.param != "mmse"), *MODES[request.param])


@pytest.fixture(scope="module")
def expected(mode, tmp_path_factory) -> dict[str, bytes]:
    """The outputs of all files of the bag together."""
    folder = tmp_path_factory.mktemp("expected")
    run(fill(folder / "in", files()), folder / "out", *mode)
    return images(folder / "out")


def test_alone_or_among_others(tmp_path, mode, expected):
    for name in ("420-q10.jpg", "gray.jpg", "metadata.jpg"):
        run(fill(tmp_path / name, {name: files()[name]}), tmp_path / f"{name}-out", *mode)
        alone = images(tmp_path / f"{name}-out")
        assert alone == {output: expected[output] for output in alone}


def test_in_any_order(tmp_path, mode, expected):
    (tmp_path / "in").mkdir()
    fill(tmp_path / "files", files())
    with tarfile.open(tmp_path / "in" / "shard.tar", "w") as shard:
        for name in reversed(files()):
            shard.add(tmp_path / "files" / name, name)
    run(tmp_path / "in", tmp_path / "out", *mode)
    assert images(tmp_path / "out") == expected


@pytest.mark.parametrize("options", [("--workers", "1"), ("--workers", "2", "--batch", "3"), ("--workers", "5")])
def test_with_any_batch_and_workers(tmp_path, mode, expected, options):
    run(fill(tmp_path / "in", files()), tmp_path / "out", *mode, *options)
    assert images(tmp_path / "out") == expected


def test_tiles_of_one_image_by_any_number_of_workers(tmp_path, mode):
    large = files(scale=3)
    source = fill(tmp_path / "in", {name: large[name] for name in ("420-q10.jpg", "gray.jpg")})
    for workers in ("1", "3"):
        run(source, tmp_path / workers, *mode, "--tile", "208", "--workers", workers, "--verify")
    assert outputs(tmp_path / "1") == outputs(tmp_path / "3")


def test_lines_stand_in_reading_order_whatever_took_longest(tmp_path):
    sizes = ((400, 500), (16, 16), (300, 200), (16, 16), (64, 64), (16, 16))
    source = fill(tmp_path / "in", {f"{n}.jpg": encode(photograph(*size), quality=10) for n, size in enumerate(sizes)})
    found = run(source, tmp_path / "out", "--weights", tiny_weights(tmp_path), "--tile", "208", "--workers", "3")
    assert list(found) == [f"{n}.jpg" for n in range(len(sizes))]


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("batched", [False, True])
def test_a_worker_that_is_killed_costs_no_file(tmp_path, batched):
    """Tiles of large files and small ones whole, on a CPU and in batches: what it had is done by another one."""
    large = files(scale=3)
    some = {name: large[name] for name in ("422-q50.jpg", "gray.jpg")} | {f"s-{n}": data for n, data in files().items()}
    source, mode = fill(tmp_path / "in", some), ("--weights", tiny_weights(tmp_path))
    options = {"batch": 2, "tile": 208}
    run_in_batches(source, tmp_path / "whole", mode, 1, batched=batched, **options)
    killed = []

    def kill(run: int) -> None:
        """A worker, which the one child of the run has as its child."""
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for worker in [worker for child in children(run) for worker in children(child)][:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
            time.sleep(0.001)

    def work() -> int:
        run_in_batches(source, tmp_path / "out", mode, 2, batched=batched, **options)
        return 0

    assert in_a_child(work, kill) == 0
    assert killed
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert {line["status"] for line in lines(tmp_path / "out").values()} == {"restored"}


def run_in_batches(
    source: Path, output: Path, mode: tuple[str | Path, ...], workers: int, batched: bool = True, **options: int
) -> None:
    """As on a GPU: the tiles of several files go through the network together, in few shapes."""
    job = restore.make_job(parse(command(source, output, *mode, "--verify", "--workers", str(workers))))
    restorer = job.restorer
    restorer.options = replace(restorer.options, **options)
    restorer.batched = batched
    assert engine.run(job) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_in_batches_of_several_files(tmp_path, mode, workers):
    """Each has its certificate (`--verify`), and is the same to the bit whatever its company."""
    run_in_batches(fill(tmp_path / "in", files()), tmp_path / "out", mode, workers, batch=4, tile=256)
    alone = fill(tmp_path / "alone", {"420-q10.jpg": files()["420-q10.jpg"]})
    run_in_batches(alone, tmp_path / "alone-out", mode, workers, batch=4, tile=256)
    assert images(tmp_path / "alone-out").items() <= images(tmp_path / "out").items()


def test_large_and_small_files_in_batches(tmp_path, mode):
    """Tiles of large images and whole small ones, gray and colour, in turn and with a thread that drives the device."""
    large = files(scale=3)
    some = {name: large[name] for name in ("422-q50.jpg", "gray.jpg")}
    source = fill(tmp_path / "in", some | {f"small-{name}": data for name, data in files().items()})
    for workers in (1, 3):
        run_in_batches(source, tmp_path / str(workers), mode, workers, batch=2, tile=208)
    assert outputs(tmp_path / "1") == outputs(tmp_path / "3")
    assert {line["status"] for line in lines(tmp_path / "3").values()} == {"restored"}


def test_started_with_fewer_files_and_gone_on(tmp_path, mode, expected):
    source = fill(tmp_path / "in", dict(list(files().items())[::2]))
    run(source, tmp_path / "out", *mode)
    run(fill(source, files()), tmp_path / "out", *mode)
    assert images(tmp_path / "out") == expected


def test_another_tile_is_the_same_image_to_50_db_under_the_same_certificate(tmp_path, mode):
    source = fill(tmp_path / "in", files(scale=3))
    run(source, tmp_path / "whole", *mode)
    run(source, tmp_path / "tiled", *mode, "--tile", "208")
    whole, tiled = lines(tmp_path / "whole"), lines(tmp_path / "tiled")
    assert tiled == whole
    for line in whole.values():
        for output in line["outputs"]:
            a, b = (np.asarray(Image.open(tmp_path / run / output)).astype(float) for run in ("whole", "tiled"))
            assert 10 * np.log10(255**2 / max(1e-9, ((a - b) ** 2).mean())) >= 50


def test_seed_and_key_decide_the_sample(tmp_path):
    options = ("--weights", tiny_weights(tmp_path, noise=True), "--mode", "sample")
    data = files()["420-q10.jpg"]
    source = fill(tmp_path / "in", {"a.jpg": data, "b.jpg": data})
    run(source, tmp_path / "0", *options)
    run(source, tmp_path / "1", *options, "--seed", "1")
    run(source, tmp_path / "two", *options, "--samples", "2")
    zero, one, two = (images(tmp_path / name) for name in ("0", "1", "two"))
    assert len({zero["a.png"], zero["b.png"], one["a.png"], one["b.png"]}) == 4
    assert two["a.s0.png"] == zero["a.png"]
    assert two["a.s1.png"] != zero["a.png"]
