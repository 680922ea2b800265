"""Several inputs in one run: their keys, their places, and what must not be mixed up or overwritten."""

import json
import tarfile
from pathlib import Path

import pytest
from jpegs import encode, photograph
from runs import command, fill, images, lines, mismatches, outputs, run, weights
from shards import write_tar

from pipeline import restore

__all__ = ["weights"]


def restored(inputs: list[Path], out: Path, weights: tuple[str, str], *options: str, code: int = 0) -> dict[str, dict]:
    arguments = [*map(str, inputs), "--output-dir", str(out), "--weights", weights[0], "--quiet", *options]
    assert restore.main(arguments) == code
    return lines(out) if out.exists() else {}


def test_several_inputs(tmp_path, weights):
    data = {name: encode(photograph(30, 40, number)) for number, name in enumerate("abcd")}
    fill(tmp_path / "photos", {"a.jpg": data["a"], "x/b.jpg": data["b"]})
    fill(tmp_path / "more", {"a.jpg": data["c"]})
    write_tar(tmp_path / "s.tar", {"d.jpg": data["d"]})
    fill(tmp_path, {"one.jpg": data["d"]})
    arguments = [str(tmp_path / name) for name in ("photos", "more", "s.tar", "one.jpg")]
    options = ["--quiet", "--output-dir", str(tmp_path / "out"), "--weights", weights[0]]
    assert restore.main([*arguments, *options]) == 0
    found = lines(tmp_path / "out")
    assert set(found) == {"photos/a.jpg", "photos/x/b.jpg", "more/a.jpg", "s.tar/d.jpg", "one.jpg"}
    assert found["photos/a.jpg"]["outputs"] == ["photos/a.png"]
    for source, file in (("photos/a.jpg", "a"), ("more/a.jpg", "c"), ("s.tar/d.jpg", "d")):
        (output,) = found[source]["outputs"]
        assert mismatches(data[file], (tmp_path / "out" / output).read_bytes()) == 0
    first = outputs(tmp_path / "out")
    assert restore.main([arguments[0], "--input-dir", *arguments[1:], *options]) == 0  # the same, and nothing to do
    assert outputs(tmp_path / "out") == first


