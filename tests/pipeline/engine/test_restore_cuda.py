"""A GPU restores what the CPU does: the same images to 50 dB or better, under the same certificates, in every run."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, encode, photograph
from PIL import Image
from runs import bag, fill, images, run

from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WEIGHTS = pytest.mark.parametrize("weights", ["posterior", "mmse"])
NEAR = 50.0
"""dB: what two devices' rounding may make of a difference."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def restorer(weights: str, device: str, **options: object) -> Restorer:
    return Restorer.from_pretrained(weights, device, "float32", replace(Options(), **options))


@WEIGHTS
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
@pytest.mark.parametrize("quality", [10, 75])
def test_the_cpus_images_and_certificates(weights, sampling, quality):
    data = encode(photograph(165, 210), sampling, quality)
    there, here = (restorer(weights, device).restore(data, seed=3, key="a") for device in ("cuda", "cpu"))
    assert there.sample_mismatches == here.sample_mismatches == [0]
    assert psnr(there.pixels(), here.pixels()) >= NEAR


def test_tiles_and_averages():
    data = encode(photograph(300, 410), quality=10)
    options = {"mode": "mean", "samples": 4, "tile": 256}
    there, here = (restorer("posterior", device, **options).restore(data) for device in ("cuda", "cpu"))
    assert there.mismatches == here.mismatches == 0
    assert psnr(there.pixels(), here.pixels()) >= NEAR


def test_bfloat16_is_near():
    data = encode(photograph(165, 210), quality=20)
    there = Restorer.from_pretrained("mmse", "cuda", "bfloat16").restore(data)
    assert there.mismatches == 0
    assert psnr(there.pixels(), restorer("mmse", "cpu").restore(data).pixels()) >= NEAR - 5


@WEIGHTS
def test_compiled(weights):
    """Also with other shapes, each of which is compiled."""
    for size in ((64, 64), (165, 210)):
        data = encode(photograph(*size), quality=10)
        plain, compiled = (restorer(weights, "cuda", compile=chosen).restore(data) for chosen in (False, True))
        assert compiled.mismatches == plain.mismatches == 0
        assert psnr(compiled.pixels(), plain.pixels()) >= NEAR


def test_two_batches_in_flight():
    """A batch that is begun before the last one is waited for changes neither."""
    there = restorer("posterior", "cuda")
    files = [there.read(encode(photograph(120, 90, seed), quality=15)) for seed in range(6)]
    alone = [there.restore_bitstream(bitstream, key=str(seed)) for seed, bitstream in enumerate(files)]
    works = [there.begin(bitstream, key=str(seed)) for seed, bitstream in enumerate(files)]
    ends = [there.restore_tiles(work.tasks) for work in works]
    for expected, work, end in zip(alone, works, ends, strict=True):
        work.deviations.extend(end())
        assert torch.equal(work.restored().images, expected.images)
        assert work.restored().sample_mismatches == expected.sample_mismatches


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@WEIGHTS
def test_the_whole_command_line(tmp_path, weights):
    """Against the CPU, and against itself with other workers, files and order."""
    source = fill(tmp_path / "in", {name: data for name, data in bag().items() if "q95" not in name})
    options = ("--weights", weights, "--dtype", "float32", "--verify")
    here = run(source, tmp_path / "cpu", *options, "--device", "cpu", "--workers", "1")  # CUDA does not survive a fork
    there = run(source, tmp_path / "cuda", *options, "--device", "cuda")
    for name, line in here.items():
        assert (line["status"], there[name]["status"]) == ("restored", "restored")
        assert line["mismatches"] == there[name]["mismatches"] == 0
    expected, found = images(tmp_path / "cpu"), images(tmp_path / "cuda")
    assert expected.keys() == found.keys()
    for name, data in expected.items():
        assert psnr(pixels(data), pixels(found[name])) >= NEAR
    few = fill(tmp_path / "few", {name: (source / name).read_bytes() for name in sorted(here)[:3]})
    run(few, tmp_path / "again", *options, "--device", "cuda", "--workers", "1")
    assert all(found[name] == data for name, data in images(tmp_path / "again").items())


def test_a_gpu_is_lost_after_an_error_inside_a_kernel():
    """In a process of its own, which it takes with it."""
    program = """
import torch
from pipeline.engine.device import DeviceLostError, check_gpu
device = torch.device("cuda", 0)
try:
    torch.zeros(1 << 50, device=device)  # too much memory: no reason to give up
except RuntimeError:
    check_gpu(device)
beyond = torch.zeros(1, device=device)[torch.tensor([9], device=device)]
try:
    check_gpu(device)
except DeviceLostError as error:
    print("lost:", error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "lost: cuda:0 does not work any more" in found.stdout
