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


def test_each_thread_is_charged_with_its_own_time():
    stopwatch, spent = Stopwatch(), list[float]()
    threads = [Thread(target=lambda: spent.append(spin(stopwatch, "thread", 0.1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    here = spin(stopwatch, "here", 0.1)
    for thread in threads:
        thread.join()
    assert 0 <= stopwatch.stages["thread"].cpu - sum(spent) < 0.1
    assert 0 <= stopwatch.stages["here"].cpu - here < 0.1


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
    assert stopwatch.stages["wait"].cpu < stopwatch.stages["wait"].wall / 2


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
