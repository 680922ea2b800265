"""bench/restore.py: a real run of the pipeline, its figures, and what they rest on."""

import io
import json
import os
import shutil
import tarfile
import time

import numpy as np
import pytest
import torch
from jpegs import encode, photograph
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from runs import tiny_weights

from bench import restore
from bench.end_to_end import memory
from bench.end_to_end.host import mosaic
from bench.end_to_end.measure import BenchError, count
from bench.end_to_end.memory import in_fresh_process
from bench.end_to_end.report import JPEG_STAGES, STAGES
from bench.end_to_end.workload import PATCH, Size, Workload, picture, write_as_is, write_shards
from kernels.numba_ops import compile_kernels

FILES, SIZE, MEGAPIXELS = 5, Size(70, 50), 5 * 70 * 50 / 1e6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two clean photographs."""
    folder = tmp_path_factory.mktemp("data")
    for seed, size in enumerate([(136, 200), (200, 130)]):
        (folder / f"{seed}.jpg").write_bytes(encode(photograph(*size, seed), "4:4:4", 97))
    return folder


@pytest.fixture
def forked(monkeypatch):
    """The bench's processes are forked, and need not import and compile everything again, and their memory is looked at
    now and then only: it is not what is tested."""
    compile_kernels()
    monkeypatch.setattr(memory, "START_METHOD", "fork")
    monkeypatch.setattr(memory, "INTERVAL", 0.5)


@pytest.mark.usefixtures("forked")
def test_a_real_run(data, tmp_path, capsys):
    """Text, JSON and charts of one size and of two rungs."""
    weights = tiny_weights(tmp_path, noise=True)
    arguments = ["--data", data, "--sizes", SIZE, "--files", FILES, "--weights", weights, "--workers", 2]
    arguments += ["--device", "cpu", "--dtype", "float32", "--quality", 30, "--seconds", 0.1]
    arguments += ["--scaling", "--scaling-files", 3, "--scaling-size", "32x32", "--scaling-megapixels", 0.01]
    arguments += ["--json", tmp_path / "figures.json", "--chart", tmp_path / "chart.png"]
    drawn = restore.can_draw()
    assert restore.main([*map(str, arguments if drawn else arguments[:-2])]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    adds_up(figures["sizes"], printed)
    scales(figures)
    for name in ("chart.png", "chart-scaling.png") if drawn else ():
        with Image.open(tmp_path / name) as chart:
            assert min(chart.size) > 400
            assert len(np.unique(np.asarray(chart.convert("L")))) > 10


def adds_up(sizes, printed):
    """The figures of the one size."""
    (size,) = sizes
    run, beside = size["run"], size["beside"]
    assert run["images"] == FILES
    assert run["megapixels"] == pytest.approx(MEGAPIXELS, rel=1e-12)
    assert (run["mode"], run["device"], run["dtype"]) == ("sample", "CPU", "float32")
    assert sorted(run["stages"]) == sorted(STAGES)
    assert all(times["wall"] > 0 and times["cpu"] > 0 for times in run["stages"].values())
    stages = sum(times["cpu"] for times in run["stages"].values())
    assert run["cpu"] == pytest.approx(stages + size["elsewhere"])
    assert run["cpu"] > 0.8 * stages
    pillow = sum(times["cpu"] for times in beside["pillow"].values())
    ratio = sum(run["stages"][stage]["cpu"] for stage in JPEG_STAGES) / pillow
    assert size["ratio"] == pytest.approx(ratio)
    assert f"{ratio:.2f} times Pillow's decode + PNG, by CPU time" in printed
    assert size["rate"] == pytest.approx(MEGAPIXELS / run["seconds"])
    assert beside["tile"] == [64, 80]
    assert beside["enlarged"] == pytest.approx(64 * 80 / (50 * 70))
    assert size["ceiling"] == pytest.approx(beside["rate"] / beside["enlarged"])
    assert f"network: {beside['rate']:.2f} MP/s" in printed
    assert 0 < size["workers_busy"] <= 1
    assert size["peak"] > 50 << 20


def scales(figures):
    (several,), (one,) = figures["files"], figures["megapixels"]
    assert several["megapixels"] == pytest.approx(3 * 32 * 32 / 1e6)
    assert one["workload"]["files"] == 1
    assert one["megapixels"] == pytest.approx(0.01, rel=0.02)
    assert min(several["peak"], one["peak"]) > 50 << 20
    assert min(several["seconds"], one["seconds"]) > 0


@pytest.mark.usefixtures("forked")
def test_files_as_they_are(data, tmp_path, capsys):
    """One that cannot be restored is left out, and said to be."""
    folder = tmp_path / "files"
    shutil.copytree(data, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "small.jpg").write_bytes(encode(photograph(24, 40, 3), "4:2:0", 50))
    arguments = ["--data", folder, "--as-is", "--weights", tiny_weights(tmp_path, noise=True), "--workers", 1]
    arguments += ["--device", "cpu", "--dtype", "float32", "--seconds", 0.1, "--json", tmp_path / "figures.json"]
    assert restore.main([*map(str, arguments)]) == 0
    assert "1 of quality 50, 2 of quality 97, 1 left out" in capsys.readouterr().out
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["sizes"]
    assert (figures["workload"]["files"], figures["run"]["images"]) == (3, 3)
    assert figures["workload"]["megapixels"] == pytest.approx(figures["run"]["megapixels"])
    assert figures["run"]["megapixels"] == pytest.approx((136 * 200 + 200 * 130 + 24 * 40) / 1e6)


def test_the_first_files_as_they_are(data, tmp_path):
    _, two = write_as_is(data, 2, None, tmp_path / "two")
    shards, one = write_as_is(data, None, 0.01, tmp_path / "one")
    assert (two.files, one.files, one.qualities) == (2, 1, {97: 1})
    with tarfile.open(next(shards.iterdir())) as shard:
        assert [shard.extractfile(member).read() for member in shard] == [(data / "0.jpg").read_bytes()]


def test_files_are_what_they_are_said_to_be(tmp_path):
    photographs = [photograph(60, 90, 0), photograph(90, 60, 1)]
    shards = write_shards(photographs, Workload(Size(150, 40), 300, 20, "4:2:2"), tmp_path / "shards")
    expected = Image.open(io.BytesIO(encode(photographs[0], "4:2:2", 20))).quantization
    files = []
    for path in sorted(shards.iterdir()):
        with tarfile.open(path) as shard:
            files += [shard.extractfile(member).read() for member in shard]
    assert len(files) == 300
    assert len(set(files)) > 50
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, get_sampling(image)) == ((150, 40), 1)
            assert image.quantization == expected


def test_pictures_are_of_photographs_and_without_seams():
    """What goes beyond a photograph is its mirror image; what is larger than a patch has several photographs."""
    photographs = [photograph(60, 90, 0), photograph(60, 90, 1)]
    wide = picture(photographs, Size(180, 60), 1)
    assert np.array_equal(wide[:, :90], photographs[1])
    assert np.array_equal(wide[:, 90:], photographs[1][:, ::-1])
    large = picture(photographs, Size(PATCH + 60, 60), 0)
    assert np.array_equal(large[:, :90], photographs[0])
    assert np.array_equal(large[:, PATCH:], photographs[1][:, 15:75])  # from its middle
    inside, elsewhere = (picture(photographs, Size(20, 20), number) for number in (0, 2))
    assert not np.array_equal(inside, elsewhere)


def share(size: int) -> int:
    """Fills so many bytes and has three children look on. Returns 7."""
    data = os.urandom(1 << 20) * (size >> 20)
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(data[0] >> 8)
    for _ in range(3):
        os.wait()
    return 7


def test_memory_that_processes_share_counts_once():
    size = 600 << 20
    result, peak = in_fresh_process(share, size)
    assert result == 7
    assert size < peak < 2 * size


@pytest.mark.usefixtures("forked")
def test_the_host_with_a_device_that_only_copies(data, tmp_path, capsys):
    arguments = ["--data", data, "--sizes", "70x50", "1600x64", "--files", 4, "--weights", tiny_weights(tmp_path)]
    arguments += ["--workers", 2, "--stand-in-device", "--json", tmp_path / "figures.json"]
    assert restore.main([*map(str, arguments)]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    assert [(host["workload"]["size"]["width"], host["workers"]) for host in figures["hosts"]] == [
        (70, 1),
        (70, 2),
        (1600, 1),
        (1600, 2),
    ]
    for host in figures["hosts"]:
        assert host["run"]["images"] == 4
        assert "network" not in host["run"]["stages"]
        alone, cores = host["alone"]["decode"] + host["alone"]["encode"], min(host["workers"], host["cores"])
        assert alone > 0
        assert host["ceiling"] == pytest.approx(cores * host["run"]["megapixels"] / alone)
        assert f"{host['rate'] / host['ceiling']:.0%} |" in printed


def test_a_mosaic_shows_the_images_repeated_and_mirrored():
    one, two = torch.arange(6, dtype=torch.uint8).view(1, 2, 3).expand(3, 2, 3), torch.full((3, 5, 9), 7).byte()
    found = mosaic([one, two], 8)
    assert found.shape == (3, 8, 8)
    assert found[0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert (found[:, 2:7] == 7).all()
    assert found[0, 7].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]


def test_a_file_that_fails_is_no_figure(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    restored = {"status": "restored", "size": [3, 4], "mismatches": 2}
    manifest.write_text("\n".join(map(json.dumps, [restored, restored])))
    assert count(manifest) == (2, 24, 4)
    failed = {"status": "failed", "source": "a.jpg", "reason": "it is broken"}
    manifest.write_text("\n".join(map(json.dumps, [restored, failed])))
    with pytest.raises(BenchError, match=r"a\.jpg failed: it is broken"):
        count(manifest)


def test_errors_say_what_to_do(data, tmp_path, capsys):
    for arguments, message in (
        (["--quality", "0"], "--quality 0: expected 1..100"),
        (["--files", "0"], "expected positive numbers"),
        (["--sizes"], "nothing to measure"),
        (["--as-is", "--sizes", "64x64"], "files as they are have no --sizes"),
        (["--stand-in-device", "--scaling"], "no --scaling"),
        (["--data", str(tmp_path / "none.tar")], "none.tar"),
        (["--json", str(tmp_path / "no" / "a.json")], "no folder"),
        (["--device", "tpu"], "expected auto, cpu or cuda:N"),
    ):
        assert restore.main(["--data", str(data), *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        restore.main(["--data", str(data), "--sizes", "12"])
    assert "size '12': expected WIDTHxHEIGHT" in capsys.readouterr().err
