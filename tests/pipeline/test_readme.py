"""The README's examples run as they stand."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import SRGB, exif, fill, mismatches, python

Run = Callable[[Path, str], subprocess.CompletedProcess[str]]
README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
JPEG = encode(photograph(50, 70), quality=40, icc_profile=SRGB, exif=exif(6))


def fresh(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    ray = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_ADDRESS": "local"}  # not the cluster of another test
    environment = {**os.environ, "PYTHONPATH": str(README.parent), **ray}
    return subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=250
    )


def ran(folder: Path, code: str, run: Run = python) -> str:
    fill(folder, {"photo.jpg": JPEG, "photos/a.jpg": JPEG, "photos/b.jpg": encode(photograph(30, 40))})
    if "result.error" in code:
        fill(folder, {"photos/c.jpg": b""})
    script = folder / "example.py"
    script.write_text(code)
    ended = run(folder, str(script))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def example(word: str) -> str:
    (code,) = [code for code in EXAMPLES if word in code]
    return code


def test_all_examples_are_run():
    assert len(EXAMPLES) == 4


def test_one_file(tmp_path):
    code = example("strength=0.5") + "import sys\nprint('torch._dynamo' in sys.modules)\n"
    assert ran(tmp_path, code, fresh) == "False\n"  # three seconds of imports that restoration does not need
    for name in ("photo.png", "half.png"):
        image = Image.open(tmp_path / name)
        assert image.size == (70, 50)
        assert image.info["icc_profile"] == SRGB
        assert image.getexif().get(0x0112) == (6 if name == "photo.png" else None)  # Pillow writes what it is told
        assert mismatches(JPEG, (tmp_path / name).read_bytes()) == 0


def test_many_files(tmp_path):
    said = ran(tmp_path, example("result.error"))
    assert said.startswith("c ")
    assert mismatches(JPEG, (tmp_path / "a.png").read_bytes()) == 0
    assert (tmp_path / "b.png").exists()


def test_dataset_of_pytorch(tmp_path):
    said = ran(tmp_path, example("DataLoader"))
    assert said.splitlines() == ["torch.Size([3, 50, 70])", "torch.Size([3, 30, 40])"]


def test_ray_data(tmp_path):
    pytest.importorskip("ray.data")
    assert "2 files restored" in ran(tmp_path, example("map_batches"), fresh)
