"""Input and output in remote places: the same files as on a disk, nothing half done, and a run can go on elsewhere."""

import io
import os
import random
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from places import contents, environment, files, items, lines, memory, photographs, upload, web_folder, web_server
from runs import command, fill, outputs, tiny_weights
from shards import write_tar

from pipeline import restore
from pipeline.inputs.listing import Root, SourceError, Sources, list_sources
from pipeline.inputs.remote import Address, AddressError, Remote, address, same_place
from pipeline.inputs.source import Item, ReadPosition, SideMember, read
from pipeline.outputs import manifest_objects
from pipeline.outputs.history import append_run, clear_history, read_history
from pipeline.outputs.manifest import Manifest, manifest_address, read_records
from pipeline.outputs.manifest_objects import PARTS
from pipeline.outputs.record import IDENTITY, Record, RunIdentity, SinkError
from pipeline.outputs.shard_sink import ShardSink
from pipeline.outputs.sink import FolderSink, OutputNames

__all__ = ["memory"]
RUN = RunIdentity(weights="abc", mode="mmse")


def make_input(folder: Path) -> Path:
    """Loose files, also in a folder of a name with a space, and shards with other members, one of them compressed."""
    rng = random.Random(3)
    fill(folder, {f"{n:02}.jpg": rng.randbytes(rng.randrange(1, 9000)) for n in range(5)})
    fill(folder, {f"a b/c+{n}.jpeg": rng.randbytes(400) for n in range(3)} | {"a b/notes.txt": b"no"})
    for name in ("s.tar", "a b/t.tar.gz", "z/u.tar"):
        first = Path(name).name[0]
        members = {
            f"{first}{n // 2}{'.json' if n % 2 else '.jpg'}": rng.randbytes(rng.randrange(1, 30_000)) for n in range(12)
        }
        write_tar(folder / name, members, "w:gz" if name.endswith("gz") else "w")
    return folder


def restored(key: str, shard: str | None = None) -> tuple[Item, Record]:
    source = f"{shard}/{key}.jpg" if shard else f"{key}.jpg"
    return Item(key, source, b"", shard), Record(key, source, "restored")


def test_addresses():
    assert address("photos/a:b") == Path("photos/a:b")
    assert address("file:///photos") == Path("/photos")
    assert address("memory://x/y/") == Remote("memory://x/y")
    assert (Remote("memory://x") / "a b").address == "memory://x/a b"
    pytest.importorskip("aiohttp")
    assert (Remote("https://host/x") / "a b").address == "https://host/x/a%20b"
    signed = address("https://host/x/s%20t.tar?secret=1/2")
    assert isinstance(signed, Remote)
    assert (str(signed), signed.name) == ("https://host/x/s%20t.tar", "s t.tar")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pipe:cat x.tar", "addresses that start a program are refused"),
        ("pipe://cat", "addresses that start a program are refused"),
        ("simplecache::s3://bucket/x", "chained addresses are refused"),
        ("zip://a::file:///x.zip", "chained addresses are refused"),
        ("ssh://host/x", "expected a folder or one of .*s3://"),
        ("nonsense://x", "expected a folder or one of"),
        ("memory://", "the bucket or folder is missing"),
    ],
)
def test_addresses_that_are_refused(text, reason, tmp_path, capsys):
    with pytest.raises(AddressError, match=reason):
        address(text)
    for folders in (("--input-dir", text, "--output-dir", str(tmp_path)), ("--input-dir", "x", "--output-dir", text)):
        assert restore.main(list(folders)) == restore.STOPPED
        assert text in capsys.readouterr().err


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("registry", "_registry"):  # an earlier test may have loaded it
        monkeypatch.setattr(sys.modules["fsspec.registry"], name, {})
    with pytest.raises(AddressError, match=r"s3:// needs a package .*Install s3fs"):
        address("s3://bucket/x")


def test_input_is_the_same_as_on_a_disk(tmp_path, memory):
    local = make_input(tmp_path / "in")
    expected = items(local)
    assert len(expected) == 8 + 36
    assert items(upload(local, memory)) == expected
    with web_folder(local) as web:
        assert items(web) == expected
        assert items(web / "z" / "u.tar") == items(local / "z" / "u.tar")
        assert items(web / "01.jpg") == items(local / "01.jpg")
    here, there = list_sources(local), list_sources(memory)
    assert [(root.files, root.shards) for root in there.roots] == [(8, 3)]
    assert there.shard_bytes == here.shard_bytes == sum(path.stat().st_size for path in local.rglob("*.*ar*"))


def test_position_in_tars_of_a_store_is_that_on_a_disk(tmp_path, memory):
    local = make_input(tmp_path / "in")
    total = list_sources(local).shard_bytes
    for place in (local, upload(local, memory)):
        position, seen = ReadPosition(), [0]
        for _ in read(list_sources(place), position=position):
            seen.append(position.bytes)
        assert seen == sorted(seen)
        assert len(set(seen)) > 3
        assert seen[-1] <= position.bytes == total


