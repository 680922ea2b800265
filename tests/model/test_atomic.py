"""Atomic writes: a file has its old content or its new one."""

import multiprocessing
import resource

import pytest

from model.atomic import write_atomically

FORK = multiprocessing.get_context("fork")


def test_a_write_that_fails_midway_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, bytes(5000))

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
