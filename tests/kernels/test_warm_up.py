"""Kernels are compiled ahead in other processes, once for a cache; what fails is named and tried again."""

import multiprocessing
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import triton

import kernels.triton_ops.warm_up as module
from kernels import Subsampling
from kernels.triton_ops import exact
from kernels.triton_ops.warm_up import EDGES, OPERATORS, launch_once, operator_tasks, warm_up

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def fail(counted: Path) -> None:
    append(counted, "tried")
    raise RuntimeError("no such register")


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sampling", [Subsampling.S420, Subsampling.GRAY], ids=lambda sampling: sampling.label)
def test_every_operator_is_launched(operator, sampling, device):
    launch_once(operator, sampling, torch.float32, device)


def tries_of(folder: Path) -> int:
    return len((folder / "tries").read_text().split())


def test_done_once_for_a_cache_and_anew_for_other_sources(tmp_path, monkeypatch):
    said, source = tmp_path / "said", tmp_path / "kernels" / "kernel.py"
    source.parent.mkdir()
    monkeypatch.setattr(module, "SOURCES", source.parent)
    source.write_text("first")
    tasks = {name: partial(append, said, name) for name in ("a", "b", "c")}
    for _ in range(2):
        assert warm_up(tasks, processes=1, progress=False) == {}
        assert sorted(said.read_text().split()) == ["a", "b", "c"]
    source.write_text("second")
    assert warm_up(tasks, processes=1, progress=False) == {}
    assert len(said.read_text().split()) == 6


def test_what_fails_is_named_and_tried_again(tmp_path):
    said = tmp_path / "said"
    tasks = {"good": partial(append, said, "good"), "bad": partial(fail, tmp_path / "tries")}
    for tries in (1, 2):
        assert warm_up(tasks, processes=1, progress=False) == {"bad": "RuntimeError: no such register"}
        assert said.read_text().split() == ["good"]
        assert tries_of(tmp_path) == tries


def test_tasks_are_named_by_what_they_compile(device):
    tasks = operator_tasks(["decode", "encode"], Subsampling, (torch.float32, torch.bfloat16), device)
    assert len(tasks) == 15
    assert "encode 4:2:0 bfloat16" in tasks
    both = operator_tasks(["project", "project+backward"], [Subsampling.GRAY], [torch.float32], device)
    assert list(both) == ["project+backward gray float32"]


@pytest.mark.parametrize("operators", [{"project_exact"}, {EDGES}, {"project_exact", EDGES}])
def test_the_parts_of_project_exact_are_all_its_kernels(operators, device, monkeypatch):
    launched, launch = [], exact.launch

    def counted(kernel, *arguments, **more):
        launched.append(kernel)
        launch(kernel, *arguments, **more)

    monkeypatch.setattr(exact, "launch", counted)
    for task in operator_tasks(operators, [Subsampling.S422], [torch.float32], device).values():
        task()
    edges = [exact.edge_kernel] if EDGES in operators else []
    assert launched == edges + ([exact.exact_kernel, exact.mend_kernel] if "project_exact" in operators else [])


def test_the_command_needs_a_gpu_or_the_interpreter(tmp_path, monkeypatch, capsys):
    command = ["--operator", "decode", "--sampling", "gray"]
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        module.main(command)
    assert ended.value.code == 2
    assert "PyTorch sees no GPU" in capsys.readouterr().err
    environment = {"PATH": "/usr/bin", "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "1"}
    given = [sys.executable, "-m", "kernels.triton_ops.warm_up", *command]
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_script_without_the_usual_condition_is_told_so_and_ends(tmp_path):
    """Its processes import it again: they would wait for the lock that it holds, and it for them."""
    script = tmp_path / "script.py"
    script.write_text(
        "from functools import partial\n"
        "from kernels.triton_ops.warm_up import warm_up\n"
        "failed = warm_up({'nothing': partial(print, 'done')}, processes=1, progress=False)\n"
        "print('failed:', *failed)\n"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert f"{script}: compiles kernels" in ended.stderr
    assert 'if __name__ == "__main__":' in ended.stderr
    assert ended.stdout == "failed: nothing\n"


def only_in(process: int) -> None:
    assert os.getpid() == process


def sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def compile_for_long(folder: Path) -> None:
    warm_up({"long": partial(sleep, folder)}, processes=1, progress=False)


def running(process: int) -> bool:
    """Not so of one that has ended, also if nobody has asked how, as in containers without an init process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_process_takes_its_compilers_with_it(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=compile_for_long, args=(tmp_path,))
    parent.start()
    while not (pids := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]):
        time.sleep(0.05)
        assert parent.is_alive()
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    while running(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pids[0])


def test_what_fails_in_another_process_is_tried_here(tmp_path):
    tasks = {"here": partial(only_in, os.getpid()), "nowhere": partial(fail, tmp_path / "tries")}
    assert module.warm_up_or_retry(tasks, 1, False) == {"nowhere": "RuntimeError: no such register"}
    assert tries_of(tmp_path) == 2
