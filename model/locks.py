"""Locks of folders that one run at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from pathlib import Path


def lock_file(path: Path, shared: bool = False) -> int:
    """Creates and locks a file. Returns its descriptor, which holds the lock until it is closed. Warns if the file
    system has no locks. Raises BlockingIOError if another process holds the lock, OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(lock)
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process", str(path)) from error
        warnings.warn(
            f"{path.parent}: this file system does not support locks; do not start two runs on this folder",
            stacklevel=3,
        )
    return lock
