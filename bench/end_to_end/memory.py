"""The peak memory of a function: it runs in a fresh process, which is watched from outside with all its descendants."""

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
"""Seconds between two looks."""

START_METHOD = "spawn"
"""Of multiprocessing: a process that has nothing of this one's."""

MEASURE = f"of all processes together, shared pages once, looked at every {1000 * INTERVAL:.0f} ms"


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, int]:
    """What the function returns or raises, and the most bytes that its process and those below it took at any look.
    Function, arguments and result go pickled."""
    peak = 0
    with ProcessPoolExecutor(1, multiprocessing.get_context(START_METHOD)) as executor:
        root = executor.submit(os.getpid).result()
        future = executor.submit(function, *args, **kwargs)
        while not wait([future], INTERVAL).done:
            peak = max(peak, taken_by_tree(root))
        return future.result(), peak


def taken_by_tree(root: int) -> int:
    """Bytes of a process and its descendants. What they have written is shared out among those that share it (PSS);
    files in memory, which are libraries nearly all, count once, as the process has them that has most."""
    own, files = 0, 0
    for pid in descendants(root):
        try:
            sizes = _sizes(Path(f"/proc/{pid}/smaps_rollup"))
        except OSError:  # it has ended meanwhile
            continue
        own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        files = max(files, sizes["Rss"] - sizes["Anonymous"])
    return own + files


def descendants(root: int) -> list[int]:
    """Itself, its children, theirs and so on."""
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
    """Bytes by name."""
    fields = [line.split() for line in path.read_text().splitlines()[1:]]
    return {name.rstrip(":"): 1024 * int(kibibytes) for name, kibibytes, *_ in fields}
