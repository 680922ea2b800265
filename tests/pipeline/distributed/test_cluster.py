"""A run on a real Ray cluster of two nodes leaves what a run on one machine leaves, also when a node is killed, or the
driver."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
import ray_cluster
import torch
from jpegs import encode, photograph
from places import contents, s3_bucket
from runs import command, fill, lines, outputs, run, tiny_weights
from shards import write_tar

from pipeline import restore
from pipeline.distributed import cluster
from pipeline.distributed.cluster import worker_slots
from pipeline.distributed.ray_worker import UnitResult, Worker, WorkerReady
from pipeline.distributed.units import InputUnit
from pipeline.engine.device import DeviceLostError
from pipeline.inputs.remote import Remote
from pipeline.outputs.history import HISTORY, read_history
from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.record import IDENTITY
from pipeline.outputs.store import PARTIAL

SHARDS = 12
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@dataclass(frozen=True)
class Nodes:
    """address: of the cluster. raylet: the process that its second node consists of, with its children."""

    address: str
    raylet: int


@pytest.fixture(scope="module")
def bucket() -> Iterator[Remote]:
    """An S3 bucket that the nodes know."""
    with pytest.MonkeyPatch.context() as patch, s3_bucket(patch) as empty:
        yield empty


@pytest.fixture(scope="module")
def nodes(bucket) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    environment = {**os.environ, **RAY, "PYTHONPATH": str(Path(__file__).parents[3])}
    program = [sys.executable, ray_cluster.__file__]
    server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        found = None
        while found is None:
            line = server.stdout.readline()
            assert line, "the cluster did not start"
            found = json.loads(line) if line.startswith("[") else None
        yield Nodes(*found)
    finally:
        server.stdin.close()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def shards(folder: Path, images: int, count: int = SHARDS, side: int = 40) -> Path:
    for number in range(count):
        files = {f"{n}.jpg": encode(photograph(side, side, 100 * number + n), "4:2:0", 30) for n in range(images)}
        write_tar(folder / f"{number:02}.tar", {**files, "text.jpg": b"text", "note.json": b"{}"})
    return folder


def comparable(found: dict[str, bytes]) -> dict[str, object]:
    """An output folder's files without the device and dtype of the run's identity, which a cluster's workers choose."""
    identity = json.loads(found[IDENTITY])
    return {**found, IDENTITY: {name: value for name, value in identity.items() if name not in ("device", "dtype")}}


class Driver:
    """The command line in a forked process, which need not import everything again."""

    def __init__(self, arguments: list[str], log: Path, address: str, cpus: int = 1) -> None:
        given = [*arguments, "--engine", "ray", "--address", address, "--actor-cpus", str(cpus)]
        self.log = log
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(given,))
        self.process.start()

    def _run(self, arguments: list[str]) -> None:
        torch.set_num_threads(1)  # OpenMP's own threads did not come along
        with self.log.open("w", buffering=1) as sys.stderr:
            os.dup2(sys.stderr.fileno(), 2)
            sys.exit(restore.main(arguments))

    def end(self, code: int) -> str:
        """Waits for the end, which must be with this exit code. Returns what it wrote to standard error."""
        self.process.join(120)
        told = self.log.read_text()
        assert self.process.exitcode == code, told
        return told

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 150
        while not condition():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.005)


def finished(out: Path) -> set[str]:
    try:
        whole = (out / MANIFEST).read_bytes().rpartition(b"\n")[0]
        return {json.loads(line)["shard"] for line in whole.splitlines()}
    except FileNotFoundError:
        return set()


def identities(out: Path, names: set[str]) -> dict[str, tuple[int, int]]:
    """Files that are written anew, even with the same bytes, have another one."""
    return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}


