"""The certificate without the run, and the console script."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import bag, command, fill, lines, mismatches, weights
from shards import write_tar

from pipeline import console, restore, verify
from pipeline.engine.verification import verify_certificates
from pipeline.outputs.manifest_file import MANIFEST

__all__ = ["weights"]


def test_every_output_is_proved(tmp_path, weights, capsys):
    source = fill(tmp_path / "in", bag())
    for format in ("png", "webp"):
        out = tmp_path / format
        assert restore.main(command(source, out, "--weights", weights[0], "--format", format)) == 0
        pairs = [(out / line["outputs"][0], source / name, line) for name, line in lines(out).items()]
        proved = [pair for pair in pairs if pair[2]["mismatches"] == 0]
        assert len(proved) > 10
        assert verify.main([str(path) for pair in proved for path in pair[:2]]) == 0
        said = capsys.readouterr().out.splitlines()
        assert len(said) == len(proved)
        for line, (output, original, record) in zip(said, proved, strict=True):
            wanted = f"{output}: compresses to {original}: 0 of {record['coefficients']} coefficients differ"
            assert line == wanted


def test_what_differs_is_counted(tmp_path, capsys):
    data = encode(photograph(60, 70), quality=50)
    fill(tmp_path, {"a.jpg": data})
    plain = np.asarray(Image.open(io.BytesIO(data))).copy()
    plain[20:30, 20:30] = 0
    Image.fromarray(plain).save(tmp_path / "a.png")
    assert verify.main([str(tmp_path / "a.png"), str(tmp_path / "a.jpg"), "--quiet"]) == 1
    found = mismatches(data, (tmp_path / "a.png").read_bytes())
    assert found > 0
    assert f"does not compress to {tmp_path / 'a.jpg'}: {found} of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("restored", "original", "message"),
    [
        ("missing.png", "a.jpg", "missing.png: cannot be read: No such file"),
        ("small.png", "a.jpg", "the image has 20x10 pixels, the JPEG file 70x60"),
        ("text.png", "a.jpg", "text.png: not a PNG, WebP, JPEG XL or npy file"),
        ("cut.png", "a.jpg", "cut.png: "),
        ("a.png", "text.png", "text.png: "),
        ("a.png", "missing.jpg", "missing.jpg: cannot be read"),
        ("sixteen.png", "a.jpg", "16 bits per channel"),
    ],
)
def test_what_cannot_be_verified_ends_with_2(tmp_path, capsys, restored, original, message):
    data = encode(photograph(60, 70))
    fill(tmp_path, {"a.jpg": data, "text.png": b"text"})
    Image.open(io.BytesIO(data)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    Image.fromarray(photograph(10, 20)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((60, 70), np.uint16)).save(tmp_path / "sixteen.png")
    assert verify.main([str(tmp_path / restored), str(tmp_path / original)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("verify: ")
    assert message in error


def test_palettes_and_opaque_alpha_are_no_difference_and_transparency_is_said(tmp_path, capsys):
    flat = np.zeros((24, 24, 3), np.uint8) + np.arange(24, dtype=np.uint8)[:, None, None] // 8 * 80
    fill(tmp_path, {"a.jpg": encode(flat, "4:4:4", 80)})
    image = Image.open(tmp_path / "a.jpg").convert("RGB")
    image.save(tmp_path / "rgb.png")
    expected = verify.main([str(tmp_path / "rgb.png"), str(tmp_path / "a.jpg")])
    image.quantize(256).save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "opaque.png")
    for name in ("palette", "opaque"):
        assert np.array_equal(Image.open(tmp_path / f"{name}.png").convert("RGB"), image)
        assert verify.main([str(tmp_path / f"{name}.png"), str(tmp_path / "a.jpg")]) == expected
    image.putalpha(100)
    image.save(tmp_path / "clear.png")
    np.save(tmp_path / "wide.npy", np.zeros((24, 24), np.float32))
    for name, message in (("clear.png", "transparent pixels"), ("wide.npy", "not an 8-bit gray or RGB image: float32")):
        assert verify.main([str(tmp_path / name), str(tmp_path / "a.jpg")]) == 2
        assert message in capsys.readouterr().err


def test_larger_files_are_verified_when_wished(tmp_path, capsys):
    fill(tmp_path, {"a.jpg": encode(photograph(60, 70))})
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    pair = [str(tmp_path / "a.png"), str(tmp_path / "a.jpg")]
    assert verify.main([*pair, "--max-pixels", "4199"]) == 2
    assert "limit of 4199 (--max-pixels)" in capsys.readouterr().err
    assert verify.main([*pair, "--max-pixels", "4200"]) < 2


def test_names_that_cannot_be_printed_are_escaped(tmp_path):
    """Also where Python's output is strict."""
    image = photograph(20, 30)
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")
    Path(f"{name}.jpg").write_bytes(encode(image))
    Image.open(f"{name}.jpg").save(f"{name}.png")
    arguments = [sys.executable, "-m", "pipeline.verify", f"{name}.png", f"{name}.jpg"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=strict)
    assert f"{tmp_path}/\\udce9.png: " in done.stdout
    assert (done.returncode, done.stderr) == (1, "")  # a plain decode, some coefficients of which differ


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("options", [(), ("--output-shards", "--format", "webp"), ("--samples", "2")])
def test_all_certificates_of_a_run(tmp_path, weights, capsys, options, workers):
    """Of loose files and of tars, whose members of one name have numbers; what has none does not count."""
    files = bag()
    source = fill(tmp_path / "in", {f"loose/{name}": data for name, data in files.items()} | {"bad.jpg": b"text"})
    write_tar(source / "s.tar", [*files.items(), ("s.json", b"{}"), *list(files.items())[:1]])
    out = tmp_path / "out"
    code = restore.main(command(source, out, "--weights", weights[1], *options))
    assert code == 1
    capsys.readouterr()
    found = [line for line in lines(out).values() if line["status"] == "restored"]
    assert verify.main(["--output-dir", str(out), "--workers", workers]) == 0
    images = sum(len(line["outputs"]) for line in found)
    total = sum(len(line["outputs"]) * line["coefficients"] for line in found)
    wrong = sum(line["mismatches"] for line in found)
    assert capsys.readouterr().out == f"{images} images verified: {wrong} of {total} coefficients differ\n"
    source.rename(tmp_path / "moved")
    assert verify.main(["--output-dir", str(out), "--quiet", "--workers", workers]) == 2
    assert capsys.readouterr().err.count("the input cannot be read") == len(found)
    assert verify.main(["--output-dir", str(out), "--input-dir", str(tmp_path / "moved"), "--quiet"]) == 0


