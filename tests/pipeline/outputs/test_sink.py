"""Outputs appear whole or not at all, whatever happens: bad names, a full disk, kill -9 at any moment."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import small_disk
from shards import write_tar

from pipeline.inputs.listing import Root, Sources, list_sources
from pipeline.inputs.remote import Address
from pipeline.inputs.source import Item, SideMember, read
from pipeline.outputs.manifest import Manifest
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.record import Record, RunIdentity, SinkError
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import FolderSink, OutputNames, Sink
from pipeline.outputs.store import PARTIAL, LocalStore, OutputNameError

RUN = RunIdentity(weights="abc", mode="mmse")
FORK = multiprocessing.get_context("fork")


def restored(key: str, shard: str | None = None) -> tuple[Item, Record]:
    source = f"{shard}/{key}.jpg" if shard else f"{key}.jpg"
    return Item(key, source, b"", shard), Record(key, source, "restored")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_bytes().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder; the manifest's lines in sorted order."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found[MANIFEST] = b"\n".join(sorted(found[MANIFEST].splitlines()))
    return found


def inputs(folder: Address) -> Sources:
    return Sources((Root(folder, files=0, shards=0),))


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def test_names_of_outputs():
    def names(key: str, count: int, names: OutputNames, status: str = "restored", source: str = "") -> tuple[str, ...]:
        return names.of(Item(key, source or f"{key}.jpg", None), Record(key, source, status), count)

    assert names("a/b.c", 1, OutputNames()) == ("a/b.c.png",)
    assert names("a", 3, OutputNames("webp", 3)) == ("a.s0.webp", "a.s1.webp", "a.s2.webp")
    assert names("a", 1, OutputNames(samples=3)) == ("a.s0.png",)
    assert names("a", 0, OutputNames()) == ()
    assert names("a", 1, OutputNames("png16")) == ("a.png",)
    for copy, source in ((".JPG", "s.tar/a.JPG"), (".jpeg", "s.tar/a.jpeg#12")):
        assert names("a", 1, OutputNames(copies=True), "passed_through", source) == (f"a{copy}",)
        assert names("a", 1, OutputNames(samples=2, copies=True), "passed_through", source) == (f"a.s0{copy}",)
        assert names("a", 1, OutputNames(copies=True), "restored", source) == ("a.png",)
    for key in ("../a", "/a", "a/../../b", "a\0"):
        with pytest.raises(OutputNameError):
            names(key, 1, OutputNames())


def test_files_then_lines(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, FolderSink(manifest) as sink:
        assert sink.write(*restored("a/b/c.d"), [b"image"]).outputs == ("a/b/c.d.png",)
        item, _ = restored("bad")
        failed = Record("bad", "bad.jpg", "failed", "not a JPEG")
        assert sink.write(item, failed, []) == failed
    assert (tmp_path / "a/b/c.d.png").read_bytes() == b"image"
    assert [(line["key"], line["status"], line["outputs"]) for line in lines(tmp_path)] == [
        ("a/b/c.d", "restored", ["a/b/c.d.png"]),
        ("bad", "failed", []),
    ]
    with Manifest.open(tmp_path, RUN) as manifest, FolderSink(manifest) as sink:
        assert sink.finished("a/b/c.d.jpg")
        assert sink.finished("bad.jpg")
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("../out", "leads out of its folder"),
        ("/tmp/abs", "absolute path"),
        ("x" * 252, "File name too long"),
        ("y/" * 2100, "File name too long"),
        ("taken.png/b", "Not a directory|File exists"),
        ("folder", "Is a directory"),
        (PARTIAL + "/a", "unfinished outputs"),
    ],
)
def test_name_that_cannot_be_fails_alone(tmp_path, key, reason):
    out = tmp_path / "out"
    with Manifest.open(out, RUN) as manifest, FolderSink(manifest) as sink:
        sink.write(*restored("taken"), [b"1"])
        sink.write(*restored("folder.png/b"), [b"2"])
        record = sink.write(*restored(key), [b"3"])
        sink.write(*restored("x" * 251), [b"4"])
    assert (record.status, record.outputs) == ("failed", ())
    assert any(part in record.reason for part in reason.split("|"))
    assert [line["status"] for line in lines(out)] == ["restored", "restored", "failed", "restored"]
    assert sorted(data for data in tree(out).values() if len(data) == 1) == [b"1", b"2", b"4"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_samples_are_placed_all_or_none(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, FolderSink(manifest, OutputNames(samples=3)) as sink:
        (tmp_path / "b.s2.png").mkdir()
        sink.write(*restored("a"), [b"0", b"1", b"2"])
        assert sink.write(*restored("b"), [b"0", b"1", b"2"]).status == "failed"
    assert sorted(path.name for path in tmp_path.glob("*.png") if path.is_file()) == [f"a.s{k}.png" for k in range(3)]


def test_folder_sink_takes_many_threads(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, FolderSink(manifest) as sink:

        def work(first: int) -> None:
            for number in range(first, 200, 4):
                sink.write(*restored(f"{number % 7}/{number}"), [str(number).encode()])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path)) == 200
    for number in range(200):
        assert (tmp_path / f"{number % 7}/{number}.png").read_bytes() == str(number).encode()


def test_shards_mirror_their_input(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
        sink.write(*restored("top"), [b"loose"])
        sink.copy_member(SideMember("a.json", "x/s.tar/a.json", b"{}", "x/s.tar"))
        sink.write(*restored("a", "x/s.tar"), [b"A"])
        sink.write(Item("b", "x/s.tar/b.jpg", b"", "x/s.tar"), Record("b", "x/s.tar/b.jpg", "failed", "no"), [])
        sink.write(*restored("é/" + "long" * 60, "x/s.tar"), [b"C"])
        assert not (tmp_path / "x").exists()
        assert {line["source"] for line in lines(tmp_path)} <= {"top.jpg"}
        sink.write(*restored("a", "x/t.tar.gz"), [b"D"])
        sink.write(*restored("x/y/loose"), [b"E"])
    assert members(tmp_path / "x/s.tar") == [("a.json", b"{}"), ("a.png", b"A"), ("é/" + "long" * 60 + ".png", b"C")]
    assert (tmp_path / "x/t.tar.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert members(tmp_path / "x/t.tar.gz") == [("a.png", b"D")]
    assert members(tmp_path / "files.tar") == [("top.png", b"loose")]
    assert members(tmp_path / "x/y/files.tar") == [("x/y/loose.png", b"E")]
    assert [(line["source"], line["shard"], line["shard_lines"]) for line in lines(tmp_path)][:4] == [
        ("top.jpg", "files.tar", 1),
        ("x/s.tar/a.jpg", "x/s.tar", None),
        ("x/s.tar/b.jpg", "x/s.tar", None),
        (f"x/s.tar/é/{'long' * 60}.jpg", "x/s.tar", 3),
    ]
    with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
        assert [sink.shard_finished(name) for name in ("x/s.tar", "x/t.tar.gz", "x/u.tar")] == [True, True, False]
        assert sink.finished("top.jpg")


def test_two_members_of_one_name_are_reported(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
        sink.copy_member(SideMember("a.png", "s.tar/a.png", b"side", "s.tar"))
        assert sink.write(*restored("a", "s.tar"), [b"A"]).status == "failed"
        sink.write(*restored("b", "s.tar"), [b"B"])
        sink.copy_member(SideMember("b.png", "s.tar/b.png", b"side", "s.tar"))
    assert members(tmp_path / "s.tar") == [("a.png", b"side"), ("b.png", b"B")]
    assert [(line["source"], line["status"]) for line in lines(tmp_path)] == [
        ("s.tar/a.jpg", "failed"),
        ("s.tar/b.jpg", "restored"),
        ("s.tar/b.png", "failed"),
    ]


def test_shard_whose_name_cannot_be_fails_alone(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
        (tmp_path / "s.tar").mkdir()
        for shard in ("s.tar", "t.tar"):
            for key in ("a", "b"):
                sink.write(*restored(key, shard), [b"1"])
    assert [(line["source"], line["status"]) for line in lines(tmp_path)] == [
        ("s.tar/a.jpg", "failed"),
        ("s.tar/b.jpg", "failed"),
        ("t.tar/a.jpg", "restored"),
        ("t.tar/b.jpg", "restored"),
    ]
    assert not (tmp_path / PARTIAL).exists()


def test_files_of_a_folder_do_not_replace_its_own_shard(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "files.tar").write_bytes(b"a shard of this name")
    with Manifest.open(tmp_path / "out", RUN) as manifest, ShardSink(manifest, inputs(source)) as sink:
        assert "the input has a shard" in sink.write(*restored("a"), [b"1"]).reason


def test_file_that_joins_a_finished_shard_does_not_replace_it(tmp_path):
    for names in (("a", "b"), ("c",)):
        with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
            for name in names:
                sink.write(*restored(name), [b"1"])
    assert [name for name, _ in members(tmp_path / "files.tar")] == ["a.png", "b.png"]
    assert [(line["key"], line["status"]) for line in lines(tmp_path)] == [
        ("a", "restored"),
        ("b", "restored"),
        ("c", "failed"),
    ]


def test_next_shard_is_filled_while_one_is_moved_to_its_place(tmp_path, monkeypatch):
    moves, publish = threading.Event(), LocalStore.publish

    def slow(store: LocalStore, temporary: Path, name: str) -> None:
        assert moves.wait(60)
        publish(store, temporary, name)

    monkeypatch.setattr(LocalStore, "publish", slow)
    with Manifest.open(tmp_path, RUN) as manifest, ShardSink(manifest, inputs(tmp_path / "in")) as sink:
        sink.write(*restored("a", "s.tar"), [b"1"])
        for key in ("b", "c"):
            sink.write(*restored(key, "t.tar"), [b"2"])
        assert not moves.is_set()
        assert lines(tmp_path) == []
        assert not (tmp_path / "s.tar").exists()
        moves.set()
    assert members(tmp_path / "t.tar") == [("b.png", b"2"), ("c.png", b"2")]
    assert [(line["key"], line["shard_lines"]) for line in lines(tmp_path)] == [("a", 1), ("b", None), ("c", 2)]


def test_interrupted_shard_leaves_nothing_and_is_begun_again(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        Manifest.open(tmp_path, RUN) as manifest,
        ShardSink(manifest, inputs(tmp_path / "in")) as sink,
    ):
        sink.write(*restored("a", "complete.tar"), [b"1"])
        sink.write(*restored("a", "s.tar"), [b"1"])
        raise KeyboardInterrupt
    assert [line["shard"] for line in lines(tmp_path)] == ["complete.tar"]
    assert members(tmp_path / "complete.tar") == [("a.png", b"1")]
    assert not (tmp_path / "s.tar").exists()
    assert not (tmp_path / PARTIAL).exists()


# A run of sorts: 6 shards of 8 members and 24 loose files, "restored" by repeating their bytes.


def make_input(folder: Path) -> None:
    rng = random.Random(3)
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02}.jpg").write_bytes(rng.randbytes(rng.randrange(1, 60_000)))
    for number in range(6):
        names = (f"{member // 2}{'.json' if member % 2 else '.jpg'}" for member in range(16))
        write_tar(folder / f"s{number}.tar", {name: rng.randbytes(rng.randrange(1, 30_000)) for name in names})


@contextmanager
def opened(out: Path, source: Path, shards: bool) -> Iterator[Sink]:
    with (
        Manifest.open(out, RUN) as manifest,
        ShardSink(manifest, inputs(source)) if shards else FolderSink(manifest) as sink,
    ):
        yield sink


def run(source: Path, out: Path, shards: bool, log: Path | None = None) -> None:
    with opened(out, source, shards) as sink:
        for item in read(list_sources(source), sink.finished, sink.shard_finished, side_members=sink.copies_members):
            if isinstance(item, SideMember):
                sink.copy_member(item)
            elif not sink.finished(item.source):
                assert item.data is not None
                if log is not None:
                    with log.open("a") as file:
                        file.write(item.source + "\n")
                sink.write(item, Record(item.key, item.source, "restored"), [item.data * 3])


def kill_at(log: Path, progress: float, delay: float, work: Callable[..., None], *arguments) -> None:
    """Run `work` in a process and kill it when the log has so many lines, and the delay in seconds is over."""
    log.write_text("")
    process = FORK.Process(target=work, args=(*arguments, log))
    process.start()
    while process.is_alive() and len(log.read_text().splitlines()) < progress:
        time.sleep(0.0005)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("shards", [False, True])
def test_killed_at_any_moment_and_started_again_gives_the_same(tmp_path, shards):
    source, log, rng = tmp_path / "in", tmp_path / "log", random.Random(11)
    make_input(source)
    if not shards:  # keys of two shards would be the same
        for number in range(1, 6):
            (source / f"s{number}.tar").unlink()
    run(source, tmp_path / "straight", shards)
    expected, total = tree(tmp_path / "straight"), len(lines(tmp_path / "straight"))
    half_done = 0
    for attempt in range(20):
        out = tmp_path / f"out{attempt}"
        kill_at(log, total * attempt / 20, rng.random() * 0.002, run, source, out, shards)
        half_done += 0 < len(log.read_text().splitlines()) < total
        torn = (out / MANIFEST).read_bytes().splitlines(keepends=True) if (out / MANIFEST).exists() else []
        done = [json.loads(line) for line in torn if line.endswith(b"\n")]
        for line in done:
            assert all((out / (line["shard"] or name)).exists() for name in line["outputs"])
        log.write_text("")
        run(source, out, shards, log)
        again = set(log.read_text().splitlines())
        ends = {line["shard"] for line in done if line["shard_lines"]}
        assert not again & {line["source"] for line in done if not shards or line["shard"] in ends}
        assert tree(out) == expected
    assert half_done >= 5


@pytest.mark.parametrize("shards", [False, True])
def test_full_disk_stops_the_run_and_a_later_one_completes_it(tmp_path, shards):
    source = tmp_path / "in"
    make_input(source)
    for number in range(1, 6):
        (source / f"s{number}.tar").unlink()
    (source / "big").mkdir()
    (source / "big" / "big.jpg").write_bytes(bytes(300_000))
    run(source, tmp_path / "straight", shards)
    expected = tree(tmp_path / "straight")
    size = sum(map(len, expected.values()))
    with small_disk(tmp_path, size * 2 // 3) as disk:
        out = disk / "out"
        with pytest.raises(SinkError, match="No space left on device"):
            run(source, out, shards)
        done = lines(out)
        assert 0 < len(done) < len(lines(tmp_path / "straight"))
        assert not (out / PARTIAL).exists()
        assert {name: data for name, data in tree(out).items() if name != MANIFEST}.items() <= expected.items()
        with pytest.raises(SinkError, match="No space left on device"):
            run(source, out, shards)
        assert lines(out)[: len(done)] == done
        subprocess.run(["mount", "-o", f"remount,size={size * 2}", str(disk)], check=True)
        run(source, out, shards)
        assert tree(out) == expected


def in_a_child(work: Callable[[], None]) -> None:
    process = FORK.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("shards", [False, True])
def test_write_that_fails_midway_leaves_no_partial_file(tmp_path, shards):
    out = tmp_path / "out"

    def work() -> None:
        with opened(out, tmp_path / "in", shards) as sink:
            sink.write(*restored("small", "s.tar"), [b"1"])
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            with pytest.raises(SinkError, match="File too large"):
                sink.write(*restored("large", "t.tar"), [bytes(100_000)])
        assert not (out / PARTIAL).exists()

    in_a_child(work)
    outputs = {"s.tar"} if shards else {"small.png"}
    assert set(tree(out)) - {MANIFEST, "manifest.run.json", ".manifest.lock"} == outputs
    assert [line["key"] for line in lines(out)] == ["small"]
