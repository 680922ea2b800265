"""A process that forks others, at any time of a run.

A process that has threads, or CUDA, cannot be forked safely, and a run soon has both. So this one is forked before
there is any, has one thread, does nothing else, and forks the workers: those that a run starts with, and those in the
place of any that died. So they all have what the run's process had then (weights, options, shared memory).
"""

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
    """serve: what each process does with its end of a connection; when it returns, the process ends. Signals of a
    terminal are the run's business: these processes ignore them. They end when they are told, when the server is
    closed, and when the run's process is gone. Thread-safe."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self._serve, self._lock = serve, threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = multiprocessing.get_context("fork").Process(
            target=self._serve_requests, args=(theirs,), daemon=True
        )
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has its own handlers
        gc.freeze()  # for good in the child, where what had threads (DALI's pipelines) hangs or crashes if collected
        try:
            self._process.start()
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def fork(self) -> tuple[Connection, int]:
        """The connection to a new process, and its number. Raises RuntimeError when this server's own is gone."""
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            pid = self._request(_FORK, [theirs.fileno()])
        if pid < 0:
            raise RuntimeError(f"no process can be started: {os.strerror(-pid)}")
        return ours, pid

    def end(self, pid: int) -> int:
        """Kills a process, unless it has ended by itself. Its exit code, negative for a signal; never raises."""
        try:
            return self._request(_PID.pack(pid), [])
        except RuntimeError:
            return -signal.SIGKILL

    def close(self) -> None:
        """Kills all processes that are left, and the server's own."""
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
            raise RuntimeError("the process that starts workers is gone")
        return int(_PID.unpack(answer)[0])

    def _serve_requests(self, server: socket.socket) -> None:
        """The server's process."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._socket.close()  # a copy of the parent's end, which would hide that the parent is gone
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
        """The new process's number, or minus the error's that prevented it."""
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
    """The exit code. The server is the process's parent: until it has waited, the number is no other's."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
