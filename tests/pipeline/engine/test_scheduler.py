"""Items through stages with real threads and processes: in order, bounded, shared out, and never waiting for ever."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from counted import CountedItem, fail, note, over

from pipeline.engine.memory import SharedMemory
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import Stage, item_stage
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.worker import WorkerError, WorkerLauncher, WorkerProcess

KINDS = {
    "in turn": {"workers": 1},
    "threads": {"workers": 3},
    "processes": {"workers": 3},
}


@contextmanager
def line(
    kind: str,
    function: Callable[[int], object],
    together: int = 1,
    stopwatch: Stopwatch | None = None,
    **options: object,
) -> Iterator[Scheduler[CountedItem]]:
    """Each item's units are (number, index), of which `function` is done, then one more stage says that it is over."""
    stage: Stage[CountedItem] = Stage(
        split=lambda job: [(job.number, n) for n in range(job.units)],
        do=lambda units: lambda: [function(*unit) for unit in units],
        merge=note,
        max_batch=lambda kind: together,
    )
    stages = [stage, item_stage(over, lambda job: job.units > 0)]
    with ExitStack() as stack:
        processes = None
        if kind == "processes":
            do = [stage.do for stage in stages]
            processes = stack.enter_context(WorkerLauncher(do, SharedMemory(1), stopwatch=stopwatch))
        yield stack.enter_context(Scheduler(stages, fail, processes=processes, **(KINDS[kind] | options)))


def uneven(number: int, index: int) -> tuple[int, int]:
    time.sleep(0.004 * ((7 * number + 3 * index) % 5))
    return number, index


@pytest.mark.parametrize("kind", KINDS)
def test_all_units_of_all_items_are_done_once_and_come_in_order(kind):
    jobs = [CountedItem(n, units=n % 4) for n in range(60)]
    with line(kind, uneven) as stages:
        done = list(stages.run(iter(jobs)))
    assert [job.number for job in done] == list(range(60))
    for job in done:
        assert job.error is None
        assert sorted(job.trace[:-1]) == [(job.number, n) for n in range(job.units)]
        assert job.trace[-1:] == (["over"] if job.units else [])


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_items_and_the_others_go_on(kind):
    def picky(number: int, index: int) -> int:
        if (number, index) in {(3, 1), (7, 0)}:
            raise ValueError(f"no {number}")
        return index

    with line(kind, picky) as stages:
        done = list(stages.run(CountedItem(n, units=3) for n in range(20)))
    assert [job.number for job in done] == list(range(20))
    assert {job.number: str(job.error) for job in done if job.error} == {3: "no 3", 7: "no 7"}
    assert all(("over" in job.trace) == (job.error is None) for job in done)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_does_not_survive_pickling_says_what_it_was(kind):
    class LocalError(Exception):
        pass

    def broken(number: int, index: int) -> None:
        raise LocalError(f"of {number}")

    with line(kind, broken) as stages:
        (job,) = stages.run([CountedItem(5)])
    assert "of 5" in str(job.error)
    assert "LocalError" in f"{type(job.error).__name__}: {job.error}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_fails_ends_the_run_with_its_error(kind):
    def source() -> Iterator[CountedItem]:
        yield CountedItem(0)
        raise OSError("gone")

    with line(kind, uneven) as stages, pytest.raises(OSError, match="gone"):
        list(stages.run(source()))
    assert no_threads_left()


@pytest.mark.parametrize("kind", ["in turn", "threads"])
def test_what_is_no_exception_ends_the_run(kind):
    def leave(number: int, index: int) -> int:
        raise SystemExit(number) if number == 4 else ValueError

    with line(kind, leave) as stages, pytest.raises(SystemExit):
        list(stages.run(CountedItem(n) for n in range(100)))
    assert no_threads_left()


def test_a_failure_of_its_own_ends_the_run():
    def fails(job: CountedItem, error: Exception) -> CountedItem:
        raise RuntimeError("a bug")

    stages = Scheduler([item_stage(lambda job: 1 / 0, lambda job: True)], fails, workers=2)
    with stages, pytest.raises(RuntimeError, match="a bug"):
        list(stages.run([CountedItem(0), CountedItem(1)]))


def no_threads_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.daemon and "_guard" in thread.name]


class Scales:
    """Admits jobs of a weight, that of number 3 another, up to a limit."""

    def __init__(self, weight: int, limit: int, third: int = 0) -> None:
        self.weight, self.limit, self.third, self.inside = weight, limit, third or weight, 0

    def __call__(self, job: CountedItem, alone: bool) -> tuple[CountedItem, Callable[[], None]] | None:
        weight = self.third if job.number == 3 else self.weight
        if not alone and self.inside + weight > self.limit:
            return None
        self.inside += weight
        return job, lambda: self.leave(weight)

    def leave(self, weight: int) -> None:
        self.inside -= weight


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_slow_reader_of_the_results_holds_up_the_source(kind):
    read, most_ahead = 0, 0

    def source() -> Iterator[CountedItem]:
        nonlocal read
        for number in range(40):
            read += 1
            yield CountedItem(number)

    with line(kind, lambda number, index: number, admit=Scales(10, 50), max_items=100) as stages:
        for done, _ in enumerate(stages.run(source())):
            time.sleep(0.005)
            most_ahead = max(most_ahead, read - done)
    assert most_ahead <= 6  # five that weigh as much as is allowed, and one that waits at the door


