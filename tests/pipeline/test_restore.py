"""The command line: what each option does to real files, the certificates it writes, and how it ends."""

import contextlib
import io
import os
import signal
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import (
    SRGB,
    bag,
    command,
    corrupt_exif,
    exif,
    fill,
    images,
    in_a_child,
    lines,
    mismatches,
    outputs,
    run,
    tiny_weights,
)
from shards import write_tar

from pipeline import restore
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.store import PARTIAL


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"), noise=True)


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """A small image and one that takes seconds."""
    return {"a.jpg": encode(photograph(64, 64)), "b.jpg": encode(photograph(3000, 4000), quality=90)}


@pytest.mark.parametrize("options", [(), ("--mode", "mean", "--samples", "3"), ("--format", "webp")])
def test_certificates_are_what_another_codec_finds(tmp_path, weights, noisy, options):
    files = bag()
    which = noisy if "--mode" in options else weights
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", which, *options)
    assert found.keys() == files.keys()
    for name, line in found.items():
        assert line["status"] == "restored"
        (output,) = line["outputs"]
        assert mismatches(files[name], (tmp_path / "out" / output).read_bytes()) == line["mismatches"]
        assert line["mismatches"] == 0 or line["quality"] > 50


def test_each_sample_has_its_own_certificate(tmp_path, noisy):
    files = bag()
    options = ("--weights", noisy, "--mode", "sample", "--samples", "2")
    for name, line in run(fill(tmp_path / "in", files), tmp_path / "out", *options).items():
        stem = name.removesuffix(".jpg")
        assert line["outputs"] == [f"{stem}.s0.png", f"{stem}.s1.png"]
        drawn = [(tmp_path / "out" / output).read_bytes() for output in line["outputs"]]
        pixels = [np.asarray(Image.open(io.BytesIO(output))) for output in drawn]
        assert (pixels[0] != pixels[1]).any() == (line["quality"] < 90)  # no noise where the tables are fine
        assert [mismatches(files[name], output) for output in drawn] == line["sample_mismatches"]
        assert sum(line["sample_mismatches"]) == line["mismatches"]


def test_manifest_line_says_what_the_file_was(tmp_path, weights):
    source = fill(tmp_path / "in", {"a/b.c.jpeg": encode(photograph(30, 45), "4:2:2", 35)})
    line = run(source, tmp_path / "out", "--weights", weights, "--seed", "7")["a/b.c.jpeg"]
    expected = {
        "key": "a/b.c",
        "status": "restored",
        "reason": "",
        "size": [30, 45],
        "sampling": "4:2:2",
        "quality": 35,
        "seed": 7,
        "mode": "mmse",
        "coefficients": 64 * (4 * 6 + 2 * 4 * 3),
        "mismatches": 0,
        "outputs": ["a/b.c.png"],
    }
    assert {name: line[name] for name in expected} == expected
    assert line["weights"]
    assert line["tables"]


@pytest.mark.parametrize("format", ["png", "webp"])
def test_metadata_are_carried_over_and_pixels_not_turned(tmp_path, weights, format):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(90, 61), icc_profile=SRGB, exif=exif(6))})
    run(source, tmp_path / "out", "--weights", weights, "--format", format)
    output = Image.open(tmp_path / "out" / f"a.{format}")
    assert output.size == (61, 90)
    assert output.info["icc_profile"] == SRGB
    assert output.getexif()[0x0112] == 6


@pytest.mark.parametrize("workers", ["1", "2"])
def test_corrupt_exif_is_carried_over_without_a_warning(tmp_path, weights, workers, capfd):
    """Of files that are restored, passed through, or, for want of an end of image, shown to Pillow first."""
    cmyk, image = io.BytesIO(), photograph(40, 50)
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG", exif=corrupt_exif())
    restored = encode(image, exif=corrupt_exif())
    files = {"restored.jpg": restored, "endless.jpg": restored[:-2] + b"\xff\xe1\xff\xff", "cmyk.jpg": cmyk.getvalue()}
    for data in files.values():
        with pytest.warns(UserWarning, match="(?i)truncated|corrupt"):
            Image.open(io.BytesIO(data))
    source = fill(tmp_path / "in", files)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(source, tmp_path / "out", "--weights", weights, "--workers", workers)
    assert {name: line["status"] for name, line in found.items()} == {
        "restored.jpg": "restored",
        "endless.jpg": "restored",
        "cmyk.jpg": "passed_through",
    }
    assert capfd.readouterr().err == ""
    for output in images(tmp_path / "out").values():
        assert Image.open(io.BytesIO(output)).info["exif"] == corrupt_exif()