def children(process: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_keys_and_failures_are_those_of_one_machine(tmp_path, nodes):
    source = fill(tmp_path / "in", {f"{n:03}.jpg": encode(photograph(24, 24, n)) for n in range(5)} | {"t.jpg": b"t"})
    fill(source, {"002.jpeg": encode(photograph(24, 24, 70))})
    shards(source / "sub", 2)
    options = ("--weights", tiny_weights(tmp_path))
    given = command(source, tmp_path / "out", *options)
    Driver(given, tmp_path / "log", nodes.address).end(1)
    run(source, tmp_path / "one", *options, code=1)
    assert comparable(outputs(tmp_path / "out")) == comparable(outputs(tmp_path / "one"))
    reasons = [line["reason"] for line in lines(tmp_path / "out").values()]
    assert sum("duplicate key" in reason for reason in reasons) == 1 + 3 * (SHARDS - 1)
    assert Driver(given, tmp_path / "log", nodes.address).end(1) == ""
    assert comparable(outputs(tmp_path / "out")) == comparable(outputs(tmp_path / "one"))


def test_in_a_store(tmp_path, nodes, bucket):
    source, given = shards(tmp_path / "in", 2, count=8), ("--weights", tiny_weights(tmp_path), "--output-shards")
    run(source, tmp_path / "one", *given, code=1)
    out = bucket / "out"
    arguments = [*command(source, Path("-"), *given), "--output-dir", str(out)]
    Driver(arguments, tmp_path / "log", nodes.address).end(1)
    assert [past.inputs for past in read_history(out)] == [len(lines(tmp_path / "one"))]
    found = {name: data for name, data in contents(out).items() if not name.startswith(HISTORY)}
    manifest = b"".join(found.pop(name) for name in sorted(found) if name.startswith("manifest/"))
    expected = outputs(tmp_path / "one")
    assert b"\n".join(sorted(manifest.splitlines())) == expected.pop(MANIFEST)
    assert comparable(found) == comparable(expected)


def test_an_output_that_the_nodes_do_not_see_is_refused(tmp_path, monkeypatch):
    """Here a cluster of this machine alone, of one worker."""
    pytest.importorskip("ray")
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(24, 24))})
    given = command(source, Path("-"), "--weights", tiny_weights(tmp_path), "--output-dir", "memory://out")
    told = Driver(given, tmp_path / "log", "local", cpus=os.cpu_count() or 1).end(2)
    assert "does not see what the driver writes to memory://out; use a shared file system" in told


def test_interrupted_driver_ends_and_cleans_up(tmp_path, nodes):
    source, out = shards(tmp_path / "in", 15), tmp_path / "out"
    given = command(source, out, "--weights", tiny_weights(tmp_path), "--output-shards")
    driver = Driver(given, tmp_path / "log", nodes.address)
    driver.wait_for(lambda: len(finished(out)) >= 2)
    driver.process.terminate()
    assert "interrupted; run the same command again" in driver.end(128 + signal.SIGTERM)
    assert len(lines(out)) == 16 * len(finished(out)) < 16 * SHARDS
    assert not (out / PARTIAL).exists()