def test_finished_and_whole_are_not_read(tmp_path, memory):
    upload(make_input(tmp_path / "in"), memory)
    found = items(memory, finished=lambda source: source == "00.jpg", shard_finished=lambda shard: shard != "s.tar")
    assert [item.data is None for item in found] == [True] + [False] * (7 + 12)
    excluded = list_sources(memory, exclude=memory / "a b")
    assert {entry.name.partition("/")[0] for entry in excluded} == {"00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg",
                                                                    "s.tar", "z"}  # fmt: skip


def test_input_that_holds_nothing_says_so(tmp_path, memory):
    (tmp_path / "empty").mkdir()
    with web_folder(tmp_path) as web:
        for place in (memory, memory / "x.tar", memory / "x.txt", web / "empty", web / "x.tar", web / "nothing"):
            with pytest.raises(SourceError, match="expected a folder, a JPEG file"):
                list_sources(place)
    with pytest.raises(SourceError, match=r"http://127.0.0.1:\d+"):  # nobody answers
        list_sources(web)


def test_damaged_and_oversized_input_is_reported(tmp_path, memory):
    whole = (make_input(tmp_path / "in") / "s.tar").read_bytes()
    fill(tmp_path / "bad", {"cut.tar": whole[:40_000], "none.tar": b"x" * 2000, "big.jpg": bytes(50_000)})
    expected = items(tmp_path / "bad", limit=40_000)
    places = [upload(tmp_path / "bad", memory)]
    with web_folder(tmp_path / "bad") as web:
        for place in (*places, web):
            found = items(place, limit=40_000)
            assert [(item.source, getattr(item, "data", None)) for item in found] == [
                (item.source, getattr(item, "data", None)) for item in expected
            ]
            reasons = {item.source: item.error for item in found if isinstance(item, Item) and item.error}
            assert reasons.keys() == {"big.jpg", "cut.tar", "none.tar"}
            assert "damaged or cut off after" in reasons["cut.tar"]
            assert "50000 bytes are more than the limit" in reasons["big.jpg"]


def test_store_that_stops_answering_is_no_damaged_input(tmp_path):
    """The run stops, and no line says that the shard is bad."""
    pytest.importorskip("aiohttp")
    whole = (make_input(tmp_path / "in") / "s.tar").read_bytes()

    class Broken(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(whole[: len(whole) // 2])
            self.connection.close()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with web_server(Broken) as server:
        sources = list_sources(Remote(server) / "s.tar")
        found = []
        with pytest.raises(SourceError, match=r"s\.tar: ClientPayloadError.*start the run again"):
            found.extend(read(sources))
    assert all(isinstance(item, Item) and item.error is None for item in found)


def test_names_that_a_server_makes_up(tmp_path):
    """A link's name becomes an output's: it must not lead out of its folder."""
    pytest.importorskip("aiohttp")
    links = ("..%2f..%2fup.tar", "..%2fup.jpg", "%2e%2e/", "a%00.jpg", "ok.jpg", "?C=N;O=D", "../")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = b"data"
            if self.path == "/":
                data = "".join(f'<a href="{link}">x</a>' for link in links).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if self.path == "/" else "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with web_server(Page) as server:
        found = items(Remote(server))
    assert [item.source for item in found if isinstance(item, Item) and item.error is None] == ["ok.jpg"]
    assert {item.source for item in found if isinstance(item, Item) and item.error} == {
        "../../up.tar", "../up.jpg", "a\0.jpg"
    }  # fmt: skip


PEAK = """
import sys, tracemalloc
from pipeline.inputs.remote import address
from pipeline.inputs.listing import list_sources
from pipeline.inputs.source import read
sources = list_sources(address(sys.argv[1]))
tracemalloc.start()
print(sum(len(item.data) for item in read(sources)), tracemalloc.get_traced_memory()[1])
"""


def test_a_shard_is_never_whole_in_memory(tmp_path):
    write_tar(tmp_path / "s.tar", {f"{number}.jpg": os.urandom(1 << 20) for number in range(80)})
    with web_folder(tmp_path) as web:
        made = subprocess.run(
            [sys.executable, "-c", PEAK, (web / "s.tar").address],
            check=True, capture_output=True, text=True, env=environment(),
        )  # fmt: skip
    size, peak = map(int, made.stdout.split())
    assert size == 80 << 20
    assert peak < 12 << 20


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
        assert files(memory).keys() == {"x/s.tar"}
        assert [line["shard_lines"] for line in lines(memory)] == [1]
    with tarfile.open(fileobj=io.BytesIO(files(memory)["x/s.tar"])) as tar:
        assert tar.getnames() == ["a.json", "a.png"]
    with Manifest.open(memory, RUN) as manifest:
        assert [manifest.shard_finished(name) for name in ("x/s.tar", "x/t.tar", "x/u.tar")] == [True, True, False]
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


def test_same_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert same_place(tmp_path, tmp_path / "link")
    assert not same_place(tmp_path, tmp_path / "none")
    assert same_place(Remote("memory://x"), Remote("memory://x"))
    assert not same_place(Remote("memory://x"), Remote("memory://x/y"))
    assert not same_place(tmp_path, Remote("memory://x"))
