"""bench/quality.py's tables, the programs beside ours as real processes, and bench/picture.py's grid."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jpegs import photograph
from PIL import Image
from runs import weights
from scenes import tensor_of
from shards import clean_shard

from bench import picture, quality
from bench.rivals import PROGRAMS, Contest, Decoded, Program, RivalError, choose
from kernels import Subsampling
from pipeline.engine.restorer import Restorer
from train.data.photographs import Photographs
from train.grid import GAP
from train.measures import compress, consistency, psnr

__all__ = ["weights"]
MODES = ["plain", "mmse", "noise", "projected", "independent", "mean"]
DECODE = """
from PIL import Image, ImageFilter
Image.open(sys.argv[1]).filter(ImageFilter.GaussianBlur(0.6)).save(sys.argv[2])
"""
"""A decoder that takes an input and an output, as knusperli does."""


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Two clean images, large enough for crops."""
    return clean_shard(tmp_path_factory.mktemp("data"), [(141, 203), (205, 133)])


@pytest.fixture
def compressed():
    return compress("photo", tensor_of(photograph(50, 70, 1))[0], 20, Subsampling.S420)


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Puts a program of that name, in Python, on a PATH where no other is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, code):
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport os, subprocess, sys, time\n{code}")
        path.chmod(0o755)

    return put


def program(name, **changes):
    return replace(next(one for one in PROGRAMS if one.name == name), **changes)


def rows(output, first):
    """The cells of the table's lines of which the second column starts with `first`."""
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line)
    return [row for row in cells if row[1].startswith(first)]


def test_the_table_of_a_sampler(shard, weights, on_path, tmp_path, capsys):
    """A row for each mode and quality, derived columns from their own; every certificate is recounted; the decoder on
    the PATH is measured, and those that are not are named."""
    on_path("knusperli", DECODE)
    arguments = ["--data", str(shard), "--weights", weights[1], "--mmse", weights[0], "--quality", "10", "40"]
    assert quality.main([*arguments, "--samples", "3", "--json", str(tmp_path / "all.json")]) == 0
    output = capsys.readouterr().out
    assert "not on the PATH: jpegqs, jpeg2png\n" in output
    assert "2 images, 4:2:0, 3 samples of each; Fréchet distances over 4 crops of 128x128." in output
    (report,) = json.loads((tmp_path / "all.json").read_text())["samplings"]
    assert [(row["quality"], row["mode"]) for row in report["rows"]] == [(q, mode) for q in (10, 40) for mode in MODES]
    found = {(row["quality"], row["mode"]): row for row in report["rows"]}
    for (q, mode), row in found.items():
        mmse = found[q, "mmse"]
        assert row["to_mmse"] == row["psnr"] - mmse["psnr"]
        assert row["frechet_ratio"] == pytest.approx(row["frechet"] / mmse["frechet"])
        assert row["swd_ratio"] == pytest.approx(row["swd"] / mmse["swd"])
        assert row["hed"] is row["hed_ratio"] is None
        assert (row["std"] is not None) == (row["correlation"] is not None) == (mode == "projected")
        assert row["disputed"] == (None if mode == "plain" else 0)
        assert row["mismatches"] == 0 or mode == "plain"
    (line,) = rows(output, "projected")[:1]
    assert line[2] == f"{found[10, 'projected']['psnr']:.2f}"
    assert line[4] == f"{found[10, 'projected']['to_mmse']:+.2f}"
    assert line[-5:-3] == [f"{found[10, 'projected']['swd']:.1f}", f"{found[10, 'projected']['swd_ratio']:.3f}"]
    decoders = ["ours, mmse", "ours, one sample", "knusperli"]
    assert [(row["quality"], row["decoder"]) for row in report["beside"]] == [
        (q, d) for q in (10, 40) for d in decoders
    ]
    for row in report["beside"]:
        assert row["speed"] > 0
        assert (row["consistency"] == row["mismatches"] == row["disputed"] == 0) == (row["decoder"] != "knusperli")
    for name, mode in (("ours, mmse", "mmse"), ("ours, one sample", "projected")):
        (row,) = (r for r in report["beside"] if (r["quality"], r["decoder"]) == (40, name))
        assert row["psnr"] == pytest.approx(found[40, mode]["psnr"])