def test_false_certificates_of_a_run(tmp_path, weights, capsys):
    source = fill(tmp_path / "in", {f"{n}.jpg": encode(photograph(40, 50, n), quality=50) for n in range(4)})
    out = tmp_path / "out"
    assert restore.main(command(source, out, "--weights", weights[0])) == 0
    black = np.zeros((40, 50, 3), np.uint8)
    Image.fromarray(black).save(out / "1.png")
    capsys.readouterr()
    assert verify.main(["--output-dir", str(out)]) == 1
    said = capsys.readouterr()
    count = mismatches((source / "1.jpg").read_bytes(), (out / "1.png").read_bytes())
    assert f"1.jpg: {count} coefficients differ, the manifest states 0" in said.out
    assert "4 images verified" in said.out
    (out / "2.png").unlink()
    (out / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert verify.main(["--output-dir", str(out)]) == 2
    said = capsys.readouterr()
    assert "verify: 2.jpg: 2.png cannot be read" in said.err
    assert "verify: 3.jpg: 3.png: " in said.err
    assert "2 images verified" in said.out


@pytest.mark.parametrize("names", [["link.tar"], ["link.jpg"], ["link", "link.tar", "link.jpg"], ["link/.."], ["link"]])
def test_inputs_that_are_links_are_found_again(tmp_path, weights, monkeypatch, capsys, names):
    """Their names are in the manifest, not those of what they lead to."""
    files = {f"{n}.jpg": encode(photograph(40, 50, n), quality=50) for n in range(2)}
    there = fill(tmp_path / "there" / "folder", files)
    write_tar(tmp_path / "there" / "shard.tar", {"3.jpg": files["0.jpg"]})
    (tmp_path / "here").mkdir()
    for name, target in (("link", there), ("link.tar", there.parent / "shard.tar"), ("link.jpg", there / "0.jpg")):
        (tmp_path / "here" / name).symlink_to(target)
    monkeypatch.chdir(tmp_path / "here")
    restored = ["--output-dir", str(tmp_path / "out")]
    assert restore.main(["--quiet", *names, "--weights", weights[0], *restored]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert verify.main(restored) == 0
    assert re.match(r"[1-4] images verified: 0 of \d+ ", capsys.readouterr().out)


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_happens_to_one_image_the_others_are_verified(tmp_path, weights, monkeypatch, workers):
    """The library that decodes it may raise anything, or end the process."""
    files = {f"{n}.jpg": encode(photograph(40, 50, n), quality=50) for n in range(5)}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    assert restore.main(command(source, out, "--weights", weights[0])) == 0
    fatal = (out / "3.png").read_bytes()

    def count(image: bytes, bitstream: object) -> int:
        if image == fatal and workers > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if image == fatal:
            raise ZeroDivisionError("no such image")
        return 0

    monkeypatch.setattr("pipeline.outputs.certificates.count_mismatches", count)
    found = list(verify_certificates(out, [source], 1 << 20, workers))
    assert [verdict.record.source for verdict in found] == sorted(files)
    problems = {verdict.record.source: verdict.problem for verdict in found if not verdict.is_true}
    assert problems.keys() == {"3.jpg"}
    assert ("ended with exit code -9" if workers > 1 else "3.png: no such image") in problems["3.jpg"]


def test_a_lost_member_of_an_output_shard_costs_only_its_own_certificate(tmp_path, weights, capsys):
    files = {f"{n}.jpg": encode(photograph(40, 50, n), quality=50) for n in range(4)}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    assert restore.main(command(source, out, "--weights", weights[0], "--output-shards")) == 0
    with tarfile.open(out / "files.tar") as tar:
        kept = {name: tar.extractfile(name).read() for name in tar.getnames() if name != "1.png"}
    assert len(kept) == 3
    write_tar(out / "files.tar", kept)
    capsys.readouterr()
    assert verify.main(["--output-dir", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err.count("cannot be read") == 1
    assert "verify: 1.jpg: files.tar/1.png cannot be read" in said.err
    assert "3 images verified" in said.out


def test_no_certificates_are_no_proof(tmp_path, weights, capsys):
    source, out = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 50))}), tmp_path / "out"
    assert restore.main(command(source, out, "--weights", weights[0])) == 0
    (out / MANIFEST).unlink()
    assert verify.main(["--output-dir", str(out)]) == 2
    assert "no line with a certificate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give pairs"),
        (["a.png", "a.jpg", "--output-dir", "out"], "give pairs"),
        (["--output-dir", "sftp2://x/y"], "sftp2"),
        (["--output-dir", "out", "--workers", "-1"], "--workers -1: expected 1 or more"),
        (["--output-dir", "nowhere"], r"nowhere: has no manifest\.run\.json"),
    ],
)
def test_a_run_that_cannot_be_verified(capsys, arguments, message):
    try:
        code = verify.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_image_without_an_original(capsys):
    with pytest.raises(SystemExit) as ended:
        verify.main(["a.png", "a.jpg", "b.png"])
    assert ended.value.code == 2
    assert "b.png has no original" in capsys.readouterr().err


def test_the_console_script_runs_every_command(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(20, 30))})
    options = [str(source), "--output-dir", str(tmp_path / "out"), "--weights", weights[0], "--quiet"]
    assert console.main(["restore", *options]) == 0
    assert console.main(["verify", str(tmp_path / "out" / "a.png"), str(source / "a.jpg")]) == 0
    capfd.readouterr()
    for name in console.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            console.main([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: jpeg-posterior {name}" in capfd.readouterr().out
    assert console.main(["repair"]) == 2
    assert "no command 'repair'" in capfd.readouterr().err
    assert console.main([]) == 0
    assert console.main(["--version"]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("jpeg-posterior ")
    assert {entry.value for entry in entry_points(group="console_scripts", name="jpeg-posterior")} <= {
        "pipeline.console:script"
    }


def test_the_console_script_ends_with_the_commands_code(tmp_path):
    run = [sys.executable, "-m", "pipeline.console", "restore", str(tmp_path / "nowhere")]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