class LosesItsGpu(Worker):
    """One of the workers loses its GPU, and the one that replaces it does not see any."""

    def begin(self) -> WorkerReady:
        ready = super().begin()
        if self._file("lost").exists() and self._first("missing"):
            return replace(ready, problem="PyTorch sees 0 CUDA devices here")
        return ready

    def restore(self, unit: InputUnit) -> UnitResult:
        if self._first("lost"):
            raise DeviceLostError("cuda:0 does not work any more")
        end = time.monotonic() + 60
        while not self._file("missing").exists() and time.monotonic() < end:
            time.sleep(0.05)
        return super().restore(unit)

    def _file(self, name: str) -> Path:
        return self._job.output.parent / name

    def _first(self, name: str) -> bool:
        try:
            self._file(name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def test_worker_that_loses_its_gpu_is_replaced(tmp_path, nodes, monkeypatch):
    """Here the workers are on CPUs, and the GPU's error is raised for them."""
    import_module("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "Worker", LosesItsGpu)
    source, weights = shards(tmp_path / "in", 2), ("--weights", tiny_weights(tmp_path), "--output-shards")
    Driver(command(source, tmp_path / "out", *weights), tmp_path / "log", nodes.address).end(1)
    assert (tmp_path / "missing").exists()
    assert not (tmp_path / "out" / PARTIAL).exists()
    run(source, tmp_path / "one", *weights, code=1)
    assert comparable(outputs(tmp_path / "out")) == comparable(outputs(tmp_path / "one"))


def at_work(raylet: int) -> bool:
    """Whether a worker of this node has a unit; Ray names processes by what they are doing."""
    try:
        return any(b"Worker.restore" in Path(f"/proc/{x}/cmdline").read_bytes() for x in children(raylet))
    except OSError:  # one has just ended
        return False


def kill(raylet: int) -> None:
    """The node, all of it at once."""
    for process in [raylet, *children(raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_driver_killed_and_then_a_node(tmp_path, nodes):
    """In turn, over the same output. The last test of these nodes, as only one is left. The images are so large that
    one node's worker is not done before the other's has started."""
    source, out = shards(tmp_path / "in", 6, side=128), tmp_path / "out"
    weights = tiny_weights(tmp_path, noise=True)
    given = command(source, out, "--weights", weights, "--output-shards", "--samples", "2")
    first = Driver(given, tmp_path / "log", nodes.address)
    first.wait_for(lambda: len(finished(out)) >= 3)
    first.process.kill()
    first.end(-signal.SIGKILL)
    before = identities(out, finished(out))
    assert 3 <= len(before) < SHARDS

    second = Driver(given[1:], tmp_path / "log", nodes.address)
    second.wait_for(lambda: len(finished(out)) > len(before) + 1)
    second.wait_for(lambda: at_work(nodes.raylet))
    kill(nodes.raylet)
    at_the_kill = identities(out, finished(out))
    told = second.end(1)
    assert f"{7 * SHARDS} inputs: {6 * SHARDS} restored, 0 passed through, {SHARDS} failed" in told
    assert len(at_the_kill) < SHARDS
    assert identities(out, {*before}) == before
    assert identities(out, {*at_the_kill}) == at_the_kill
    assert not (out / PARTIAL).exists()
    run(source, tmp_path / "one", *given[5:], code=1)
    assert comparable(outputs(out)) == comparable(outputs(tmp_path / "one"))  # each source has one line


def test_what_cannot_be_is_said(tmp_path, capfd, monkeypatch):
    source, weights = fill(tmp_path / "in", {"a.jpg": encode(photograph(24, 24))}), tiny_weights(tmp_path)
    given = command(source, tmp_path / "out", "--weights", weights, "--engine", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    for options, what in (
        ([], "pip install '.[cluster]'"),
        (["--device", "cuda:1"], "auto or cpu"),
        (["--rank", "0", "--world-size", "2"], "start it once, not as 2 ranks"),
        (["--actor-cpus", "0"], "expected at least 1"),
    ):
        assert restore.main([*given, *options]) == 2
        assert what in capfd.readouterr().err
        assert not (tmp_path / "out").exists()


def test_one_worker_for_each_gpu_or_for_some_cores():
    def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
        return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}

    crowd = [node(16), node(7), node(64, alive=False), node(0)]
    assert worker_slots(crowd, "auto", None) == (1, 0, 23)
    assert worker_slots(crowd, "auto", 4) == (4, 0, 5)
    assert worker_slots([*crowd, node(96, 8), node(20, 2)], "auto", None) == (10, 1, 10)
    assert worker_slots([*crowd, node(96, 8), node(20, 2)], "auto", 16) == (16, 1, 7)
    assert worker_slots([node(96, 8)], "cpu", 12) == (12, 0, 8)
    assert worker_slots(crowd, "cuda", None) == (1, 1, 0)  # GPUs that are gone are not replaced by cores