def test_passed_through_as_pillow_decodes_it(tmp_path, weights):
    cmyk, rgb = io.BytesIO(), io.BytesIO()
    image = Image.fromarray(photograph(40, 50))
    image.convert("CMYK").save(cmyk, "JPEG", icc_profile=SRGB, exif=exif())
    image.save(rgb, "JPEG", keep_rgb=True, icc_profile=SRGB)
    files = {"cmyk.jpg": cmyk.getvalue(), "rgb.jpg": rgb.getvalue()}
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights)
    for name, what in (("cmyk", "CMYK"), ("rgb", "RGB")):
        line = found[f"{name}.jpg"]
        assert (line["status"], line["size"], line["mismatches"]) == ("passed_through", [40, 50], None)
        assert what in line["reason"]
        output, expected = Image.open(tmp_path / "out" / f"{name}.png"), Image.open(io.BytesIO(files[f"{name}.jpg"]))
        assert np.array_equal(output, expected.convert("RGB"))
        assert output.getexif() == expected.getexif()
        assert output.info.get("icc_profile") == (SRGB if name == "rgb" else None)  # not a CMYK profile on RGB pixels


def test_output_shards_have_the_same_keys_and_the_other_members(tmp_path, weights):
    files = bag()
    write_tar(tmp_path / "in" / "a.tar", {**files, "gray.json": b"{}", "notes/readme.txt": b"text"})
    run(tmp_path / "in", tmp_path / "out", "--weights", weights, "--output-shards")
    run(fill(tmp_path / "loose", files), tmp_path / "files", "--weights", weights)
    with tarfile.open(tmp_path / "out" / "a.tar") as shard:
        members = {member.name: shard.extractfile(member).read() for member in shard}
    expected = {**images(tmp_path / "files"), "gray.json": b"{}", "notes/readme.txt": b"text"}
    assert members == expected


def test_a_member_that_a_restored_image_leaves_no_place_for_is_said(tmp_path, weights, capfd):
    """As masks in PNG beside photographs."""
    jpeg = encode(photograph(24, 24))
    write_tar(tmp_path / "in" / "a.tar", [("a.jpg", jpeg), ("a.png", b"mask"), ("b.png", b"mask"), ("b.jpg", jpeg)])
    options = ("--weights", weights, "--output-shards")
    found = run(tmp_path / "in", tmp_path / "out", *options, code=1)
    assert {name: line["status"] for name, line in found.items()} == {
        "a.tar/a.jpg": "restored",
        "a.tar/a.png": "failed",
        "a.tar/b.jpg": "failed",
    }
    assert "failed: a.tar/a.png: not carried along" in capfd.readouterr().err
    assert "choose another --format" in found["a.tar/a.png"]["reason"]
    assert len(run(tmp_path / "in", tmp_path / "webp", *options, "--format", "webp")) == 2


def test_verify_agrees(tmp_path, weights):
    files = bag()
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights, "--verify", "--workers", "2")
    assert {line["status"] for line in found.values()} == {"restored"}


def test_larger_than_max_pixels_is_refused(tmp_path, weights):
    files = {"a.jpg": encode(photograph(16, 16)), "b.jpg": encode(photograph(16, 17))}
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights, "--max-pixels", "256", code=1)
    assert found["a.jpg"]["status"] == "restored"
    assert found["b.jpg"]["status"] == "failed"
    assert "limit of 256" in found["b.jpg"]["reason"]


def test_failures_count_again_when_nothing_is_left_to_do(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(16, 16)), "b.jpg": b"text", "c.jpg": b""})
    run(source, tmp_path / "out", "--weights", weights, code=1)
    first = outputs(tmp_path / "out")
    run(source, tmp_path / "out", "--weights", weights, code=1)
    assert outputs(tmp_path / "out") == first


