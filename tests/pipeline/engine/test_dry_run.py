"""A dry run says what a run does, and changes nothing."""

import re
from pathlib import Path

import pytest
from jpegs import edit, encode, photograph
from runs import command, fill, lines, run, weights
from shards import write_tar

from pipeline import restore
from pipeline.engine.dry_run import RESERVOIR_FILES, Reservoir
from pipeline.inputs.source import Item

__all__ = ["weights"]


def mixed(folder: Path) -> Path:
    """Eight to restore, three that filters leave out, a broken one, one of 12 bits, and one of a key that is taken."""
    small = {f"{n}.jpg": encode(photograph(40, 50, n), "4:2:0", 20 + n) for n in range(5)}
    twelve_bits = edit(small["0.jpg"], 0xC0, lambda payload: payload.__setitem__(0, 12))
    fine = {f"{n}.jpeg": encode(photograph(40, 50, n), "4:4:4", 86 + n) for n in range(5, 8)}
    fill(folder, {**small, "broken.jpg": b"text", "twelve-bits.jpg": twelve_bits})
    write_tar(folder / "s.tar", {**fine, "8.jpg": encode(photograph(40, 50), "gray", 99), "0.jpg": small["0.jpg"]})
    return folder


def said(capfd, source: Path, out: Path, *options: str) -> str:
    capfd.readouterr()
    assert restore.main(command(source, out, "--dry-run", *options)) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("workers", ["1", "2"])
def test_counts_are_those_of_the_run(tmp_path, weights, capfd, workers):
    source, out = mixed(tmp_path / "in"), tmp_path / "out"
    options = ("--weights", weights[0], "--max-quality", "98", "--min-quality", "21", "--workers", workers)
    text = said(capfd, source, out, *options)
    assert not out.exists()
    found = run(source, out, *options, code=1)
    fates = [line["status"] for line in found.values()]
    number = [int(re.search(rf"(\d+) {what}", text)[1]) for what in ("inputs", "to restore", "to pass", "that will")]
    assert number == [len(fates), *(fates.count(x) for x in ("restored", "passed_through", "failed"))]
    assert f"{7 * 40 * 50 / 1e6:.1f} megapixels" in text
    for line in ("4 of quality 20 to 29", "3 of quality 90 to 100", "4 4:2:0", "3 4:4:4", "1 quality … is above"):
        assert line in text
    duration = r"(about \d\d:\d\d|less than a second) on cpu with \d workers? and [\d.]+ MB of outputs"
    assert re.search(rf"{duration}, estimated from 9 of the files", text)


def test_what_is_finished_is_not_counted_again(tmp_path, weights, capfd):
    source, out = fill(tmp_path / "in", {f"{n}.jpg": encode(photograph(30, 40, n)) for n in range(5)}), tmp_path / "out"
    run(source, out, "--weights", weights[0], "--limit", "3")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    text = said(capfd, source, out, "--weights", weights[0])
    assert "5 inputs, nothing written" in text
    assert "3 finished by an earlier run" in text
    assert "2 to restore" in text
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "5 to restore" in said(capfd, source, out, "--weights", weights[0], "--overwrite")
    (out / "1.png").unlink()
    assert "2 finished by an earlier run" in said(capfd, source, out, "--weights", weights[0])
    fill(source, {"0.jpeg": b""})
    text = said(capfd, source, out, "--weights", weights[0])
    assert "1 that will fail" in text
    assert "duplicate key" in text
    (source / "0.jpeg").unlink()
    run(source, out, "--weights", weights[0])
    text = said(capfd, source, out, "--weights", weights[0])
    assert "0 to restore" in text
    assert "about" not in text
    assert len(lines(out)) == 5


def test_a_trial_of_the_first_few(tmp_path, weights, capfd):
    source = mixed(tmp_path / "in")
    assert "2 inputs, nothing written" in said(capfd, source, tmp_path / "out", "--weights", weights[0], "--limit", "2")


def test_a_sample_is_a_fair_choice():
    """Each of many files is as likely to be in it; over 200 samples of half of the files, each is in about half."""
    counts = [0] * (2 * RESERVOIR_FILES)
    for seed in range(200):
        sample = Reservoir()
        sample.random_state.seed(seed)
        for number in range(2 * RESERVOIR_FILES):
            sample.offer(Item(str(number), "", None))
        assert len({item.key for item in sample.files}) == RESERVOIR_FILES
        for item in sample.files:
            counts[int(item.key)] += 1
    assert min(counts) > 60
    assert max(counts) < 140
    assert abs(sum(counts[:RESERVOIR_FILES]) / sum(counts) - 0.5) < 0.05
