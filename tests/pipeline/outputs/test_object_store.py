"""Output in an object store: files before their lines, nothing half done, and a run can go on elsewhere."""

import io
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from places import contents, files, lines, make_input, memory, photographs, upload
from runs import command, outputs, tiny_weights

from pipeline import restore
from pipeline.inputs.listing import Root, Sources, list_sources
from pipeline.inputs.remote import Address, Remote
from pipeline.inputs.source import Item, SideMember, read
from pipeline.outputs import manifest_objects
from pipeline.outputs.history import append_run, clear_history, read_history
from pipeline.outputs.manifest import Manifest, manifest_address, read_records
from pipeline.outputs.manifest_objects import PARTS
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import FolderSink, OutputNames

__all__ = ["memory"]
RUN = RunIdentity(weights="abc", mode="mmse")


def restored(key: str, shard: str | None = None) -> tuple[Item, Record]:
    source = f"{shard}/{key}.jpg" if shard else f"{key}.jpg"
    return Item(key, source, b"", shard), Record(key, source, "restored")


def test_files_then_lines(memory):
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest, OutputNames(samples=2)) as sink:
        assert sink.write(*restored("a/b"), [b"0", b"1"]).outputs == ("a/b.s0.png", "a/b.s1.png")
        item, _ = restored("bad")
        sink.write(item, Record("bad", "bad.jpg", "failed", "not a JPEG"), [])
        assert sink.write(*restored("../out"), [b"2"]).status == "failed"
        assert sink.write(*restored("x" * 1100), [b"3"]).status == "failed"
        assert sink.write(*restored("\udcff"), [b"4"]).status == "failed"
        assert lines(memory) == []
    assert files(memory) == {"a/b.s0.png": b"0", "a/b.s1.png": b"1"}
    assert [line["status"] for line in lines(memory)] == ["restored"] + ["failed"] * 4
    with Manifest.open(memory, RUN) as manifest:
        assert [manifest.finished(name) for name in ("a/b.jpg", "bad.jpg", "c.jpg")] == [True, True, False]
        assert manifest.counts == {"restored": 1, "failed": 4}
    assert manifest_address(memory) == "memory://place/manifest/*.jsonl"


def test_parts_are_written_as_the_run_goes(memory, monkeypatch):
    """With smaller limits than a thousand lines and a minute, for which a test is too short."""
    monkeypatch.setattr(manifest_objects, "PART_LINES", 10)
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        for number in range(25):
            sink.write(*restored(f"{number:02}"), [b"image"])
            present = files(memory)
            assert len(lines(memory)) == (number + 1) // 10 * 10
            assert {name for line in lines(memory) for name in line["outputs"]} <= present.keys()
    assert len(lines(memory)) == 25
    monkeypatch.setattr(manifest_objects, "PART_SECONDS", 0.0)
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        sink.write(*restored("late"), [b"image"])
        assert len(lines(memory)) == 26


def test_shards_appear_with_their_lines(memory):
    with (
        Manifest.open(memory, RUN) as manifest,
        ShardSink(manifest, Sources((Root(Remote("memory://in"), 0, 0),))) as sink,
    ):
        sink.copy_member(SideMember("a.json", "x/s.tar/a.json", b"{}", "x/s.tar"))
        sink.write(*restored("a", "x/s.tar"), [b"A"])
        assert files(memory) == {}
        sink.write(*restored("a", "x/t.tar"), [b"B"])
        sink.write(*restored("a", "x/u.tar"), [b"C"])
        assert {"x/s.tar"} <= files(memory).keys() <= {"x/s.tar", "x/t.tar"}
        assert [line["shard_lines"] for line in lines(memory)] == [1]
    with tarfile.open(fileobj=io.BytesIO(files(memory)["x/s.tar"])) as tar:
        assert tar.getnames() == ["a.json", "a.png"]
    with Manifest.open(memory, RUN) as manifest:
        assert [manifest.shard_finished(name) for name in ("x/s.tar", "x/u.tar", "x/v.tar")] == [True, True, False]
    assert not manifest.store.scratch.exists()


def test_outputs_of_a_folder_named_as_the_manifest_are_kept(memory):
    item = replace(restored("manifest/a")[0], source="manifest/a.jpg")
    for _ in range(2):
        with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
            if not manifest.finished(item.source):
                sink.write(item, restored("manifest/a")[1], [b"image"])
        append_run(memory, "", seconds=1, inputs=1, megapixels=1, device="cpu", dtype="float32", workers=1)
        memory.fs.pipe_file((memory / "manifest.history/b.png").address, b"image")
        assert [record.source for record in read_records(memory)] == [item.source]
    clear_history(memory)
    found = contents(memory)
    assert found["manifest/a.png"] == found["manifest.history/b.png"] == b"image"
    assert not read_history(memory)


def test_output_that_is_gone_or_empty_is_done_again(memory, monkeypatch):
    """With parts of three lines, of which one loses a line, one all, and one none."""
    monkeypatch.setattr(manifest_objects, "PART_LINES", 3)
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        for number in range(9):
            sink.write(*restored(f"f/{number}"), [b"image"])
    for number in (1, 3, 4):
        memory.fs.rm_file((memory / f"f/{number}.png").address)
    memory.fs.pipe_file((memory / "f/5.png").address, b"")
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        assert [manifest.finished(f"f/{n}.jpg") for n in range(9)] == [n not in (1, 3, 4, 5) for n in range(9)]
        assert len(lines(memory)) == 5
        for number in (1, 3, 4, 5):
            sink.write(*restored(f"f/{number}"), [b"image"])
    assert sorted(line["source"] for line in lines(memory)) == [f"f/{number}.jpg" for number in range(9)]