def test_inputs_of_one_name_are_refused(tmp_path, weights, capfd):
    for folder in ("x/photos", "y/photos"):
        fill(tmp_path / folder, {"a.jpg": encode(photograph(20, 20))})
    arguments = [str(tmp_path / name / "photos") for name in "xy"]
    assert restore.main([*arguments, "--output-dir", str(tmp_path / "out"), "--weights", weights[0]]) == 2
    assert "two inputs have the same name" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_single_files_of_one_name_are_told_apart_by_their_own_names(tmp_path, weights, capfd):
    """Not by those of the files that they link to."""
    fill(tmp_path, {"foo.jpg": encode(photograph(20, 20, 1)), "bar.jpg": encode(photograph(20, 20, 2))})
    for folder, name, target in (("x", "1.jpg", "foo.jpg"), ("y", "1.jpg", "bar.jpg"), ("y", "2.jpg", "foo.jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).symlink_to(tmp_path / target)
    restored([tmp_path / "x/1.jpg", tmp_path / "y/1.jpg"], tmp_path / "out", weights, code=2)
    assert "two inputs have the same name" in capfd.readouterr().err
    assert set(restored([tmp_path / "x/1.jpg", tmp_path / "y/2.jpg"], tmp_path / "out", weights)) == {"1.jpg", "2.jpg"}


@pytest.mark.parametrize("options", [(), ("--output-shards",), ("--passed-through", "copy")])
def test_an_output_folder_that_contains_an_input_is_refused(tmp_path, weights, capfd, options):
    write_tar(tmp_path / "d/one/s.tar", {"a.jpg": encode(photograph(20, 20))})
    fill(tmp_path / "d", {"two/c.jpg": encode(photograph(20, 20)), "two/two/c.jpg": b"another"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for inputs in (["one", "two"], ["two"]):
        arguments = [str(tmp_path / "d" / name) for name in inputs]
        assert restore.main([*arguments, "--output-dir", str(tmp_path / "d"), "--weights", weights[0], *options]) == 2
        assert "is an input folder or contains one" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_single_files_become_one_shard_whatever_lies_between_them(tmp_path, weights):
    data = [encode(photograph(20, 30, number)) for number in range(3)]
    fill(tmp_path, {"x.jpg": data[0], "y.jpg": data[1], "files.tar": b"an unrelated file"})
    write_tar(tmp_path / "in" / "s.tar", {"z.jpg": data[2]})
    inputs = [tmp_path / "x.jpg", tmp_path / "in" / "s.tar", tmp_path / "y.jpg"]
    found = restored(inputs, tmp_path / "out", weights, "--output-shards")
    assert {name: line["outputs"] for name, line in found.items()} == {
        "x.jpg": ["files.tar/x.png"],
        "y.jpg": ["files.tar/y.png"],
        "s.tar/z.jpg": ["s.tar/z.png"],
    }
    with tarfile.open(tmp_path / "out" / "files.tar") as shard:
        assert shard.getnames() == ["x.png", "y.png"]


def test_a_file_becomes_the_same_image_with_and_without_other_inputs(tmp_path, weights):
    fill(tmp_path, {"p/x/a.jpg": encode(photograph(40, 50), quality=10), "q/b.jpg": encode(photograph(40, 50))})
    options = ("--weights", weights[1], "--no-provenance", "--exclude", "x/none*")
    assert restore.main(command(tmp_path / "p", tmp_path / "alone", *options)) == 0
    both = command(tmp_path / "p", tmp_path / "both", *options)
    assert restore.main([str(tmp_path / "q"), *both]) == 0
    assert images(tmp_path / "both")["p/x/a.png"] == images(tmp_path / "alone")["x/a.png"]


def test_patterns_are_compared_with_the_path_below_each_input(tmp_path, weights):
    file = encode(photograph(20, 20))
    fill(tmp_path, {"p/thumbs/a.jpg": file, "p/b.jpg": file, "q/thumbs/c.jpg": file})
    for inputs in (["p"], ["p", "q"]):
        out = tmp_path / ("out-" + "-".join(inputs))
        found = restored([tmp_path / name for name in inputs], out, weights, "--exclude", "thumbs/*")
        passed = {name.rpartition("/")[2] for name, line in found.items() if line["status"] == "passed_through"}
        assert passed == ({"a.jpg"} if inputs == ["p"] else {"a.jpg", "c.jpg"})


def test_an_excluded_file_that_is_skipped_takes_no_key(tmp_path, weights):
    for number in (1, 2):
        write_tar(tmp_path / "in" / f"{number}.tar", {"a.jpg": encode(photograph(20, 20, number))})
    options = ("--weights", weights[0], "--exclude", "1.tar/*", "--passed-through")
    found = run(tmp_path / "in", tmp_path / "skip", *options, "skip")
    assert [line["status"] for line in found.values()] == ["passed_through", "restored"]
    found = run(tmp_path / "in", tmp_path / "copy", *options, "copy", code=1)
    assert "duplicate key" in found["2.tar/a.jpg"]["reason"]


def test_an_excluded_file_that_cannot_be_read_is_no_failure(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(20, 20))})
    (source / "b.jpg").mkdir()
    (source / "c.jpg").symlink_to(source / "c.jpg")
    found = run(source, tmp_path / "out", "--weights", weights[0], "--exclude", "c.*", "--passed-through", "skip")
    assert {name: line["status"] for name, line in found.items()} == {"a.jpg": "restored", "c.jpg": "passed_through"}


@pytest.mark.parametrize("how", ["decode", "skip"])
def test_a_damaged_tar_is_a_failure_whatever_the_patterns(tmp_path, weights, how):
    whole = write_tar(
        tmp_path / "whole.tar", {"a.jpg": encode(photograph(20, 20)), "b.jpg": encode(photograph(20, 20))}
    )
    fill(tmp_path / "in", {"cut.tar": whole.read_bytes()[:1800]})
    options = ("--include", "*.jpg", "--passed-through", how)
    found = restored([tmp_path / "in"], tmp_path / "out", weights, *options, code=1)
    assert found["cut.tar"]["status"] == "failed"
    assert "damaged or cut off" in found["cut.tar"]["reason"]


def test_inputs_of_the_command_line_replace_those_of_the_configuration(tmp_path, weights):
    fill(tmp_path, {"x/a.jpg": encode(photograph(20, 20)), "y/b.jpg": encode(photograph(20, 20))})
    settings = {
        "input-dir": str(tmp_path / "x"),
        "output-dir": str(tmp_path / "out"),
        "weights": weights[0],
        "quiet": True,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    assert restore.main([str(tmp_path / "y"), "--config", str(tmp_path / "run.yaml")]) == 0
    assert set(lines(tmp_path / "out")) == {"b.jpg"}
