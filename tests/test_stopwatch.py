"""CPU seconds are counted once, whichever thread spent them."""

import time
from concurrent.futures import ThreadPoolExecutor

from pipeline.stopwatch import Stopwatch


def spin(stopwatch: Stopwatch, stage: str, seconds: float) -> None:
    """Spends so much CPU time of this thread on the stage."""
    with stopwatch(stage):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass


def test_stages_add_up_to_the_process_with_and_without_workers():
    stopwatch = Stopwatch()
    begun = time.process_time()
    with ThreadPoolExecutor(2, initializer=stopwatch.add_worker) as pool:
        workers = [pool.submit(spin, stopwatch, "worker", 0.2) for _ in range(3)]
        spin(stopwatch, "here", 0.3)
        for worker in workers:
            worker.result()
    stopwatch.forget_workers()
    spin(stopwatch, "here", 0.1)
    spent = time.process_time() - begun
    cpu = {stage: times.cpu for stage, times in stopwatch.stages.items()}
    assert abs(cpu["worker"] - 0.6) < 0.05
    assert abs(cpu["here"] - 0.4) < 0.05
    assert sum(cpu.values()) <= spent


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
