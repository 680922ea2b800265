"""A run on a real Ray cluster of two nodes leaves what a run on one machine leaves, also when a node is killed, or the
driver."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jpegs import encode, photograph
from places import contents, s3_bucket
from runs import command, fill, lines, outputs, run, tiny_weights
from shards import write_tar

from pipeline import restore
from pipeline.cluster import places
from pipeline.manifest import MANIFEST, PARTIAL

SHARDS = 20


@dataclass
class Nodes:
    """address: of the cluster. raylets: the processes that its two nodes consist of, with their children."""

    address: str
    raylets: list[int]


def serve() -> None:
    """A cluster, until standard input ends. In a process of its own: Ray's threads would not survive tests' forks."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    checks = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    made = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": checks})
    nodes = [made.add_node(num_cpus=2) for _ in range(2)]
    print(json.dumps([made.address, [x.all_processes["raylet"][0].process.pid for x in nodes]]), flush=True)
    sys.stdin.read()
    made.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    program = "import test_cluster; test_cluster.serve()"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": paths}
    server = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
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


def shards(folder: Path, images: int) -> Path:
    for number in range(SHARDS):
        files = {f"{n}.jpg": encode(photograph(40, 40, 100 * number + n), "4:2:0", 30) for n in range(images)}
        write_tar(folder / f"{number:02}.tar", {**files, "text.jpg": b"text", "note.json": b"{}"})
    return folder


def driver(arguments: list[str], nodes: Nodes) -> subprocess.Popen[str]:
    """With two workers in all: each takes seconds to start."""
    cpus = 2 if nodes.raylets else max(1, (os.cpu_count() or 1) // 2)
    engine = ["--engine", "ray", "--address", nodes.address, "--actor-cpus", str(cpus)]
    given = [sys.executable, "-m", "pipeline.restore", *arguments, *engine]
    return subprocess.Popen(given, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def finished(out: Path) -> set[str]:
    try:
        return {json.loads(line)["shard"] for line in (out / MANIFEST).read_bytes().splitlines()}
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
    process = driver(command(source, tmp_path / "out", *options), nodes)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 1, told
    run(source, tmp_path / "one", *options, code=1)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "one")
    reasons = [line["reason"] for line in lines(tmp_path / "out").values()]
    assert sum("duplicate key" in reason for reason in reasons) == 1 + 3 * (SHARDS - 1)
    again = driver(command(source, tmp_path / "out", *options), nodes)
    assert again.communicate(timeout=120)[1] == ""
    assert again.returncode == 1
    assert outputs(tmp_path / "out") == outputs(tmp_path / "one")


def test_an_output_that_the_nodes_do_not_see_is_refused(tmp_path, nodes):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(24, 24))})
    given = command(source, Path("-"), "--weights", tiny_weights(tmp_path), "--output-dir", "memory://out")
    process = driver(given, nodes)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "does not see what the driver writes to memory://out; give a shared file system" in told


def test_interrupted_driver_ends_soon_and_cleans_up(tmp_path, nodes):
    source, out = shards(tmp_path / "in", 40), tmp_path / "out"
    process = driver(command(source, out, "--weights", tiny_weights(tmp_path), "--output-shards"), nodes)
    wait_for(lambda: len(finished(out)) >= 2, process)
    sent = time.monotonic()
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "interrupted; the same command goes on" in told
    assert time.monotonic() - sent < 30
    assert len(lines(out)) == 41 * len(finished(out)) < 41 * SHARDS
    assert not (out / PARTIAL).exists()


def at_work(raylet: int) -> bool:
    """Whether a worker of this node has a unit; Ray names processes by what they are doing."""
    try:
        return any(b"Worker.restore" in Path(f"/proc/{x}/cmdline").read_bytes() for x in children(raylet))
    except OSError:  # one has just ended
        return False


def kill(raylet: int) -> bool:
    """The node, all of it at once."""
    for process in [raylet, *children(raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return True


def test_driver_killed_and_then_a_node(tmp_path, nodes):
    """In turn, over the same output: the cluster takes long to start."""
    source, out, weights = shards(tmp_path / "in", 20), tmp_path / "out", tiny_weights(tmp_path, noise=True)
    given = ["--weights", weights, "--output-shards", "--samples", "2"]
    given = command(source, out, *given)
    first = driver(given, nodes)
    wait_for(lambda: len(finished(out)) >= 3, first)
    first.kill()
    first.communicate()
    before = identities(out, finished(out))
    assert 3 <= len(before) < SHARDS

    second = driver(given[1:], nodes)
    wait_for(lambda: len(finished(out)) > len(before) + 1, second)
    wait_for(lambda: any(at_work(node) and kill(node) for node in nodes.raylets), second)
    at_the_kill = identities(out, finished(out))
    told = second.communicate(timeout=120)[1]
    assert second.returncode == 1, told
    assert f"{21 * SHARDS} inputs: {20 * SHARDS} restored, 0 passed through, {SHARDS} failed" in told
    assert len(at_the_kill) < SHARDS
    assert identities(out, {*before}) == before
    assert identities(out, {*at_the_kill}) == at_the_kill
    assert not (out / PARTIAL).exists()
    run(source, tmp_path / "one", *given[5:], code=1)
    assert outputs(out) == outputs(tmp_path / "one")  # each source has one line


def test_in_a_store(tmp_path, monkeypatch):
    """On a cluster of this machine alone, whose processes know the store as this one does."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    source, weights = shards(tmp_path / "in", 2), tiny_weights(tmp_path)
    given = ("--weights", weights, "--output-shards")
    run(source, tmp_path / "one", *given, code=1)
    with s3_bucket(monkeypatch) as bucket:
        out = bucket / "out"
        process = driver([*command(source, Path("-"), *given), "--output-dir", str(out)], Nodes("local", []))
        told = process.communicate(timeout=120)[1]
        assert process.returncode == 1, told
        found = contents(out)
    manifest = b"".join(found.pop(name) for name in sorted(found) if name.startswith("manifest/"))
    expected = outputs(tmp_path / "one")
    assert b"\n".join(sorted(manifest.splitlines())) == expected.pop(MANIFEST)
    assert found == expected


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
    assert places(crowd, "auto", None) == (1, 0, 23)
    assert places(crowd, "auto", 4) == (4, 0, 5)
    assert places([*crowd, node(96, 8), node(20, 2)], "auto", None) == (10, 1, 10)
    assert places([*crowd, node(96, 8), node(20, 2)], "auto", 16) == (16, 1, 7)
    assert places([node(96, 8)], "cpu", 12) == (12, 0, 8)
    assert places(crowd, "cuda", None) == (1, 1, 0)  # GPUs that are gone are not replaced by cores
