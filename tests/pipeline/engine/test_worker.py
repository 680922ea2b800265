"""A worker's process: what it answers, and when it ends."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engine.memory import SharedMemory
from pipeline.engine.worker import WorkerError, WorkerLauncher, WorkerProcess


def workers(function: Callable[[Any], Any], memory: SharedMemory | None = None) -> WorkerLauncher:
    return WorkerLauncher([lambda units: lambda: [function(unit) for unit in units]], memory or SharedMemory(1))


def ask(process: WorkerProcess, *units: Any) -> list[Any]:
    process.send(process.pack(0, units))
    return process.receive()


def test_answers_come_from_another_process_and_large_ones_too():
    with workers(lambda unit: (os.getpid(), unit)) as some:
        ((process, answer),) = ask(some.start(), bytes(50_000_000))
    assert process != os.getpid()
    assert len(answer) == 50_000_000


def test_tensors_stay_where_they_are():
    memory = SharedMemory(1 << 16)
    x = memory.allocate(4096).view(torch.int16).view(2, 32, 32)[:, 3:9, ::2]
    x.copy_(torch.arange(2 * 6 * 16).view(2, 6, 16))

    def negate(unit: torch.Tensor) -> torch.Tensor:
        return unit.neg_()[1]

    with workers(negate, memory) as some:
        process = some.start()
        (found,) = ask(process, x)
        assert found.tolist() == (-torch.arange(2 * 6 * 16).view(2, 6, 16)[1]).tolist()
        assert found.data_ptr() == x[1].data_ptr()
        with pytest.raises(ValueError, match="outside the memory"):
            process.pack(0, [torch.zeros(2, 2)])
        assert ask(process, x)[0].tolist() == torch.arange(2 * 6 * 16).view(2, 6, 16)[1].tolist()


def test_an_error_there_is_the_units_and_the_process_lives_on():
    with workers(lambda unit: 1 / unit) as some:
        process = some.start()
        low, error, high = ask(process, 2, 0, 4)
        assert (low, high) == (0.5, 0.25)
        assert isinstance(error, ZeroDivisionError)
        assert ask(process, 8) == [0.125]


def test_what_cannot_be_sent_is_an_error_here_or_there():
    with workers(lambda unit: lambda: None) as some:
        process = some.start()
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match="lambda"):
            process.pack(0, [lambda: None])
        assert "lambda" in str(ask(process, 1)[0])


def test_processes_ignore_the_signals_that_their_parent_gets():
    with workers(lambda unit: unit) as some:
        process = some.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert ask(process, "work") == ["work"]


def test_a_killed_process_does_nothing_any_more():
    with workers(lambda unit: unit) as some:
        process, other = some.start(), some.start()
        assert process.kill() == -signal.SIGKILL
        assert not Path(f"/proc/{process.pid}").exists()
        with pytest.raises(WorkerError):
            ask(process, "work")
        assert ask(other, "work") == ["work"]
    assert not Path(f"/proc/{other.pid}").exists()


def test_an_end_of_its_own_is_told():
    with workers(os._exit) as some:
        with pytest.raises(WorkerError, match="exit code 5"):
            ask(some.start(), 5)
        children = Path(f"/proc/{some._server._process.pid}/task/{some._server._process.pid}/children")
        assert children.read_text() == ""


def test_without_the_process_that_forks_there_are_no_new_ones():
    with workers(os._exit) as some:
        process = some.start()
        os.kill(some._server._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError):
            ask(process, 5)
        with pytest.raises(RuntimeError, match="has ended"):
            some.start()


def test_processes_end_with_their_parent():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        some = workers(time.sleep)
        for _ in range(3):
            process = some.start()
            process.send(process.pack(0, [1000]))
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b""  # returns when the last process is gone that has the pipe's other end


def test_its_parents_garbage_is_not_collected_there():
    """It may have had threads, which did not come along. In a process that conftest.py has not prepared."""
    code = """
import gc, os
from pipeline.engine.memory import SharedMemory
from pipeline.engine.worker import WorkerLauncher

class Pipeline:
    def __del__(self):
        if os.getpid() != parent:
            os._exit(7)

parent = os.getpid()
garbage = Pipeline()
garbage.itself = garbage
del garbage
with WorkerLauncher([lambda units: lambda: [gc.collect() >= 0]], SharedMemory(1)) as workers:
    process = workers.start()
    process.send(process.pack(0, [None]))
    assert process.receive() == [True]
assert gc.isenabled()
assert gc.get_freeze_count() == 0
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