def test_texture_is_compared_with_the_originals(tmp_path, weights, capsys):
    """Of a photograph of flat areas with grain; the originals' own texture stands below the table."""
    grainy = np.random.default_rng(0).normal(128, 3, (96, 112, 3)).round().astype(np.uint8)
    Image.fromarray(grainy).save(tmp_path / "grainy.jpg", quality=97, subsampling="4:4:4")
    arguments = ["--data", str(tmp_path / "grainy.jpg"), "--weights", weights[1], "--mmse", weights[0]]
    arguments += ["--quality", "10", "20", "--samples", "1", "--no-frechet", "--programs"]
    assert quality.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    output = capsys.readouterr().out
    (report,) = json.loads((tmp_path / "all.json").read_text())["samplings"]
    for row in report["rows"]:
        originals = [row[f"original_{name}"] for name in ("lattice", "lattice_worst", "flat_deviation")]
        text = ", ".join(f"{figure:.2f}" for figure in originals)
        assert f"quality {row['quality']}: {text} in {row['flat_windows']} windows" in output
        for name in ("lattice", "lattice_worst", "flat_deviation"):
            if row["mode"] == "mmse":
                assert not row[name]
            else:
                assert row[name] > 0
    assert rows(output, "plain")[0][-3] == f"{report['rows'][0]['lattice']:.2f}"
    assert rows(output, "mmse")[0][-3:] == ["-", "-", "0.00"]


def test_the_quick_table_of_a_regression(shard, weights, capsys):
    arguments = ["--data", str(shard), "--weights", weights[0], "--quality", "30", "--limit", "1", "--sampling", "gray"]
    assert quality.main([*arguments, "4:4:4", "--no-frechet", "--programs"]) == 0
    output = capsys.readouterr().out
    assert [line[:2] for line in rows(output, "mmse")] == [["30", "mmse"]] * 2
    assert "1 images, gray." in output
    assert "1 images, 4:4:4." in output
    assert not any(word in output for word in ("STD", "Fréchet", "PATH", "jpegqs"))


def test_a_false_certificate_fails(shard, weights, monkeypatch, capsys):
    exact = Restorer.project

    def lying(*arguments):
        image, mismatches = exact(*arguments)
        return image, mismatches + 1

    monkeypatch.setattr(Restorer, "project", lying)
    arguments = ["--data", str(shard), "--weights", weights[0], "--quality", "30", "--no-frechet", "--programs"]
    assert quality.main(arguments) == 1
    assert "not true: 2 of 4:2:0 quality 30, mmse" in capsys.readouterr().err


def test_a_false_certificate_of_the_engine_shows(shard):
    """Contest recounts what a decoder claims, file by file: errors do not make up for one another."""
    claims = iter((7, -7))

    def decode(compressed):
        wrong = consistency(compressed.decoded, compressed).mismatches
        return Decoded(compressed.decoded, 0.5, wrong + next(claims))

    contest = Contest({"liar": decode})
    pixels = 0
    for place, (key, image) in enumerate(Photographs(shard)):
        pixels += image[0].numel()
        contest.on_image(place, compress(key, image, 50, Subsampling.S420), {})
    (row,) = contest.finish(50)
    assert row.disputed == 2
    assert row.gain == 0
    assert row.speed == pytest.approx(pixels / 1e6)


