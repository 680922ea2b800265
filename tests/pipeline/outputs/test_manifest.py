"""The manifest: every line whole, what is finished known again, one run at a time in a folder."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from disks import small_disk

from pipeline.outputs.manifest import Manifest
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError
from pipeline.outputs.store import PARTIAL

RUN = RunIdentity(weights="abc", mode="mmse", input="/photos")
FORK = multiprocessing.get_context("fork")


def record(name: str, **fields) -> Record:
    return Record(name, f"{name}.jpg", "restored", **fields)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_bytes().splitlines()]


def fill(folder: Path, count: int) -> None:
    with Manifest.open(folder, RUN) as manifest:
        for number in range(count):
            (folder / f"{number}.png").write_bytes(b"image")
            manifest.append([record(str(number), outputs=(f"{number}.png",))])


def test_record_comes_back_from_its_line():
    full = Record(
        key="a/b.c",
        source="s.tar/a/b.c.jpg",
        status="restored",
        size=(321, 481),
        sampling="4:2:0",
        quality=50,
        tables="1f",
        seed=3,
        mode="sample",
        weights="ab",
        coefficients=243_000,
        mismatches=2,
        sample_mismatches=(2, 0),
        outputs=("a/b.c.s0.png", "a/b.c.s1.png"),
    )
    assert Record.from_json(full.to_json()) == full
    odd = Record(os.fsdecode(b"\xff\xc3\xa9\n"), "x", "failed", "line\nbreak é")
    assert "\n" not in odd.to_json()
    assert odd.to_json().isascii()
    assert Record.from_json(odd.to_json()) == odd


@pytest.mark.parametrize(
    "line", ["", "1", "{}", '{"key": "a"', '{"key": "a", "source": "b", "status": "lost"}', "\0\0"]
)
def test_what_is_no_record_is_refused(line):
    with pytest.raises(ValueError, match=r".*"):
        Record.from_json(line)


def test_finished_after_the_line_and_known_again(tmp_path):
    out = tmp_path / "new" / "out"
    fill(out, 3)
    with Manifest.open(out, RUN) as manifest:
        manifest.append([Record("bad", "bad.jpg", "failed", "broken")])
    with Manifest.open(out, RUN) as manifest:
        assert [manifest.finished(name) for name in ("0.jpg", "2.jpg", "bad.jpg", "3.jpg")] == [True, True, True, False]
        assert manifest.counts == {"restored": 3, "failed": 1}
    assert [line["source"] for line in lines(out)] == ["0.jpg", "1.jpg", "2.jpg", "bad.jpg"]
    assert not (out / PARTIAL).exists()


def test_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path):
    fill(tmp_path, 3)
    whole = (tmp_path / MANIFEST).read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for size in (second + 1, second + 100, len(whole) - 1):
        (tmp_path / MANIFEST).write_bytes(whole[:size])
        with Manifest.open(tmp_path, RUN) as manifest:
            assert manifest.finished("1.jpg")
            assert not manifest.finished("2.jpg")
            manifest.append([record("2", outputs=("2.png",))])
        assert (tmp_path / MANIFEST).read_bytes() == whole


def test_damage_in_the_middle_costs_only_its_own_line(tmp_path):
    fill(tmp_path, 4)
    whole = (tmp_path / MANIFEST).read_bytes().splitlines(keepends=True)
    (tmp_path / MANIFEST).write_bytes(whole[0] + bytes(40) + b"\n" + whole[2] + whole[2] + whole[3] + b'{"key"')
    with Manifest.open(tmp_path, RUN) as manifest:
        assert [manifest.finished(f"{number}.jpg") for number in range(4)] == [True, False, True, True]
    assert (tmp_path / MANIFEST).read_bytes() == whole[0] + whole[2] + whole[3]


def test_output_that_is_gone_or_empty_is_done_again(tmp_path):
    fill(tmp_path, 4)
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    with Manifest.open(tmp_path, RUN) as manifest:
        assert [manifest.finished(f"{number}.jpg") for number in range(4)] == [True, False, True, False]
        assert manifest.counts == {"restored": 2}
    assert [line["key"] for line in lines(tmp_path)] == ["0", "2"]


def test_lines_of_a_shard_count_all_together_and_with_their_tar(tmp_path):
    def shard(name: str, count: int) -> list[Record]:
        records = [record(f"{name}/{number}", shard=name, outputs=(f"{name}/{number}.png",)) for number in range(count)]
        return [*records[:-1], replace(records[-1], shard_lines=count)]

    def reopened() -> tuple[bool, bool, bool, bool]:
        with Manifest.open(tmp_path, RUN) as manifest:
            a, b = manifest.shard_finished("a.tar"), manifest.shard_finished("b.tar")
            return a, b, manifest.finished("a.tar/1.jpg"), manifest.finished("b.tar/1.jpg")

    (tmp_path / "a.tar").write_bytes(b"tar")
    (tmp_path / "b.tar").write_bytes(b"tar")
    with Manifest.open(tmp_path, RUN) as manifest:
        manifest.append(shard("a.tar", 3))
        manifest.append(shard("b.tar", 4))
    whole = (tmp_path / MANIFEST).read_bytes()
    assert reopened() == (True, True, True, True)
    (tmp_path / MANIFEST).write_bytes(whole[:-300])
    assert reopened() == (True, False, True, False)
    assert [line["shard"] for line in lines(tmp_path)] == ["a.tar"] * 3
    damaged = whole.splitlines(keepends=True)
    (tmp_path / MANIFEST).write_bytes(b"".join([*damaged[:4], b"damage\n", *damaged[5:]]))
    assert reopened() == (True, False, True, False)
    (tmp_path / MANIFEST).write_bytes(whole)
    (tmp_path / "a.tar").unlink()
    assert reopened() == (False, True, False, True)


@pytest.mark.parametrize(
    "change",
    [{"weights": "x"}, {"mode": "sample"}, {"seed": 1}, {"samples": 2}, {"format": "webp"}, {"input": "/else"}],
)
def test_another_run_is_refused_unless_it_may_overwrite(tmp_path, change):
    fill(tmp_path, 2)
    before = (tmp_path / MANIFEST).read_bytes()
    other = replace(RUN, **change)
    ((name, value),) = change.items()
    with pytest.raises(SinkError, match=rf"another run: {name} .*now {value!r}.*--overwrite"):
        Manifest.open(tmp_path, other)
    assert (tmp_path / MANIFEST).read_bytes() == before
    Manifest.open(tmp_path, RUN).close()
    (tmp_path / "mine.txt").write_bytes(b"the user's")
    with Manifest.open(tmp_path, other, overwrite=True) as manifest:
        assert not manifest.finished("0.jpg")
        manifest.append([record("new")])
    assert [line["key"] for line in lines(tmp_path)] == ["new"]
    assert sorted(path.name for path in tmp_path.glob("*.*")) == sorted(
        [".manifest.lock", "0.png", "1.png", MANIFEST, IDENTITY, "mine.txt"]
    )
    with pytest.raises(SinkError, match="another run"):
        Manifest.open(tmp_path, RUN)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (["/a", "/b"], r"input \(now it no longer has '/c'\)"),
        (["/b", "/c", "/d"], r"input \(now it no longer has '/a' and has in addition '/d'\)"),
        ([f"/{n}" for n in "abcdefgh"], r"input \(now it has in addition '/d', '/e', '/f' and 2 more\)"),
        (["/b", "/a", "/c"], r"input \(now it has another order\)"),
    ],
)
def test_of_several_inputs_those_that_differ_are_named(tmp_path, now, message):
    Manifest.open(tmp_path, replace(RUN, input="/a\n/b\n/c")).close()
    with pytest.raises(SinkError, match=message):
        Manifest.open(tmp_path, replace(RUN, input="\n".join(now)))


def test_lines_of_an_unknown_run_are_refused(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / IDENTITY).unlink()
    with pytest.raises(SinkError, match=r"no manifest\.run\.json"):
        Manifest.open(tmp_path, RUN)
    (tmp_path / IDENTITY).write_text("{")
    with pytest.raises(SinkError, match="another run"):
        Manifest.open(tmp_path, RUN)


def test_two_runs_at_once_are_refused(tmp_path):
    def run(folder: Path, ready, stop) -> None:
        with Manifest.open(folder, RUN):
            ready.set()
            stop.wait(30)

    ready, stop = FORK.Event(), FORK.Event()
    other = FORK.Process(target=run, args=(tmp_path, ready, stop))
    other.start()
    assert ready.wait(30)
    with pytest.raises(SinkError, match="another run is writing"):
        Manifest.open(tmp_path, RUN, overwrite=True)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with Manifest.open(tmp_path, RUN), pytest.raises(SinkError, match="another run is writing"):
        Manifest.open(tmp_path, RUN)
    Manifest.open(tmp_path, RUN).close()


def test_worker_that_outlives_a_killed_run_does_not_hold_its_folder(tmp_path):
    def run(folder: Path, ready, stop) -> None:
        with Manifest.open(folder, RUN):
            if os.fork() == 0:
                ready.set()
                stop.wait(30)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    ready, stop = FORK.Event(), FORK.Event()
    other = FORK.Process(target=run, args=(tmp_path, ready, stop))
    other.start()
    other.join()
    assert ready.wait(30)
    Manifest.open(tmp_path, RUN).close()
    stop.set()


def test_threads_may_append_at_the_same_time(tmp_path):
    with Manifest.open(tmp_path, RUN) as manifest:

        def work(first: int) -> None:
            for number in range(first, first + 100):
                manifest.append([record(str(number))])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manifest.counts == {"restored": 400}
    assert sorted(int(line["key"]) for line in lines(tmp_path)) == list(range(400))


def test_line_that_the_disk_does_not_take_leaves_no_half(tmp_path):
    def run(folder: Path) -> None:
        manifest = Manifest.open(folder, RUN)
        size = (folder / MANIFEST).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, size + 700))
        for number in range(3, 10):
            manifest.append([record(str(number))])
        os._exit(1)

    def expect_refusal(folder: Path) -> None:
        with pytest.raises(SinkError, match=r"manifest\.jsonl: cannot be written: File too large"):
            run(folder)
        os._exit(0)

    fill(tmp_path, 3)
    other = FORK.Process(target=expect_refusal, args=(tmp_path,))
    other.start()
    other.join()
    assert other.exitcode == 0
    assert 3 < len(lines(tmp_path)) < 6
    assert (tmp_path / MANIFEST).read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/nothing"])
def test_output_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(SinkError, match=f"{name}: cannot be made or written"):
        Manifest.open(tmp_path / name, RUN)


def test_disk_full_to_the_last_byte_never_leaves_half_a_line(tmp_path):
    with small_disk(tmp_path, 256 << 10) as disk:
        with Manifest.open(disk, RUN) as manifest:
            (disk / "ballast").write_bytes(bytes((256 << 10) - (40 << 10)))
            with pytest.raises(SinkError, match="No space left"):
                for number in range(10_000):
                    manifest.append([Record(str(number), f"{number}.jpg", "failed", "no")])
        found = lines(disk)
        assert [line["key"] for line in found] == [str(number) for number in range(len(found))]
        with Manifest.open(disk, RUN) as manifest, pytest.raises(SinkError, match="No space left"):
            manifest.append([Record("x" * 9000, "y", "failed")])
        (disk / "ballast").unlink()
        with Manifest.open(disk, RUN) as manifest:
            assert manifest.counts == {"failed": len(found)}


def test_folder_that_becomes_read_only(tmp_path):
    with small_disk(tmp_path, 1 << 20) as disk:
        fill(disk / "out", 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(SinkError, match="Read-only file system"):
            Manifest.open(disk / "out", RUN)
        with pytest.raises(SinkError, match="Read-only file system"):
            Manifest.open(disk / "new", RUN)
