"""Signals wait for what must not be cut in two."""

import os
import signal
import threading

import pytest

from pipeline.engine.signals import defer_signals


def test_an_interrupt_waits_until_what_is_inside_is_done():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    done = []
    try:
        with pytest.raises(KeyboardInterrupt):
            with defer_signals():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inside")
            done.append("after")
        assert done == ["inside"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_nothing_to_wait_for():
    done = []

    def work() -> None:
        with defer_signals():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
