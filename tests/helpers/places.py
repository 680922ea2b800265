"""Remote places to read from and write to, in this process or beside it: memory, a web server, S3 by moto."""

import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import pytest
from jpegs import encode, photograph
from runs import fill
from shards import write_tar

from pipeline.inputs.listing import list_sources
from pipeline.inputs.remote import Address, Remote
from pipeline.inputs.source import Item, SideMember, read
from pipeline.outputs.manifest_objects import PARTS


def photographs(folder: Path) -> Path:
    """Four loose files and two shards of six."""
    data = [encode(photograph(40, 36, number), "4:2:0", 30) for number in range(16)]
    fill(folder, {f"{number}.jpg": data[number] for number in range(4)})
    for shard in range(2):
        write_tar(folder / f"s{shard}.tar", {f"{shard}-{n}.jpg": data[4 + 6 * shard + n] for n in range(6)})
    return folder


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


def upload(folder: Path, target: Remote) -> Remote:
    """Copies a local folder's files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(folder).as_posix()
            place.fs.pipe_file(place.address, path.read_bytes())
    return target


def contents(folder: Remote) -> dict[str, bytes]:
    """Every file below, by its path."""
    own = folder.fs._strip_protocol(folder.address)
    found = [path for path in folder.fs.find(own) if path.startswith(own + "/")]
    return {path.removeprefix(own + "/"): folder.fs.cat_file(path) for path in found}


def items(place: Address, **options) -> list[Item | SideMember]:
    return list(read(list_sources(place), side_members=True, **options))


def lines(folder: Remote) -> list[dict]:
    parts = {name: data for name, data in contents(folder).items() if name.startswith(PARTS + "/")}
    return [json.loads(line) for name in sorted(parts) for line in parts[name].splitlines()]


def files(folder: Remote) -> dict[str, bytes]:
    """All but the manifest."""
    return {name: data for name, data in contents(folder).items() if not name.startswith("manifest")}


@pytest.fixture
def memory() -> Iterator[Remote]:
    """An empty folder in this process's memory."""
    folder = Remote("memory://place")
    fsspec.filesystem("memory").store.clear()
    yield folder
    fsspec.filesystem("memory").store.clear()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def web_server(handler: type[BaseHTTPRequestHandler] | partial) -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def web_folder(folder: Path) -> Iterator[Remote]:
    """A local folder, served with pages that list it."""
    pytest.importorskip("aiohttp")
    with web_server(partial(Quiet, directory=str(folder))) as address:
        yield Remote(address)


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """An empty bucket, which processes started meanwhile find as well."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    bucket = Remote("s3://bucket")
    type(bucket.fs).clear_instance_cache()
    bucket.fs.mkdir("bucket")
    try:
        yield bucket
    finally:
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # it belongs to the process
        server.stop()
        type(bucket.fs).clear_instance_cache()


def environment() -> dict[str, str]:
    """For a process that is to import the pipeline."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
