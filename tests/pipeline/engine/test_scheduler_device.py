"""The scheduler's device: batches of several items' units, and errors that end the run."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from counted import CountedItem, fail, note, over

from pipeline.engine.device import DeviceError, DeviceLostError, check_gpu, network_memory
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import Stage, item_stage


class Device:
    """Adds one to numbers, up to `together` of one parity at a time, and writes down what it was given."""

    def __init__(self, together: int = 4, hardware: str = "cpu") -> None:
        self.together, self.hardware = together, torch.device(hardware)
        self.batches: list[list[int]] = []
        self.pending = self.most_pending = 0

    def begin(self, units: list[int]) -> Callable[[], list[int]]:
        self.batches.append(list(units))
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        if 13 in units:
            raise ValueError("thirteen")
        return lambda: self.end(units)

    def begin_late(self, units: list[int]) -> Callable[[], list[int]]:
        """Does it all, and fails, when it is waited for."""

        def begin_and_end() -> list[int]:
            return self.begin(units)()

        return begin_and_end

    def end(self, units: list[int]) -> list[int]:
        time.sleep(0.002)
        self.pending -= 1
        return [unit + 1 for unit in units]

    def stage(self) -> Stage[CountedItem]:
        return Stage(
            split=lambda job: [job.number] * job.units,
            do=self.begin,
            merge=note,
            place="device",
            kind=lambda unit: unit % 2,
            max_batch=lambda kind: self.together,
            check=partial(check_gpu, self.hardware),
        )


@pytest.mark.parametrize("workers", [1, 3])
def test_a_device_gets_units_of_several_items_in_batches_of_one_kind(workers):
    device = Device()
    with Scheduler([device.stage(), item_stage(over, lambda job: True)], fail, workers=workers, max_items=50) as stages:
        done = list(stages.run(CountedItem(n, units=1 + n % 3) for n in range(60)))
    for job in done:
        if job.number == 13:
            assert str(job.error) == "thirteen"
        else:
            assert job.trace == [job.number + 1] * (1 + job.number % 3) + ["over"]
    assert all(len({unit % 2 for unit in batch}) == 1 for batch in device.batches)
    assert max(map(len, device.batches)) == 4
    assert sum(len(batch) == 4 for batch in device.batches) > len(device.batches) / 2
    assert device.most_pending >= 2


def test_a_device_at_work_is_given_full_batches_only():
    """Any batch takes as long as a full one. Units arrive while the first is at work."""
    device, all_there = Device(together=4), threading.Event()

    def arriving() -> Iterator[CountedItem]:
        yield from (CountedItem(number) for number in range(0, 18, 2))
        all_there.set()

    def begin(units: list[int]) -> Callable[[], list[int]]:
        ending = device.begin(units)
        return lambda: ending() if all_there.wait(60) else []

    with Scheduler([replace(device.stage(), do=begin)], fail, workers=1, max_items=50) as scheduler:
        list(scheduler.run(arriving()))
    assert [len(batch) for batch in device.batches[1:-1]] == [4] * (len(device.batches) - 2)
    assert sum(map(len, device.batches)) == 9


@pytest.mark.parametrize("of_the_network", [True, False])
def test_lack_of_memory_for_a_single_unit_ends_the_run_if_it_is_the_networks(of_the_network):
    """There it takes as much as a full batch: every later one would fail, too. Elsewhere the file may be large."""
    device, found = Device(), []

    def full(units: list[int]) -> Callable[[], list[int]]:
        device.batches.append(list(units))
        with network_memory() if of_the_network else nullcontext():
            raise torch.OutOfMemoryError("CUDA out of memory")

    ending = pytest.raises(DeviceError, match=r"smaller --batch") if of_the_network else nullcontext()
    with Scheduler([replace(device.stage(), do=full)], fail, workers=3) as scheduler, ending:
        found.extend(scheduler.run(CountedItem(n) for n in range(60)))
    assert min(map(len, device.batches)) == 1
    assert len([item for item in found if isinstance(item.error, torch.OutOfMemoryError)]) == 60 * (not of_the_network)


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_device_ends_the_run_and_no_item_fails(late):
    device, found = Device(hardware="cuda:99"), []  # there is none, so it works as little as one that is lost
    start = device.begin_late if late else device.begin
    stages = [replace(device.stage(), do=start), item_stage(over, lambda job: True)]
    scheduler = Scheduler(stages, fail, workers=3, name=lambda item: f"file {item.number}")
    with scheduler, pytest.raises(DeviceLostError, match="cuda:99 does not work") as ended:
        found.extend(scheduler.run(CountedItem(n) for n in range(60)))
    assert not any(job.error for job in found)
    (note,) = ended.value.__notes__
    assert note.startswith("on the device were file ")
    assert "file 13" in note
