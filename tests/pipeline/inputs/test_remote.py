"""Input from remote places: the same files as on a disk, and nothing that a server says is trusted."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import fsspec
import pytest
from places import environment, items, make_input, memory, upload, web_folder, web_server
from runs import fill
from shards import write_tar

from pipeline import restore
from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.remote import AddressError, Remote, RemoteError, address, same_place
from pipeline.inputs.source import MAX_DENIED, Item, ReadPosition, read

__all__ = ["memory"]


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


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_may_take_long_but_not_be_silent(monkeypatch, silent):
    """A shard is read as fast as its images are restored, which may take hours."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("pipeline.inputs.remote._HTTP_PAUSE_S", 1.0)
    done = Event()

    class Slow(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            for _ in range(8):
                self.wfile.write(b"x")
                done.wait(30 if silent else 0.25)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with web_server(Slow) as server:
        found = read(list_sources(Remote(server) / "a.jpg"))
        if silent:
            with pytest.raises(SourceError, match=r"a\.jpg: \w*Timeout.*start the run again"):
                next(found)
        else:
            assert next(found).data == b"x" * 8
        done.set()


def test_fsspecs_configuration_counts(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setitem(fsspec.config.conf, "https", {"client_kwargs": {"trust_env": True}})
    client = Remote("https://host/x").fs.client_kwargs
    assert client["trust_env"]
    assert client["timeout"].total is None


def page_of(links: tuple[str, ...], statuses: dict[tuple[str, str], int] | None = None) -> type[BaseHTTPRequestHandler]:
    """A server's page of links to files. statuses: (request, file) → the status of the answer, if not 200."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_page = self.path == "/"
            data = "".join(f'<a href="{link}">x</a>' for link in links).encode() if is_page else b"data"
            name = self.path[1:].partition("?")[0]
            self.send_response((statuses or {}).get((self.command, name), 200))
            self.send_header("Content-Type", "text/html" if is_page else "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    return Page


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
@pytest.mark.parametrize("requests", [("GET",), ("HEAD", "GET")])
def test_a_page_that_refuses_a_file_is_asked_for_the_others(status, requests):
    pytest.importorskip("aiohttp")
    refused = {(request, "b.jpg"): status for request in requests}
    with web_server(page_of(("a.jpg", "b.jpg", "c.jpg"), refused)) as server:
        found = items(Remote(server))
        with pytest.raises((OSError, RemoteError), match=rf"b\.jpg: HTTP status {status}") as raised:
            Remote(f"{server}/b.jpg?secret=1").read_bytes()
    assert [(item.source, item.data) for item in found] == [("a.jpg", b"data"), ("b.jpg", None), ("c.jpg", b"data")]
    assert f"HTTP status {status}" in found[1].error
    assert found[1].transient
    assert "secret" not in str(raised.value)


def test_a_server_that_denies_every_file_ends_the_run():
    """Also when others in between are finished or another rank's, and so are not asked for."""
    pytest.importorskip("aiohttp")
    names = [f"{number:02}.jpg" for number in range(40)]
    denied = {(request, name): 403 for request in ("HEAD", "GET") for name in names}
    found = []
    with web_server(page_of(tuple(names), denied)) as server, pytest.raises(SourceError, match="HTTP status 403"):
        found.extend(read(list_sources(Remote(server)), lambda source: int(source[:2]) % 2 == 0))
    assert [item.source for item in found if item.error] == names[1 : 2 * MAX_DENIED : 2]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_fails_ends_the_run(status):
    pytest.importorskip("aiohttp")
    busy = {(request, "b.jpg"): status for request in ("HEAD", "GET")}
    with web_server(page_of(("a.jpg", "b.jpg"), busy)) as server:
        found = read(list_sources(Remote(server)))
        assert next(found).data == b"data"
        with pytest.raises(SourceError, match=rf"b\.jpg: HTTP status {status}.*start the run again"):
            next(found)
        for asked in (Remote(f"{server}/b.jpg").exists, Remote(f"{server}/b.jpg").is_file):
            with pytest.raises(RemoteError, match=f"{status}"):
                asked()
    with pytest.raises(RemoteError):  # nobody answers
        Remote(f"{server}/b.jpg").exists()


def test_names_that_a_server_makes_up():
    """A link's name becomes an output's: it must not lead out of its folder."""
    pytest.importorskip("aiohttp")
    links = ("..%2f..%2fup.tar", "..%2fup.jpg", "%2e%2e/", "a%00.jpg", "ok.jpg", "?C=N;O=D", "../")
    with web_server(page_of(links)) as server:
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


def test_same_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert same_place(tmp_path, tmp_path / "link")
    assert not same_place(tmp_path, tmp_path / "none")
    assert same_place(Remote("memory://x"), Remote("memory://x"))
    assert not same_place(Remote("memory://x"), Remote("memory://x/y"))
    assert not same_place(tmp_path, Remote("memory://x"))
