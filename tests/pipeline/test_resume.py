"""`kill -9` at any moment, and the same command again: the folder ends as that of a run that was left alone, and
nothing that was finished is computed again."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, encode, photograph
from runs import command, fill, in_a_child, lines, outputs, run, tiny_weights
from shards import write_tar

from pipeline import restore
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.store import PARTIAL

Identity = dict[str, tuple[int, int]]


def line_count(output: Path) -> int:
    try:
        return (output / MANIFEST).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def identities(output: Path, names: set[str]) -> Identity:
    """Files that are written anew, even with the same bytes, have another one."""
    found = {name: (output / name).stat() for name in names}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def kill_after(output: Path, wanted: int, delay: float, child: int) -> None:
    """Waits for that many lines and then some seconds; a child that has ended meanwhile is what is left to kill."""
    while line_count(output) < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)


def photographs(count: int) -> dict[str, bytes]:
    kinds = (*SAMPLINGS, "gray")
    files = {f"{n % 3}/{n:03}.jpg": encode(photograph(40, 36, n), kinds[n % 5], 30) for n in range(count)}
    return files | {"0/text.jpg": b"text"}


@pytest.mark.parametrize("shards", [False, True])
def test_failures_that_were_not_the_files_are_retried_when_wished(tmp_path, shards):
    source = fill(tmp_path / "in", {"text.jpg": b"text", "b/whole.jpg": encode(photograph(40, 36, 0), "4:2:0", 30)})
    (source / "late.jpg").symlink_to(tmp_path / "not yet")
    (source / "shard.tar").symlink_to(tmp_path / "no tar yet")
    options = ["--weights", tiny_weights(tmp_path), *["--output-shards"] * shards]
    out = tmp_path / "out"
    first = run(source, out, *options, code=1)
    for late in ("late.jpg", "shard.tar"):
        assert (first[late]["status"], first[late]["transient"]) == ("failed", True)
    assert "transient" not in first["text.jpg"]
    (tmp_path / "not yet").write_bytes(encode(photograph(36, 40, 1), "4:2:2", 30))
    write_tar(tmp_path / "no tar yet", {"0.jpg": encode(photograph(24, 24, 2)), "0.txt": b"zero"})
    again = run(source, out, *options, code=1)
    assert {source: again[source] for source in first} == first
    second = run(source, out, *options, "--retry-failed", code=1)
    assert second["late.jpg"]["status"] == second["shard.tar/0.jpg"]["status"] == "restored"
    assert second == run(source, tmp_path / "afresh", *options, code=1)
    assert outputs(out) == outputs(tmp_path / "afresh")


def test_all_failures_are_retried_when_wished(tmp_path):
    """Also those of files that were too large, had the same key, or were damaged."""
    jpeg, options = encode(photograph(40, 36, 0)), ["--weights", tiny_weights(tmp_path)]
    source = fill(
        tmp_path / "in", {"a.jpeg": jpeg, "a.jpg": jpeg, "cut.jpg": b"cut", "large.jpg": encode(photograph(80, 80, 1))}
    )
    first = run(source, tmp_path / "out", *options, "--max-pixels", "3000", code=1)
    assert [first[name]["status"] for name in sorted(first)] == ["restored", "failed", "failed", "failed"]
    assert "--max-pixels" in first["large.jpg"]["reason"]
    (source / "a.jpeg").rename(source / "b.jpeg")
    (source / "cut.jpg").write_bytes(jpeg)
    assert run(source, tmp_path / "out", *options, "--retry-failed", code=1)["large.jpg"] == first["large.jpg"]
    second = run(source, tmp_path / "out", *options, "--retry-all-failed", code=1)
    wanted = dict.fromkeys(("a.jpeg", "b.jpeg", "cut.jpg", "large.jpg"), "restored")
    assert {name: record["status"] for name, record in second.items()} == {**wanted, "a.jpg": "failed"}
    assert "if that is gone, delete its image" in second["a.jpg"]["reason"]
    (tmp_path / "out" / "a.png").unlink()
    third = run(source, tmp_path / "out", *options, "--retry-all-failed")
    del wanted["a.jpeg"]
    assert {name: record["status"] for name, record in third.items()} == {**wanted, "a.jpg": "restored"}


@pytest.mark.parametrize("sharded", [False, True])
def test_an_input_that_is_added_before_another_of_its_key_takes_nothing_from_it(tmp_path, sharded):
    jpegs, options = [encode(photograph(24, 24, n)) for n in range(2)], ["--weights", tiny_weights(tmp_path)]
    source, names = tmp_path / "in", ("0.tar", "1.tar") if sharded else ("a.jpeg", "a.jpg")

    def add(number):
        if sharded:
            write_tar(source / names[number], {"a.jpg": jpegs[number]})
        else:
            fill(source, {names[number]: jpegs[number]})

    add(1)
    run(source, tmp_path / "out", *options)
    kept = (tmp_path / "out" / "a.png").read_bytes()
    add(0)
    for again in ([], ["--retry-all-failed"]):
        found = run(source, tmp_path / "out", *options, *again, code=1)
        added = found["0.tar/a.jpg" if sharded else "a.jpeg"]
        assert (added["status"], added["outputs"]) == ("failed", [])
        assert "duplicate key: an input of an earlier run" in added["reason"]
        assert (tmp_path / "out" / "a.png").read_bytes() == kept


def test_a_file_that_came_too_late_for_its_shard_is_restored_when_the_shard_is_deleted(tmp_path):
    """As the message says."""
    source = fill(tmp_path / "in", {"b.jpg": encode(photograph(24, 24, 0))})
    out, options = tmp_path / "out", ["--weights", tiny_weights(tmp_path), "--output-shards"]
    run(source, out, *options)
    fill(source, {"a.jpg": encode(photograph(24, 24, 1))})
    late = run(source, out, *options, code=1)["a.jpg"]
    assert "delete the shard, and run again with --retry-failed" in late["reason"]
    (out / "files.tar").unlink()
    found = run(source, out, *options, "--retry-failed")
    assert {name: line["outputs"] for name, line in found.items()} == {
        f"{name}.jpg": [f"files.tar/{name}.png"] for name in "ab"
    }


@pytest.mark.parametrize("options", [[], ["--output-shards"], ["--passed-through", "copy"]])
def test_files_of_the_users_are_not_replaced(tmp_path, options, capsys):
    name = {"--output-shards": "own.tar", "--passed-through": "Own.JPG"}[options[0]] if options else "Own.PNG"
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(24, 24, 0))})
    out = fill(tmp_path / "out", {f"kept/{name}": b"the user's own", "notes.txt": b""})
    options = [*options, "--weights", tiny_weights(tmp_path)]
    for trial in ([], ["--dry-run"]):
        assert restore.main(command(source, out, *options, *trial)) == 2
        assert f"kept/{name} is no run's output" in capsys.readouterr().err
    assert (out / "kept" / name).read_bytes() == b"the user's own"
    run(source, out, *options, "--overwrite")
    (out / "kept" / name).rename(out / name)
    run(source, out, *options)


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError("full"), "full"), (torch.OutOfMemoryError("full"), "on the GPU (--batch and")]
)
def test_lack_of_memory_says_nothing_about_the_file(tmp_path, monkeypatch, error, reason):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 36, 0), "4:2:0", 30)})
    options = ["--weights", tiny_weights(tmp_path), "--workers", "1"]

    def full(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.engine.restorer.read_scans", full)
        failed = run(source, tmp_path / "out", *options, code=1)
    assert failed["a.jpg"]["transient"] is True
    assert reason in failed["a.jpg"]["reason"]
    assert run(source, tmp_path / "out", *options, "--retry-failed")["a.jpg"]["status"] == "restored"


def test_killed_at_ten_moments(tmp_path, seed):
    generator = np.random.default_rng(seed)
    source = fill(tmp_path / "in", photographs(99))
    options = ("--weights", tiny_weights(tmp_path))
    whole, half_done = tmp_path / "whole", 0
    started = time.perf_counter()
    assert in_a_child(lambda: restore.main(command(source, whole, *options))) == 1
    seconds = time.perf_counter() - started
    expected = outputs(whole)
    for moment in range(10):
        out = tmp_path / f"out{moment}"
        delay = generator.uniform(0, seconds / 50)
        killed = in_a_child(
            lambda out=out: restore.main(command(source, out, *options)),
            lambda child, out=out, n=10 * moment, delay=delay: kill_after(out, n, delay, child),
        )
        assert killed in (-signal.SIGKILL, 1)
        before = {} if line_count(out) == 0 else lines(out)
        half_done += 0 < len(before) < 100
        finished = identities(out, {name for line in before.values() for name in line["outputs"]})
        run(source, out, *options, code=1)
        assert outputs(out) == expected
        assert identities(out, set(finished)) == finished
        assert not (out / PARTIAL).exists()
    assert half_done >= 7


@pytest.mark.parametrize("finished_shards", range(4))
def test_killed_while_it_writes_shards(tmp_path, seed, finished_shards):
    source = tmp_path / "in"
    for number in range(4):
        write_tar(source / f"{number}.tar", {**photographs(8), "note.json": b"{}"})
    weights, out = tiny_weights(tmp_path, noise=True), tmp_path / "out"
    options = ("--weights", weights, "--mode", "sample", "--samples", "2", "--output-shards")
    started = time.perf_counter()
    run(source, tmp_path / "whole", *options, code=1)
    delay = np.random.default_rng(seed).uniform(0, (time.perf_counter() - started) / 5)
    killed = in_a_child(
        lambda: restore.main(command(source, out, *options)),
        lambda child: kill_after(out, 9 * finished_shards, delay, child),
    )
    assert killed in (-signal.SIGKILL, 1)
    before = {} if line_count(out) == 0 else lines(out)
    finished = identities(out, {line["shard"] for line in before.values()})
    assert len(finished) >= finished_shards
    run(source, out, *options, code=1)
    assert outputs(out) == outputs(tmp_path / "whole")
    assert identities(out, set(finished)) == finished


def test_an_output_that_was_lost_is_made_again_and_no_other(tmp_path):
    source, out, weights = fill(tmp_path / "in", photographs(9)), tmp_path / "out", tiny_weights(tmp_path)
    run(source, out, "--weights", weights, code=1)
    expected = outputs(out)
    (out / "1/001.png").unlink()
    others = set(expected) - {"1/001.png", MANIFEST}
    before = identities(out, others)
    run(source, out, "--weights", weights, code=1)
    assert outputs(out) == expected
    assert identities(out, others) == before


def test_another_run_is_not_mixed_in(tmp_path, capfd):
    source, out, weights = fill(tmp_path / "in", photographs(3)), tmp_path / "out", tiny_weights(tmp_path)
    run(source, out, "--weights", weights, code=1)
    before = outputs(out)
    for options, what in ((("--seed", "1"), "seed 0 (now 1)"), (("--format", "webp"), "format 'png' (now 'webp')")):
        assert restore.main(command(source, out, "--weights", weights, *options)) == 2
        assert what in capfd.readouterr().err
        assert outputs(out) == before
    noisy = tiny_weights(tmp_path, noise=True)
    assert restore.main(command(source, out, "--weights", noisy, "--mode", "sample")) == 2
    run(source, out, "--weights", weights, "--seed", "1", "--overwrite", code=1)
    assert {line["seed"] for line in lines(out).values()} == {1}


def test_a_run_goes_on_with_another_tile_and_says_so(tmp_path, capsys):
    """It only changes last bits. What is finished stays as it is."""
    source, out = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 36))}), tmp_path / "out"
    options = ("--weights", tiny_weights(tmp_path))
    run(source, out, *options, "--dtype", "float32")
    before = identities(out, {"a.png"})
    assert capsys.readouterr().err == ""
    fill(source, {"b.jpg": encode(photograph(36, 40))})
    found = run(source, out, *options, "--tile", "512", "--dtype", "bfloat16")
    assert {line["status"] for line in found.values()} == {"restored"}
    assert identities(out, {"a.png"}) == before
    said = capsys.readouterr().err
    assert "tile 1536 (now 512)" in said
    assert "dtype 'float32' (now 'bfloat16')" in said
    assert "batch" not in said
    assert "device" not in said
    (identity,) = out.glob("*.run.json")
    identity.write_text(identity.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    run(source, out, *options, "--tile", "512", "--dtype", "bfloat16")
    assert "device 'cuda' (now 'cpu')" in capsys.readouterr().err
