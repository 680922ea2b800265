"""A worker's own process: Python lets one thread run at a time, which is too few where the units of work are small.

The process is forked, so that it has everything that its parent had (weights, options), and is sent units of work, a
few at a time. It writes no file, so it can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn, Self

from pipeline.engine.fork_server import ForkServer
from pipeline.engine.memory import SharedMemory
from pipeline.engine.stopwatch import Stopwatch

Function = Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
"""What a stage does; see stage.Stage.do."""


class WorkerError(Exception):
    """A worker process is gone, and with it what it was working on."""


class WorkerLauncher:
    """Starts worker processes and, when it is closed, kills those that are left. A context manager.

    functions: what they can do, by number. memory: what they share; tensors that are sent lie there. prepare: called
    first in each. stopwatch: gets the times that a process's copy of it measures. It forks when it is made: threads and
    CUDA may be used from then on."""

    def __init__(
        self,
        functions: Sequence[Function],
        memory: SharedMemory,
        prepare: Callable[[], None] = lambda: None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._functions, self._memory, self._prepare = functions, memory, prepare
        self._stopwatch = stopwatch or Stopwatch()
        self._server = ForkServer(self._serve)

    def start(self) -> WorkerProcess:
        """From any thread. Raises RuntimeError when the process is gone that forks them."""
        return WorkerProcess(self._server, self._memory, self._stopwatch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def _serve(self, connection: Connection) -> None:
        """A worker's process, until its parent closes the connection or is gone."""
        self._prepare()
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                connection.send_bytes(self._process_message(connection.recv_bytes()))

    def _process_message(self, message: bytes) -> bytes:
        """To (number, units): for each unit its result, pickled, or the Exception in its place; and the times."""
        times = self._stopwatch.stages
        times.clear()
        number, units = pickle.loads(message)
        outcomes = [self._run_unit(self._functions[number], unit) for unit in units]
        return pickle.dumps((outcomes, dict(times)), 5)

    def _run_unit(self, function: Function, unit: Any) -> bytes | Exception:
        try:
            (result,) = function([unit])()
            return self._memory.dumps(result)
        except Exception as error:
            return _picklable(error)


class WorkerProcess:
    """For one thread at a time, but for `kill`: sends messages with units of work, and receives in turn what became of
    them."""

    def __init__(self, server: ForkServer, memory: SharedMemory, stopwatch: Stopwatch) -> None:
        self._server, self._memory, self._stopwatch, self._dead = server, memory, stopwatch, False
        self.connection, self.pid = server.fork()

    def pack(self, number: int, units: Sequence[Any]) -> bytes:
        """A message: for a function, by its number, that does each unit by itself. Raises what pickling raises."""
        return self._memory.dumps((number, units))

    def send(self, message: bytes) -> None:
        """Waits if the process is busy and the message is large. Raises WorkerError when it has died."""
        try:
            self.connection.send_bytes(message)
        except BaseException as failure:
            self._end(failure)

    def receive(self) -> list[Any]:
        """The results of the oldest message's units; where the function raised an Exception, that. Raises
        WorkerError."""
        try:
            outcomes, times = pickle.loads(self.connection.recv_bytes())
        except BaseException as failure:
            self._end(failure)
        self._stopwatch.merge(times)
        return [pickle.loads(outcome) if isinstance(outcome, bytes) else outcome for outcome in outcomes]

    def kill(self) -> int | None:
        """Ends the process at once; a thread that waits for it wakes up. Its exit code, the first time."""
        if self._dead:
            return None
        self._dead = True
        return self._server.end(self.pid)

    def _end(self, failure: BaseException) -> NoReturn:
        """A message may be half on its way."""
        code = self.kill()
        if isinstance(failure, EOFError | OSError):
            raise WorkerError(f"the process that worked on it ended with exit code {code}") from failure
        raise failure


def _picklable(error: Exception) -> Exception:
    """The error, if it survives pickling, or another one that says the same."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