def test_an_item_that_weighs_more_than_is_allowed_goes_alone():
    together = []

    def work(number: int, index: int) -> int:
        running.add(number)
        time.sleep(0.01)
        together.append(set(running))
        running.discard(number)
        return number

    running: set[int] = set()
    with line("threads", work, admit=Scales(1, 20, third=100), max_items=100) as stages:
        assert [job.number for job in stages.run(CountedItem(n) for n in range(8))] == list(range(8))
    assert [group for group in together if 3 in group] == [{3}]


def test_all_workers_share_out_the_units_of_one_item():
    """A barrier that only opens when all three work on the one item at once."""
    barrier = threading.Barrier(3, timeout=10)
    with line("threads", lambda number, index: barrier.wait() >= 0) as stages:
        (job,) = stages.run([CountedItem(0, units=3)])
    assert job.error is None


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_leaving_early_ends_all_threads_and_processes(kind):
    scales = Scales(1, 20)
    with line(kind, uneven, admit=scales) as stages:
        for job in stages.run(CountedItem(n, units=3) for n in range(10**9)):
            if job.number == 5:
                break
        pids = [slot.process.pid for slot in stages._worker_pool._slots] if stages._worker_pool else []
    assert no_threads_left()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(pids) == (3 if kind == "processes" else 0)
    assert scales.inside == 0


def test_interrupted_processes_end_at_once(request):
    def endless(number: int, index: int) -> None:
        time.sleep(1000)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), line("processes", endless) as stages:
        threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
        list(stages.run([CountedItem(0, units=4)]))
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize("together", [1, 5])
def test_a_process_that_is_killed_fails_its_item_only(tmp_path, together):
    """The others that it had are done by the one in its place. An item that ends that, too, has had its chance."""

    def deadly(number: int, index: int) -> int:
        with (tmp_path / str(number)).open("a") as tries:
            tries.write("x")
        if number == 4 or (number == 7 and (tmp_path / "7").stat().st_size == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    with line("processes", deadly, together, max_items=100) as stages:
        done = list(stages.run(CountedItem(n) for n in range(60)))
    assert [job.number for job in done if job.error] == [4]
    assert isinstance(done[4].error, WorkerError)
    assert "exit code -9" in str(done[4].error)
    pids = {job.trace[0] for job in done if not job.error}
    assert os.getpid() not in pids
    assert (tmp_path / "4").stat().st_size in ((2,) if together == 1 else (2, 3))


def test_small_units_are_sent_together_as_long_as_all_are_busy():
    sent = []

    def count(process: WorkerProcess, number: int, units: Sequence[object]) -> bytes:
        if number == 0:
            sent.append(len(units))
        return pack(process, number, units)

    pack = WorkerProcess.pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerProcess, "pack", count)
        with line("processes", uneven, 8, max_items=1000) as stages:
            assert [job.number for job in stages.run(CountedItem(n) for n in range(400))] == list(range(400))
    assert sum(sent) == 400
    assert max(sent) == 8
    assert sent[-1] == 1


def test_processes_that_die_with_nothing_to_do_are_replaced():
    with line("processes", uneven) as stages:
        jobs = stages.run(iter([CountedItem(n, units=3) for n in range(60)]))
        next(jobs)
        time.sleep(0.2)
        for slot in stages._worker_pool._slots:
            os.kill(slot.process.pid, signal.SIGKILL)
        rest = list(jobs)
    assert len(rest) == 59
    assert not any(job.error for job in rest)


def test_what_cannot_be_sent_is_its_items_error():
    """There or back. Some are large, for which a process has to be waited for; one ends its process."""

    def deadly(units: Sequence[CountedItem]) -> Callable[[], list[CountedItem]]:
        if units[0].number == 77:
            os._exit(3)
        return lambda: [CountedItem(job.number, trace=[lambda: None] if job.number % 9 == 4 else []) for job in units]

    def unsendable(number: int) -> CountedItem:
        return CountedItem(number, trace=[lambda: None] if number % 9 == 3 else [bytes(100_000)] if number % 2 else [])

    stage, processes = replace(item_stage(over, lambda job: True), do=deadly), WorkerLauncher([deadly], SharedMemory(1))
    with processes, Scheduler([stage], fail, workers=2, max_items=1000, processes=processes) as stages:
        done = list(stages.run(map(unsendable, range(100))))
    assert [job.number for job in done] == list(range(100))
    assert {job.number for job in done if job.error} == {n for n in range(100) if n % 9 in (3, 4)} | {77}


def test_times_measured_in_processes_are_added_up():
    stopwatch = Stopwatch()

    def spin(number: int, index: int) -> None:
        with stopwatch("spin"):
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass

    with line("processes", spin, stopwatch=stopwatch) as stages:
        list(stages.run(CountedItem(n) for n in range(10)))
    assert 0.2 <= stopwatch.stages["spin"].cpu < 0.4  # each is counted once
    assert stages.busy >= stopwatch.stages["spin"].wall
