"""A process that forks worker processes at any time of a run.

A process with threads or a CUDA context cannot be forked safely, and a run soon has both. The fork server is forked
before that, stays single-threaded, and forks the workers: those of the start and replacements for those that die. Each
worker inherits what the run's process had when the server was started: weights, options, shared memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PID = struct.Struct("q")
_FORK = b"fork"


class ForkServer:
    """Forks processes that run `serve` with their end of a connection and end when it returns.

    The processes ignore SIGINT and SIGTERM, which the run's process handles. They end when `end` or `close` kills them
    or when the run's process is gone. Thread-safe."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self._serve, self._lock = serve, threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = multiprocessing.get_context("fork").Process(
            target=self._serve_requests, args=(theirs,), daemon=True
        )
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has its own handlers
        gc.freeze()  # frozen in the child: collecting DALI's pipelines there, without their threads, would hang
        try:
            self._process.start()
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def fork(self) -> tuple[Connection, int]:
        """Returns a connection to a new process, and its pid. Raises RuntimeError if the server is gone or no process
        can be started."""
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            pid = self._request(_FORK, [theirs.fileno()])
        if pid < 0:
            raise RuntimeError(f"no process can be started: {os.strerror(-pid)}")
        return ours, pid

    def end(self, pid: int) -> int:
        """Kills a process unless it has ended. Returns its exit code, negative for a signal; never raises."""
        try:
            return self._request(_PID.pack(pid), [])
        except RuntimeError:
            return -signal.SIGKILL

    def close(self) -> None:
        """Kills the remaining processes and the server."""
        with self._lock:
            self._socket.close()
        self._process.join()

    def _request(self, message: bytes, descriptors: list[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._socket, [message], descriptors)
                answer = self._socket.recv(_PID.size)
            except OSError:
                answer = b""
        if not answer:
            raise RuntimeError("the process that starts workers has ended")
        return int(_PID.unpack(answer)[0])

    def _serve_requests(self, server: socket.socket) -> None:
        """The main loop of the server's process."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._socket.close()  # while this copy of the parent's end is open, the parent's exit goes unnoticed
        pids: set[int] = set()
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, 64, 1)
            if not message:
                break
            if message == _FORK:
                answer = self._fork_child(server, *descriptors)
                if answer > 0:
                    pids.add(answer)
            else:
                (pid,) = _PID.unpack(message)
                pids.discard(pid)
                answer = _kill(pid)
            server.send(_PID.pack(answer))
        for pid in pids:
            _kill(pid)

    def _fork_child(self, server: socket.socket, descriptor: int) -> int:
        """Returns the new process's pid, or the negative errno of the failure."""
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            return -(error.errno or 1)
        if pid == 0:
            server.close()
            code = 1
            try:
                self._serve(Connection(descriptor))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(descriptor)
        return pid


def _kill(pid: int) -> int:
    """Returns the exit code. The pid cannot have been reused: the server is the parent and has not waited for it
    yet."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
