"""Ranks: each restores its share, and together they leave what a run of one leaves, whoever was killed and whatever the
number of ranks afterwards."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jpegs import encode, photograph
from runs import Rank, command, fill, images, lines, outputs, run, tiny_weights
from shards import write_tar

from pipeline import restore
from pipeline.distributed.ranks import choose_share
from pipeline.inputs.listing import list_sources
from pipeline.inputs.rank_share import SINGLE_RANK, Share
from pipeline.inputs.remote import Remote
from pipeline.outputs.history import HISTORY
from pipeline.outputs.manifest import Manifest
from pipeline.outputs.manifest_file import LOCK, MANIFEST, manifest_name
from pipeline.outputs.record import IDENTITY, RunIdentity, SinkError
from pipeline.outputs.store import PARTIAL


def photographs(count: int, first: int = 0) -> dict[str, bytes]:
    return {f"{n:03}.jpg": encode(photograph(24, 24, n), "4:2:0", 30) for n in range(first, first + count)}


def mixed(folder: Path) -> Path:
    """Loose files in two folders, shards, files of the same key in and out of them, and files that are none."""
    fill(folder, photographs(7) | {"003.jpeg": encode(photograph(24, 24, 70)), "text.jpg": b"text"})
    fill(folder / "sub", photographs(4) | {"002.jpe": encode(photograph(24, 24, 71))})
    for number in range(5):
        own = {f"{number}/{name}": data for name, data in photographs(3, 10 * number).items()}
        write_tar(folder / "sub" / f"{number}.tar", own | photographs(2, 2) | {f"{number}/note.json": b"{}"})
    (folder / "sub" / "5.tar").write_bytes((folder / "sub" / "4.tar").read_bytes()[:3000])
    return folder


@pytest.mark.parametrize("options", [(), ("--output-shards",), ("--samples", "2")])
def test_the_union_is_a_run_of_one(tmp_path, options):
    source, noisy = mixed(tmp_path / "in"), "--samples" in options
    options = (*options, "--weights", tiny_weights(tmp_path, noise=noisy), "--workers", "1")
    run(source, tmp_path / "one", *options, code=1)
    out = tmp_path / "out"
    for rank in (2, 0, 1):  # one after another, in any order
        assert restore.main(command(source, out, *options, "--rank", rank, "--world-size", 3)) == 0
    assert images(out, parts=True) == images(tmp_path / "one")
    assert restore.main(["--quiet", "--output-dir", str(out), "--merge"]) == 1
    assert outputs(out) == outputs(tmp_path / "one")
    run(source, out, *options, code=1)
    assert outputs(out) == outputs(tmp_path / "one")


def test_merging_says_which_ranks_are_missing(tmp_path, capfd):
    source = fill(tmp_path / "in", photographs(4))
    options = ("--weights", tiny_weights(tmp_path), "--workers", "1")
    many = "0-of-9, 1-of-9, 2-of-9, 3-of-9, 4-of-9 and more"
    for rank, size, expected in ((2, 3, "0-of-3, 1-of-3"), (0, 3, "1-of-3, 2-of-3"), (8, 9, many)):
        assert restore.main(command(source, tmp_path / "out", *options, "--rank", rank, "--world-size", size)) == 0
        capfd.readouterr()
        assert restore.main(["--quiet", "--output-dir", str(tmp_path / "out"), "--merge"]) == 0
        assert f"these ranks have stored nothing: {expected}. " in capfd.readouterr().err
    run(source, tmp_path / "out", *options)
    assert len(outputs(tmp_path / "out")["manifest.jsonl"].splitlines()) == 4
    for rank in range(3):
        assert restore.main(command(source, tmp_path / "all", *options, "--rank", rank, "--world-size", 3)) == 0
    capfd.readouterr()
    assert restore.main(["--quiet", "--output-dir", str(tmp_path / "all"), "--merge"]) == 0
    assert not capfd.readouterr().err


def test_merging_keeps_the_lines_of_outputs_that_are_elsewhere(tmp_path):
    source, out = fill(tmp_path / "in", photographs(4)), tmp_path / "out"
    options = ("--weights", tiny_weights(tmp_path), "--workers", "1")
    for rank in range(2):
        assert restore.main(command(source, out, *options, "--rank", rank, "--world-size", 2)) == 0
    whole = images(out, parts=True)
    for image in out.glob("*.png"):
        image.rename(tmp_path / image.name)
    assert restore.main(["--quiet", "--output-dir", str(out), "--merge"]) == 0
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 4
    run(source, out, *options)  # restores them again
    assert images(out) == whole


@pytest.mark.parametrize("shards", [False, True])
def test_each_entry_is_one_ranks(tmp_path, shards):
    sources = list_sources(mixed(tmp_path / "in"))
    owned = [[x.name for x in Share(rank, 3).entries(sources, shards) if x.assigned] for rank in range(3)]
    assert sorted(itertools.chain(*owned)) == sorted(x.name for x in sources)
    assert all(owned)
    for mine in owned if shards else []:
        for folder in {str(Path(name).parent) for name in mine if not name.endswith(".tar")}:
            together = {x.name for x in sources if not x.shard and str(Path(x.name).parent) == folder}
            assert together <= {*mine}


def test_two_processes_one_killed_and_the_rest_done_by_three(tmp_path):
    """As torchrun starts them; what the first two have finished is not done again."""
    source, out, weights = tmp_path / "in", tmp_path / "out", tiny_weights(tmp_path)
    for number in range(12):
        write_tar(source / f"{number:02}.tar", photographs(6, 6 * number) | {"text.jpg": b"text"})
    options = ("--weights", weights, "--workers", "1", "--output-shards")
    run(source, tmp_path / "one", *options, code=1)
    two = [Rank(command(source, out, *options)[1:], rank, 2, tmp_path / f"{rank}.log") for rank in range(2)]
    signals = [signal.SIGKILL, signal.SIGTERM]
    end = time.monotonic() + 60
    while any(signals) and time.monotonic() < end:
        for rank, process in enumerate(two):
            if signals[rank] and (part := out / manifest_name(f"{rank}-of-2")).exists() and part.stat().st_size:
                process.send(signals[rank])
                signals[rank] = 0
        time.sleep(0.001)
    ended = [process.end() for process in two]
    assert [code for code, _ in ended] == [-signal.SIGKILL, 128 + signal.SIGTERM]
    assert "rank 1 of 2 (torchrun's RANK and WORLD_SIZE), on cpu" in ended[1][1]
    finished = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*.tar")}
    assert 0 < len(finished) < 12
    for rank in range(3):
        assert restore.main(command(source, out, *options, "--rank", rank, "--world-size", 3)) == 0
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished
    run(source, out, *options, code=1)
    assert outputs(out) == outputs(tmp_path / "one")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished
    names = sorted(path.name for path in out.iterdir() if path.suffix != ".tar")
    assert [name for name in names if not name.startswith(HISTORY)] == [LOCK, MANIFEST, IDENTITY]


def test_a_torn_line_of_a_killed_rank_is_done_again(tmp_path):
    source, out = fill(tmp_path / "in", photographs(6)), tmp_path / "out"
    options = ("--weights", tiny_weights(tmp_path), "--workers", "1")
    run(source, tmp_path / "one", *options)
    for rank in range(2):
        assert restore.main(command(source, out, *options, "--rank", rank, "--world-size", 2)) == 0
    part = out / manifest_name("1-of-2")
    part.write_bytes(part.read_bytes()[:-10])
    (out / PARTIAL / "1-of-2").mkdir(parents=True)
    (out / PARTIAL / "1-of-2" / "17").write_bytes(b"half an image")
    for rank in range(3):
        assert restore.main(command(source, out, *options, "--rank", rank, "--world-size", 3)) == 0
    run(source, out, *options)
    assert outputs(out) == outputs(tmp_path / "one")
    assert not (out / PARTIAL).exists()


def test_ranks_of_another_run_are_refused(tmp_path, capfd):
    source, out, weights = fill(tmp_path / "in", photographs(4)), tmp_path / "out", tiny_weights(tmp_path)
    given = command(source, out, "--weights", weights, "--workers", "1", "--world-size", 2)
    assert restore.main([*given, "--rank", "0"]) == 0
    assert restore.main([*given, "--rank", "1", "--seed", "1"]) == 2
    assert "seed 0 (now 1)" in capfd.readouterr().err
    for options, what in (
        (["--rank", "1", "--overwrite"], "--overwrite: not with 2 ranks"),
        (["--rank", "1", "--merge"], "--merge: not with 2 ranks"),
        (["--rank", "2"], "expected 0 to 1"),
        ([], "give both or neither"),
    ):
        assert restore.main([*given, *options]) == 2
        assert what in capfd.readouterr().err
    assert len((out / manifest_name("0-of-2")).read_bytes().splitlines()) == 2
    assert restore.main(["--output-dir", str(tmp_path / "in"), "--merge"]) == 2
    assert "no manifest to merge" in capfd.readouterr().err


def test_who_may_have_the_folder_together(tmp_path):
    identity = RunIdentity("weights", "mmse")
    with Manifest.open(tmp_path, identity, part="0-of-2") as manifest:
        Manifest.open(tmp_path, identity, part="1-of-2").close()
        for part in ("", "0-of-2", "0-of-3"):
            with pytest.raises(SinkError, match="another run is writing"):
                Manifest.open(tmp_path, identity, part=part)
            manifest.store.put("a.png", b"it can still be used")
    with Manifest.open(tmp_path, identity), pytest.raises(SinkError, match="another run is writing"):
        Manifest.open(tmp_path, identity, part="0-of-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "a.png", MANIFEST, IDENTITY]


def test_ranks_in_a_store(tmp_path):
    source, weights = fill(tmp_path / "in", photographs(5)), tiny_weights(tmp_path)
    run(source, tmp_path / "one", "--weights", weights, "--workers", "1")
    out = Remote(f"memory://ranks-{os.getpid()}")
    given = command(source, Path("-"), "--weights", weights, "--workers", "1", "--output-dir", str(out))
    for rank in range(2):
        assert restore.main([*given, "--rank", str(rank), "--world-size", "2"]) == 0
    found = {name: out.fs.cat_file(f"{out}/{name}") for name in images(tmp_path / "one")}
    assert found == images(tmp_path / "one")
    identity = RunIdentity(**json.loads((tmp_path / "one" / IDENTITY).read_bytes()))
    with Manifest.open(out, identity) as manifest:
        assert manifest.counts == {"restored": 5}
        assert all(manifest.finished(name) for name in lines(tmp_path / "one"))


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}


def test_what_torchrun_and_slurm_say():
    assert choose_share(None, None, {}) == SINGLE_RANK
    share = choose_share(None, None, TORCHRUN | SLURM | {"SLURM_STEP_NUM_TASKS": "4"})
    assert (share.rank, share.world_size, share.part) == (5, 8, "5-of-8")
    assert (share.local_rank, share.local_world_size) == (1, 4)
    share = choose_share(None, None, SLURM | {"SLURM_STEP_NUM_TASKS": "4"})
    assert (share.rank, share.world_size, share.local_rank, share.part) == (3, 4, 1, "3-of-4")
    assert choose_share(None, None, SLURM) == SINGLE_RANK  # a batch script: one process, whatever it was allotted
    assert choose_share(1, 2, TORCHRUN).part == "1-of-2"
    assert choose_share(0, 1, {}).part == ""
    with pytest.raises(ValueError, match="expected a number"):
        choose_share(None, None, {"RANK": "first", "WORLD_SIZE": "2"})
    for name in ("auto", "cuda"):
        assert [share.device(name, gpus) for gpus in (8, 1, 0)] == ["cuda:1", "cuda:0", name]
        assert choose_share(1, 2, {}).device(name, 8) == name  # which of a machine's ranks it is, is not known
    assert [share.device(name, 8) for name in ("cpu", "cuda:3")] == ["cpu", "cuda:3"]


def test_torchrun_itself(tmp_path):
    source, out = mixed(tmp_path / "in"), tmp_path / "out"
    options = ("--weights", tiny_weights(tmp_path), "--device", "cpu", "--workers", "1")
    run(source, tmp_path / "one", *options, code=1)
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.restore"]
    subprocess.run([*starter, *command(source, out, *options)], check=True, timeout=120)
    run(source, out, *options, code=1)
    assert outputs(out) == outputs(tmp_path / "one")
