"""A worker in a process of its own: the GIL serialises small work units.

The process is forked, so that it inherits weights and options, and receives a few work units at a time. It writes no
files and can be killed at any moment."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Self

from pipeline.engine.fork_server import ForkServer
from pipeline.engine.memory import SharedMemory
from pipeline.engine.stopwatch import Stopwatch

Function = Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
"""A stage's work; see stage.Stage.do."""


class WorkerError(Exception):
    """A worker process ended while it worked on a unit."""


class WorkerLauncher:
    """Starts worker processes, and kills the remaining ones when it is closed. A context manager.

    functions: what the workers can run, by index.
    memory: shared memory; tensors in messages must lie in it.
    prepare: called first in each worker.
    stopwatch: receives the times that workers measure.

    The fork server is forked by the constructor; afterwards threads and CUDA may be used."""

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
        """Starts a worker, from any thread. Raises RuntimeError if the fork server is gone."""
        return WorkerProcess(self._server, self._memory, self._stopwatch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()

    def _serve(self, connection: Connection) -> None:
        """The worker's main loop; ends when the parent closes the connection or is gone."""
        self._prepare()
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                connection.send_bytes(self._process_message(connection.recv_bytes()))

    def _process_message(self, message: bytes) -> bytes:
        """(index of a function, units), pickled → (for each unit its pickled result or the Exception, the times),
        pickled."""
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
    """A connection to a worker: sends work units, and receives their results in the same order. For one thread at a
    time, except `kill`."""

    def __init__(self, server: ForkServer, memory: SharedMemory, stopwatch: Stopwatch) -> None:
        self._server, self._memory, self._stopwatch, self._dead = server, memory, stopwatch, False
        self.connection, self.pid = server.fork()

    def pack(self, number: int, units: Sequence[Any]) -> bytes:
        """A message: units for the function with this index, which runs each unit by itself. Raises what pickling
        raises."""
        return self._memory.dumps((number, units))

    def send(self, message: bytes) -> None:
        """Sends a message; blocks if the worker is busy and the message is large. Raises WorkerError if it has died."""
        try:
            self.connection.send_bytes(message)
        except BaseException as failure:
            self._end(failure)

    def receive(self) -> list[Any]:
        """The results of the oldest message's units, with an Exception in the place of a unit that raised it. Raises
        WorkerError if the worker has died."""
        try:
            outcomes, times = pickle.loads(self.connection.recv_bytes())
        except BaseException as failure:
            self._end(failure)
        self._stopwatch.merge(times)
        return [pickle.loads(outcome) if isinstance(outcome, bytes) else outcome for outcome in outcomes]

    def kill(self) -> int | None:
        """Ends the process at once; a thread that waits for it continues with an error. Returns its exit code, None if
        it was ended before."""
        if self._dead:
            return None
        self._dead = True
        return self._server.end(self.pid)

    def _end(self, failure: BaseException) -> NoReturn:
        """Kills the worker, as a message may be incomplete, and raises WorkerError or the failure itself."""
        code = self.kill()
        if isinstance(failure, EOFError | OSError):
            raise WorkerError(f"the process that worked on it ended with exit code {code}") from failure
        raise failure


def _picklable(error: Exception) -> Exception:
    """The error if it can be pickled, else a RuntimeError with the same text."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
