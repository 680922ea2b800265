"""Ctrl-C and SIGTERM: deferring them around critical sections, and ending the process after one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the block has ended; then raises the first one that arrived. Does nothing outside
    the main thread, because Python runs signal handlers only there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            if handler is not None:  # None: installed from C, which Python cannot restore
                signal.signal(which, handler)
    for number in arrived[:1]:
        signal.raise_signal(number)


def exit_process(code: int) -> NoReturn:
    """Ends the process with an exit code. After a signal (code > 128) it skips the interpreter's shutdown, which could
    crash while a thread is still inside native code."""
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
