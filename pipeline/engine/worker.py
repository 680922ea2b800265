"""A worker's own process: Python lets one thread run at a time, which is too few where the units of work are small.

The process is forked, so that it has everything that its parent had (weights, options), and is sent units of work, one
after another. It writes no file, so it can be killed at any moment.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from pipeline.engine.stopwatch import Stopwatch, Times

Function = Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
"""What a stage does; see stages.Stage.do."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerError(Exception):
    """A worker process is gone, and with it what it was working on."""


class WorkerProcess:
    """For one thread at a time, but for `kill`. dead: it can do nothing any more."""

    def __init__(
        self,
        functions: Sequence[Function],
        prepare: Callable[[], None],
        stopwatch: Stopwatch,
        others: Sequence[WorkerProcess],
    ) -> None:
        """Forks. functions: what it can do, by number. prepare: called first in the process. stopwatch: gets the times
        that the process's copy of it measures. others: those that there are already."""
        self._functions, self._prepare, self._stopwatch, self._others = functions, prepare, stopwatch, others
        self.dead = False
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(theirs,), daemon=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has its own handlers
        gc.freeze()  # for good in the child, where what had threads (DALI's pipelines) hangs or crashes if collected
        try:
            self._process.start()
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def do(self, number: int, work: Any) -> Any:
        """The result of a function for one unit of work. Raises what the function raised there, and WorkerError when
        the process has died."""
        try:
            self._connection.send_bytes(pickle.dumps((number, work), 5))
            result, error, times = pickle.loads(self._connection.recv_bytes())
        except BaseException as failure:  # a message may be half on its way
            self.kill()
            if isinstance(failure, (EOFError, OSError)):
                code = self._process.exitcode
                raise WorkerError(f"the process that worked on it ended with exit code {code}") from failure
            raise
        self._stopwatch.merge(times)
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        """Ends the process at once; a thread that waits for it wakes up."""
        self.dead = True
        self._process.kill()
        self._process.join()

    def _serve(self, connection: Connection) -> None:
        """The process. Signals are its parent's business: it ends by `kill`, or when its parent is gone."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for process in (*self._others, self):
            process._connection.close()  # a copy of the parent's end, which would hide that the parent is gone
        self._prepare()
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return
            connection.send_bytes(self._answer(message))

    def _answer(self, message: bytes) -> bytes:
        times: dict[str, Times] = self._stopwatch.stages
        times.clear()
        try:
            number, work = pickle.loads(message)
            (result,) = self._functions[number]([work])()
            return pickle.dumps((result, None, dict(times)), 5)
        except Exception as error:
            return pickle.dumps((None, _portable(error), dict(times)), 5)


def _portable(error: Exception) -> Exception:
    """The error, if it survives pickling, or another one that says the same."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
