"""Median times: of a GPU by CUDA events, of a CPU by alternating calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

CYCLES = 2_000_000_000
"""About a GPU's clock cycles in a second; the unit in which it is made to wait while a call is queued."""


def time_cuda(call: Callable[[int], object], sets: int, seconds: float, repetitions: int) -> float:
    """Median seconds of the device for `call(k)`; k cycles through `sets` sets of inputs. A result is kept until its
    set is used again, so that neither inputs nor results are in the L2 cache.

    The GPU waits before each call until the host has queued it, unless the call itself synchronises: so the time of a
    small kernel does not include its launch. Takes about `seconds`, and at most `repetitions` calls."""
    kept: list[object] = [None] * sets
    for k in range(sets):
        kept[k] = call(k)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    kept[0] = call(0)
    queued = time.perf_counter() - begun
    torch.cuda.synchronize()
    once = time.perf_counter() - begun
    wait = min(2 * queued + 20e-6, 0.05)
    times = max(3, min(repetitions, int(seconds / (once + wait))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for k, (start, end) in enumerate(events):
        torch.cuda._sleep(int(wait * CYCLES))
        start.record()
        kept[k % sets] = call(k % sets)
        end.record()
    torch.cuda.synchronize()
    return float(median(start.elapsed_time(end) for start, end in events)) / 1e3


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes read and written per second when `size` bytes are copied in the GPU's memory."""
    source = torch.zeros(size // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / time_cuda(lambda _: target.copy_(source), 1, 1.0, 50)


@dataclass(frozen=True)
class Cost:
    """Median seconds of one call. wall: wall time. cpu: CPU time of all threads of the process."""

    wall: float
    cpu: float


def time_side_by_side(calls: dict[str, Callable[[], object]], seconds: float, repetitions: int) -> dict[str, Cost]:
    """The calls take turns, so that other load on the machine affects all of them. Takes about `seconds`, with at least
    3 rounds and at most `repetitions`."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    for done in range(repetitions):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    return {name: Cost(median(walls[name]), median(cpus[name])) for name in calls}
