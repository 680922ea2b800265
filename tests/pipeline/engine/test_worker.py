"""A worker's process: what it answers, and when it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.worker import WorkerError, WorkerProcess


def hand(function: Callable[[Any], Any], others: Sequence[WorkerProcess] = ()) -> WorkerProcess:
    return WorkerProcess([lambda units: lambda: [function(unit) for unit in units]], lambda: None, Stopwatch(), others)


def test_answers_come_from_another_process_and_large_ones_too():
    one = hand(lambda unit: (os.getpid(), unit))
    process, answer = one.do(0, bytes(50_000_000))
    assert process != os.getpid()
    assert len(answer) == 50_000_000
    one.kill()


def test_an_error_there_is_raised_here_and_the_process_lives_on():
    one = hand(lambda unit: 1 / unit)
    with pytest.raises(ZeroDivisionError):
        one.do(0, 0)
    assert one.do(0, 4) == 0.25
    one.kill()


def test_what_cannot_be_sent_is_an_error_here():
    one = hand(lambda unit: unit)
    with pytest.raises((AttributeError, TypeError)):
        one.do(0, lambda: None)
    assert one.dead


def test_an_answer_that_cannot_be_sent_is_an_error_here():
    one = hand(lambda unit: lambda: None)
    with pytest.raises(Exception, match="lambda"):
        one.do(0, 1)


def test_processes_ignore_the_signals_that_their_parent_gets():
    one = hand(lambda unit: unit)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(one._process.pid, number)
    assert one.do(0, "work") == "work"
    one.kill()
    with pytest.raises(WorkerError):
        one.do(0, "work")


def test_processes_end_with_their_parent():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        hands: list[WorkerProcess] = []
        for _ in range(3):
            hands.append(hand(str, hands))
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b""  # returns when the last process is gone that has the pipe's other end


def test_its_parents_garbage_is_not_collected_there():
    """It may have had threads, which did not come along. In a process that conftest.py has not prepared."""
    code = """
import gc, os
from pipeline.engine.worker import WorkerProcess
from pipeline.engine.stopwatch import Stopwatch

class Pipeline:
    def __del__(self):
        if os.getpid() != parent:
            os._exit(7)

parent = os.getpid()
garbage = Pipeline()
garbage.itself = garbage
del garbage
one = WorkerProcess([lambda units: lambda: [gc.collect() and None]], lambda: None, Stopwatch(), [])
one.do(0, None)
one.kill()
assert gc.isenabled()
assert gc.get_freeze_count() == 0
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