def test_each_folder_of_outputs_is_listed_once(memory, monkeypatch):
    """Also where lines alternate between many folders."""
    keys = [f"{n % 20:02}/{n}" for n in range(100)]
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        for key in keys:
            sink.write(*restored(key), [b"image"])
    listed, listing = [], Remote.listing

    def counted(place):
        listed.append(place.address)
        return listing(place)

    monkeypatch.setattr(Remote, "listing", counted)
    with Manifest.open(memory, RUN) as manifest:
        assert all(manifest.finished(f"{key}.jpg") for key in keys)
    assert sorted(address for address in listed if "manifest" not in address) == [
        f"{memory}/{number:02}" for number in range(20)
    ]


def test_torn_part_counts_as_far_as_it_is_whole(memory):
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        for number in range(4):
            sink.write(*restored(str(number)), [b"image"])
    ((name, data),) = [(name, data) for name, data in contents(memory).items() if name.startswith(PARTS + "/")]
    memory.fs.pipe_file((memory / name).address, data[:-10])
    with Manifest.open(memory, RUN) as manifest:
        assert [manifest.finished(f"{number}.jpg") for number in range(4)] == [True, True, True, False]


def test_another_run_is_refused_unless_it_may_overwrite(memory):
    with Manifest.open(memory, RUN) as manifest, FolderSink(manifest) as sink:
        sink.write(*restored("a"), [b"1"])
    other = RunIdentity(weights="abc", mode="mmse", seed=1)
    with pytest.raises(SinkError, match=r"another run: seed 0 \(now 1\).*--overwrite"):
        Manifest.open(memory, other)
    with Manifest.open(memory, other, overwrite=True) as manifest:
        assert not manifest.finished("a.jpg")
    assert lines(memory) == []
    with Manifest.open(memory, other) as manifest, FolderSink(manifest) as sink:
        sink.write(*restored("a"), [b"1"])
    memory.fs.rm_file((memory / IDENTITY).address)
    with pytest.raises(SinkError, match=r"no manifest\.run\.json"):
        Manifest.open(memory, other)


def test_upload_that_fails_stops_the_run_and_leaves_no_line(memory):
    memory.fs.pipe_file((memory / "taken.png").address, b"a file where a folder is needed")
    with pytest.raises(SinkError, match="cannot be written"), Manifest.open(memory, RUN) as manifest:
        sink = FolderSink(manifest)
        sink.write(*restored("a"), [b"1"])
        sink.write(*restored("taken.png/b"), [b"2"])
    assert lines(memory) == []
    pytest.importorskip("aiohttp")
    with pytest.raises(SinkError, match="HTTP is read-only"):
        Manifest.open(Remote("http://127.0.0.1:1/x"), RUN)


def test_interrupted_and_continued_is_the_same(tmp_path, memory):
    source = make_input(tmp_path / "in")
    for shards in (False, True):
        expected = None
        for moment in (100, *range(1, 26, 4)):
            out = memory / f"out{shards}{moment}"
            with pytest.raises(KeyboardInterrupt) if moment < 40 else nullcontext():
                work(source, out, shards, moment)
            done = lines(out)
            assert {line["shard"] or name for line in done for name in line["outputs"]} <= files(out).keys()
            work(source, out, shards, 100)
            expected = expected or (files(out), sorted(line["source"] for line in lines(out)))
            assert (files(out), sorted(line["source"] for line in lines(out))) == expected
            assert [line for line in lines(out) if line in done] == done


def work(source: Address, out: Address, shards: bool, interrupt: int) -> None:
    """A run of sorts, which repeats the bytes; interrupted at that item."""
    with (
        Manifest.open(out, RUN) as manifest,
        ShardSink(manifest, list_sources(source)) if shards else FolderSink(manifest) as sink,
    ):
        found = read(list_sources(source), sink.finished, sink.shard_finished, side_members=sink.copies_members)
        for number, item in enumerate(found):
            if number == interrupt:
                raise KeyboardInterrupt
            if isinstance(item, SideMember):
                sink.copy_member(item)
            elif not sink.finished(item.source):
                assert item.data is not None
                sink.write(item, Record(item.key, item.source, "restored"), [item.data * 2])


@pytest.mark.parametrize("options", [(), ("--output-shards",), ("--workers", "2", "--format", "npy")])
def test_command_line_from_memory_to_memory(tmp_path, memory, options):
    local = photographs(tmp_path / "in")
    options = ("--weights", str(tiny_weights(tmp_path)), "--verify", *options)
    assert restore.main(command(local, tmp_path / "out", *options)) == 0
    source, out = upload(local, memory / "in"), memory / "out"
    for _ in range(2):  # the second time there is nothing left to do
        assert restore.main([*command(Path(), Path(), *options), "--input-dir", source.address,
                             "--output-dir", out.address]) == 0  # fmt: skip
        expected = {name: data for name, data in outputs(tmp_path / "out").items() if not name.startswith("manifest")}
        assert files(out) == expected
        assert len(lines(out)) == 16
    assert restore.main([*command(Path(), Path(), *options), "--input-dir", source.address,
                         "--output-dir", source.address]) == restore.STOPPED  # fmt: skip
