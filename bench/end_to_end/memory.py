"""Peak memory of a function: it runs in a fresh process, whose memory and descendants' are sampled from outside."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

INTERVAL = 0.1
"""Seconds between two samples."""

START_METHOD = "spawn"
"""multiprocessing's start method for the measured process: it shares nothing with this one."""

MEASURE = f"of all processes together, shared pages counted once, sampled every {1000 * INTERVAL:.0f} ms"


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, int]:
    """(the function's result, the peak memory of its process and descendants in bytes). Raises what the function
    raises. Function, arguments and result must be picklable."""
    peak, done = 0, False
    with ProcessPoolExecutor(1, multiprocessing.get_context(START_METHOD)) as executor:
        root = executor.submit(os.getpid).result()
        future = executor.submit(function, *args, **kwargs)
        while not done:
            peak = max(peak, taken_by_tree(root))
            done = bool(wait([future], INTERVAL).done)
        return future.result(), peak


def taken_by_tree(root: int) -> int:
    """Bytes of a process and its descendants. Pages that they have written are divided among the processes that share
    them (PSS). Mapped files, nearly all of them libraries, count once, as in the process that has most of them."""
    own, files = 0, 0
    for pid in descendants(root):
        try:
            sizes = _sizes(Path(f"/proc/{pid}/smaps_rollup"))
        except OSError:  # it has ended in the meantime
            continue
        own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        files = max(files, sizes["Rss"] - sizes["Anonymous"])
    return own + files


def descendants(root: int) -> list[int]:
    """The process ids of `root` and of all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            children.setdefault(int(after_name.split()[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Bytes by field of a smaps_rollup file."""
    fields = [line.split() for line in path.read_text().splitlines()[1:]]
    return {name.rstrip(":"): 1024 * int(kibibytes) for name, kibibytes, *_ in fields}