@pytest.mark.parametrize("sampling", ["4:2:0", "gray"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("jpegqs", ["-q", "6", "I", "O"]), ("jpeg2png", ["-q", "I", "-o", "O"]), ("knusperli", ["I", "O"])],
)
def test_programs_are_given_the_file_and_read_back(on_path, name, options, sampling):
    """By the command lines that they document; jpegqs's output is a JPEG file, the others' are PNG."""
    places = [options.index(letter) + 1 for letter in "IO"]
    suffix = ".jpg" if name == "jpegqs" else ".png"
    on_path(
        name,
        f"given, places = sys.argv[1:], {places}\n"
        f"source, output = (sys.argv[place] for place in places)\n"
        f"expected = {options}\n"
        "assert [{source: 'I', output: 'O'}.get(word, word) for word in given] == expected, given\n"
        f"assert output.endswith({suffix!r}), output\n"
        "from PIL import Image\n"
        "image = Image.open(source)\n"
        "print('working')\n"
        f"image.convert({'L' if suffix == '.jpg' and sampling == 'gray' else 'RGB'!r}).save(output, quality=100)\n",
    )
    made = compress("photo", tensor_of(photograph(50, 70, 1))[0], 20, Subsampling.from_label(sampling))
    decoded = program(name).decode(made)
    assert decoded.claimed is None
    assert decoded.seconds > 0
    assert decoded.image.shape == made.truth.shape
    if suffix == ".png":
        assert np.array_equal(decoded.image, made.decoded)
    else:
        assert psnr(decoded.image, made.decoded) > 30


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('cannot read it'); sys.exit('no tables')", r"knusperli failed on photo with exit code 1.*no tables"),
        ("os.kill(os.getpid(), 9)", r"knusperli failed on photo with exit code -9; it said: nothing"),
        ("print('done')", r"knusperli left no image of photo: .*output\.png.*; it said: done"),
        ("open(sys.argv[2], 'w').write('no PNG')", r"knusperli left no image of photo: cannot identify"),
        ("from PIL import Image; Image.new('RGB', (9, 8)).save(sys.argv[2])", r"wrote 9x8 pixels of photo.* has 70x50"),
    ],
)
def test_what_a_program_does_wrong_is_said(on_path, compressed, code, message):
    on_path("knusperli", code)
    with pytest.raises(RivalError, match=f"(?s){message}"):
        program("knusperli").decode(compressed)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(on_path, compressed, tmp_path, monkeypatch):
    """And leaves nothing in the folder for temporary files."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    note = tmp_path / "child"
    on_path(
        "knusperli",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('waiting', flush=True); child.wait()",
    )
    with pytest.raises(RivalError, match=r"knusperli took more than 3 s on photo.*waiting"):
        program("knusperli", timeout=3).decode(compressed)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert ended(int(note.read_text()))


def ended(process, patience=10.0):
    """Whether a process is gone, or a zombie that waits for init, at last."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_failing_program_ends_the_bench_with_its_words(shard, weights, on_path, capsys):
    on_path("jpegqs", "sys.exit('out of tables')")
    arguments = ["--data", str(shard), "--weights", weights[0], "--quality", "30", "--no-frechet"]
    assert quality.main(arguments) == 2
    error = capsys.readouterr().err
    assert "jpegqs failed on 0 with exit code 1" in error
    assert "out of tables" in error


def test_only_programs_that_are_there_are_chosen(on_path):
    on_path("jpeg2png", "")
    chosen, absent = choose(["knusperli", "jpeg2png"])
    assert [one.name for one in chosen] == ["jpeg2png"]
    assert absent == ["knusperli"]
    with pytest.raises(RivalError, match="best: expected some of jpegqs, jpeg2png, knusperli"):
        choose(["best"])
    with pytest.raises(RivalError, match="gone cannot be started"):
        Program("gone", ("gone", "{input}", "{output}"), ".png").decode(
            compress("photo", tensor_of(photograph(16, 16, 0))[0], 20, Subsampling.S420)
        )


def test_errors_say_what_to_do(shard, weights, tmp_path, capsys):
    for arguments, message in (
        (["--data", tmp_path / "none.tar"], "none.tar"),
        (["--data", shard, "--weights", "nothing"], "those shipped"),
        (["--data", shard, "--quality", "0"], "quality 0: expected 1..100"),
        (["--data", shard, "--limit", "0"], "at least 1"),
        (["--data", shard, "--json", tmp_path / "no" / "a.json"], "no folder"),
        (["--data", shard, "--programs", "best"], "expected some of jpegqs"),
        (["--data", shard, "--hed"], "give one of them"),
    ):
        assert quality.main([*map(str, ["--weights", weights[0], *arguments]), "--no-frechet"]) == 2
        assert message in capsys.readouterr().err


def test_the_picture_of_samples(shard, weights, tmp_path, capsys):
    """Nine cells: input, four samples, mean, deviation, regression, truth. Photographs come in the order asked for."""
    arguments = ["--data", str(shard), "--weights", weights[1], "--mmse", weights[0], "--samples", "4"]
    both, second = tmp_path / "both.png", tmp_path / "second.png"
    assert picture.main([*arguments, "--output", str(both)]) == 0
    assert picture.main([*arguments, "--output", str(second), "--keys", "1", "0"]) == 0
    with Image.open(both) as one, Image.open(second) as other:
        assert one.size == other.size
        assert one.width // 9 > 192
        assert one.height > 2 * 192
        row = (one.height - GAP) // 2
        assert np.array_equal(np.asarray(one)[:row], np.asarray(other)[row : 2 * row])
        assert not np.array_equal(np.asarray(one)[:row], np.asarray(one)[row : 2 * row])
    assert picture.main([*arguments, "--keys", "9"]) == 2
    assert "no photograph 9" in capsys.readouterr().err


def test_the_picture_before_and_after(weights, tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert picture.main(["--weights", weights[0], "--output", str(path), "--scale", "1"]) == 0
    assert Image.open(path).size == (2 * 128 + picture.GAP, 128)
    assert picture.main(["--file", "none.jpg"]) == 2
    assert "none.jpg is no file of" in capsys.readouterr().err
