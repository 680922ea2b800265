"""Compilation of the CPU's kernels by numba, for this machine's instruction set, kept on disk for the next process.

numba itself keeps compiled code in a package's own folder, and does not notice when a function has changed that another
file's calls. Here it is kept in the user's cache, in a folder of its own for each state of the sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy", "no_cfunc_wrapper": True}


def cache_folder() -> Path:
    """Under XDG_CACHE_HOME or ~/.cache; where that cannot be written, this user's among the temporary files. Python's
    rules for __pycache__ hold: whoever can write there can run code as this user."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in sorted([*package.glob("*.py"), package.parent / "exact.py", package.parent / "libjpeg.py"]):
        digest.update(source.read_bytes())
    shared = Path(tempfile.gettempdir()) / f"jpeg-posterior-{os.getuid()}"
    roots = [shared]
    with suppress(RuntimeError):  # of a user without a home
        roots.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jpeg-posterior")
    for root in roots:
        folder = root / digest.hexdigest()[:16]
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and _is_own(folder) and (root is not shared or _is_own(root)):
            return folder
    raise RuntimeError(
        f"no folder for compiled code, of this user's alone: tried {' and '.join(map(str, roots))}; set XDG_CACHE_HOME"
    )


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user's in which no other one can put anything."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


FOLDER = cache_folder()


def _compiled(function: F, **options: Any) -> F:
    """numba reads its CACHE_DIR when a function is decorated; other users of numba keep their own."""
    config: Any = numba.config  # its attributes are set when numba is imported, from the environment
    before = config.CACHE_DIR
    config.CACHE_DIR = str(FOLDER)
    try:
        compiled: F = numba.njit(**OPTIONS, **options)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


def kernel(function: F) -> F:
    """Compiles what Python calls, when it is first called. It releases the GIL while it runs, and integers wrap."""
    return _compiled(function)


def jit(function: F) -> F:
    """The same for what only kernels call."""
    return _compiled(function, no_cpython_wrapper=True)


def inlined(function: F) -> F:
    """The same, inlined before type inference: for short functions of scalars."""
    return _compiled(function, inline="always")


@contextmanager
def compiling(entry: str, quiet: bool) -> Iterator[None]:
    """For a first call of the kernel `entry`: says so when it has to be compiled, and lets no other process compile it
    at the same time."""
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not quiet and not any(FOLDER.rglob(f"*.{entry}-*.nbi")):
            print(f"compiling {entry} for this CPU, once: up to a minute", file=sys.stderr, flush=True)
        try:
            yield
        finally:  # closing would not be enough: a process that was forked meanwhile has the file open, too
            fcntl.flock(lock, fcntl.LOCK_UN)
