"""CPU seconds are counted once, whichever thread spent them."""

import time
from threading import Thread

from pipeline.engine.stopwatch import Stopwatch, Times


def spin(stopwatch: Stopwatch, stage: str, seconds: float) -> float:
    """Spends so much CPU time of this thread on the stage, or a little more. Returns how much it was."""
    with stopwatch(stage):
        begun = now = time.thread_time()
        while now < begun + seconds:
            now = time.thread_time()
    return now - begun


def in_a_worker(stopwatch: Stopwatch, stage: str, seconds: float, times: int, spent: list[float]) -> None:
    with stopwatch.worker():
        for _ in range(times):
            spent.append(spin(stopwatch, stage, seconds))


def test_stages_add_up_to_the_process_with_and_without_workers():
    """Workers that end while others measure do not count twice."""
    stopwatch = Stopwatch()
    begun, by_workers = time.process_time(), list[float]()
    workers = [Thread(target=in_a_worker, args=(stopwatch, "worker", 0.1, times, by_workers)) for times in (1, 5)]
    for worker in workers:
        worker.start()
    here = spin(stopwatch, "here", 0.3)
    for worker in workers:
        worker.join()
    here += spin(stopwatch, "here", 0.1)
    spent = time.process_time() - begun
    cpu = {stage: times.cpu for stage, times in stopwatch.stages.items()}
    assert abs(cpu["worker"] - sum(by_workers)) < 0.05
    assert abs(cpu["here"] - here) < 0.05
    assert sum(cpu.values()) <= spent


def test_what_another_process_measured_is_added():
    stopwatch = Stopwatch()
    spin(stopwatch, "decode", 0.01)
    before = stopwatch.stages["decode"].cpu
    stopwatch.merge({"decode": Times(2, 1), "network": Times(3, 4)})
    assert stopwatch.stages["decode"].cpu == before + 1
    assert stopwatch.stages["network"] == Times(3, 4)


def test_waiting_takes_wall_time_only():
    stopwatch = Stopwatch()
    with stopwatch("wait"):
        time.sleep(0.1)
    assert stopwatch.stages["wait"].wall >= 0.1
    assert stopwatch.stages["wait"].cpu < 0.05


def test_each_counts_what_the_items_take_and_not_what_is_done_with_them():
    stopwatch = Stopwatch()

    def slow() -> object:
        for item in "ab":
            time.sleep(0.05)
            yield item

    begun = time.perf_counter()
    for _ in stopwatch.each("read", slow()):
        time.sleep(0.1)
    assert 0.1 <= stopwatch.stages["read"].wall <= time.perf_counter() - begun - 0.2


def test_table_has_a_line_a_stage():
    stopwatch = Stopwatch()
    spin(stopwatch, "decode", 0.01)
    header, line = stopwatch.table(2.0).splitlines()
    assert header.split() == ["stage", "wall", "s", "CPU", "s", "CPU", "ms/MP"]
    assert line.startswith("decode")


def test_table_says_how_busy_the_stages_were():
    stopwatch = Stopwatch()
    stopwatch.merge({"read": Times(1, 1), "network": Times(6, 5)})
    header, *lines = stopwatch.table(2.0, seconds=4.0, workers={"network": 2}).splitlines()
    assert header.split()[-1] == "busy"
    assert [line.split()[-1] for line in lines] == ["25%", "75%"]
