"""Ctrl-C and SIGTERM, and what they must not cut in two."""

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
    """Both wait until what is inside is done. Only in the main thread is there anything to do: others are not
    interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            if handler is not None:  # one that Python did not set cannot be set again
                signal.signal(which, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def exit_process(code: int) -> NoReturn:
    """Ends the process. After an interruption a thread may be left amid what cannot be interrupted, on which the
    interpreter's own end could crash."""
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