def test_configuration_file_and_the_command_line_above_it(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(16, 16))})
    settings = f"input-dir: {source}\nweights: {weights}\nformat: webp\nseed: 5\nverify: true\nquiet: true\n"
    (tmp_path / "run.yaml").write_text(settings)
    options = ["--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / "out"), "--seed", "6"]
    assert restore.main(options) == 0
    assert lines(tmp_path / "out")["a.jpg"]["seed"] == 6
    assert (tmp_path / "out" / "a.webp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "sample"], "deterministic"),
        (["--mode", "mean"], "deterministic"),
        (["--samples", "2"], "mode mmse gives one image"),
        (["--weights", "nothing"], "no weights 'nothing'"),
        (["--device", "tpu"], "expected auto, cpu or cuda:N"),
        (["--device", "cuda:99"], "PyTorch sees"),
        (["--tile", "100"], "multiple of 16"),
        (["--tile", "64"], "twice the halo"),
        (["--batch", "0"], "--batch 0"),
        (["--dry-run", "--report"], "--report: not with --dry-run"),
        (["--config", "no.yaml"], "no.yaml"),
        (["--input-dir", "nowhere"], "nowhere"),
        (["--output-dir", "in"], "is an input folder or contains one"),
        (["--output-dir", "in", "--output-shards"], "is an input folder or contains one"),
        (["--input-dir", "in/a.jpg", "--output-dir", "in"], "is an input folder or contains one"),
    ],
)
def test_options_that_cannot_be_end_with_2_and_write_nothing(tmp_path, weights, capfd, options, message):
    with contextlib.chdir(tmp_path):
        fill(Path("in"), {"a.jpg": encode(photograph(16, 16)), "a.png": b"the user's own"})
        assert restore.main(command(Path("in"), Path("out"), "--weights", weights, *options)) == 2
    error = capfd.readouterr().err
    assert error.startswith("restore: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jpg", "a.png", "in"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiles: 3", "no option 'tiles'"),
        ("batch: many", "invalid int value: 'many'"),
        ("mode: best", "invalid choice: 'best'"),
        ("verify: 1", "--verify"),
        ("- a", "lines"),
        ("config: other.yaml", "no option 'config'"),
        ("a: [", "run.yaml"),
    ],
)
def test_configuration_file_with_mistakes(tmp_path, capfd, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert restore.main(["--config", str(tmp_path / "run.yaml")]) == 2
    assert message in capfd.readouterr().err


def test_quiet_prints_only_errors(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(16, 16))})
    run(source, tmp_path / "out", "--weights", weights)
    assert capfd.readouterr() == ("", "")
    fill(source, {"b.jpg": b"text"})
    run(source, tmp_path / "out", "--weights", weights, code=1)
    assert capfd.readouterr() == ("", f"failed: b.jpg: {lines(tmp_path / 'out')['b.jpg']['reason']}\n")


def test_summary_and_progress_tell_how_fast(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(16, 16)), "b.jpg": b"text"})
    assert restore.main(command(source, tmp_path / "out", "--weights", weights)[1:]) == 1
    error = capfd.readouterr().err
    assert "2 inputs: 1 restored, 0 passed through, 1 failed (2 in this run)" in error
    for word in ("2/2", "images/s", "MP/s", "bitstream", "network", "project", "encode", "CPU s", "busy"):
        assert word in error


@pytest.fixture(scope="module")
def sixty(weights, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A folder of images, and what becomes of them."""
    folder = tmp_path_factory.mktemp("sixty")
    source = fill(folder / "in", {f"{n:03}.jpg": encode(photograph(64, 64, n)) for n in range(60)})
    run(source, folder / "out", "--weights", weights)
    return source, outputs(folder / "out")


@pytest.mark.parametrize("workers", ["0", "1", "3"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_cleans_up_and_goes_on(tmp_path, weights, sixty, workers, number):
    source, whole = sixty
    out, options = tmp_path / "out", ("--weights", weights, "--workers", workers)

    def interrupt(child: int) -> None:
        while not (out / MANIFEST).exists() or (out / MANIFEST).stat().st_size < 2000:
            time.sleep(0.001)
        os.kill(child, number)

    assert in_a_child(lambda: restore.main(command(source, out, *options)), interrupt) == 128 + number
    assert 0 < len(lines(out)) < 60
    assert not (out / PARTIAL).exists()
    assert set(images(out)) == {line["outputs"][0] for line in lines(out).values()}
    run(source, out, *options)
    assert outputs(out) == whole


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_amid_a_large_image_ends_soon(tmp_path, weights, large, workers, number):
    """The signal goes to the whole group, workers included, as a terminal and service managers send it."""
    source, out = fill(tmp_path / "in", large), tmp_path / "out"
    interrupted = 0.0

    def work() -> int:
        os.setsid()
        return restore.main(command(source, out, "--weights", weights, "--workers", workers))

    def interrupt(child: int) -> None:
        nonlocal interrupted
        while not (out / MANIFEST).exists() or not (out / MANIFEST).stat().st_size:
            time.sleep(0.01)
        time.sleep(1)
        interrupted = time.perf_counter()
        os.killpg(child, number)

    assert in_a_child(work, interrupt) == 128 + number
    assert time.perf_counter() - interrupted < 30
    assert list(lines(out)) == ["a.jpg"]
    assert set(images(out)) == {"a.png"}
    assert not (out / PARTIAL).exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        restore.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--input-dir", "--weights", "manifest.jsonl", "exit codes", "examples"):
        assert word in shown


def test_outputs_go_to_a_folder_of_the_current_one(tmp_path, weights, monkeypatch, capsys):
    """`--input-dir` alone is enough, and where the outputs are is said."""
    fill(tmp_path / "shards", {"a.jpg": encode(photograph(20, 30))})
    monkeypatch.chdir(tmp_path)
    assert restore.main(["--input-dir", "shards", "--weights", str(weights)]) == 0
    assert lines(tmp_path / "restored")["a.jpg"]["outputs"] == ["a.png"]
    assert str(tmp_path / "restored") in capsys.readouterr().err
