"""What becomes of the units of a worker process that dies."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.engine.memory import SharedMemory
from pipeline.engine.work_queue import ScheduledItem, WorkUnit
from pipeline.engine.worker import WorkerError, WorkerLauncher
from pipeline.engine.worker_pool import WorkerPool


def outcomes(run: Callable[[Sequence[int]], Callable[[], list[int]]], batches: list[list[int]]) -> dict[int, object]:
    """Sends the batches to one process, whose work is `run`."""
    entry = ScheduledItem(0, None, lambda: None, stage=0)
    with WorkerLauncher([run], SharedMemory(1)) as launcher:
        pool = WorkerPool[None](launcher.start, 1)
        for batch in batches:
            pool.submit([WorkUnit(entry, number) for number in batch])
        done = {}
        while pool.has_outcomes:
            done |= {unit.work: outcome for unit, outcome in pool.collect()}
        pool.close()
    return done


def test_a_unit_does_not_fail_because_another_of_its_batch_ended_the_process(tmp_path: Path):
    """5 ends its process whenever it runs; 6 and 7, of the same batch and of the next, the first time only."""

    def tries(number: int) -> int:
        return (tmp_path / str(number)).stat().st_size

    def deadly(units: Sequence[int]) -> Callable[[], list[int]]:
        (number,) = units
        with (tmp_path / str(number)).open("a") as file:
            file.write("x")
        if number == 5 or (number in (6, 7) and tries(number) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda: [10 * number]

    done = outcomes(deadly, [[3, 4, 5, 6], [7, 8]])
    assert isinstance(done.pop(5), WorkerError)
    assert done == {3: 30, 4: 40, 6: 60, 7: 70, 8: 80}
    assert [tries(number) for number in range(3, 9)] == [2, 2, 3, 2, 2, 1]
