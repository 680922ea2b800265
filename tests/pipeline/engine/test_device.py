"""A GPU that is lost ends the run, and no file is blamed for it; an error of a file is that file's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from jpegs import encode, photograph
from runs import fill, run, tiny_weights

from pipeline import restore
from pipeline.engine.device import DeviceLostError, guarded
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import Stage

LOST = torch.device("cuda", 99)
"""There is none, so it does not work, as a GPU after an illegal access."""

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@dataclass
class Numbered:
    number: int
    result: object = None


def merge(item: Numbered, unit: object, result: object) -> Numbered:
    item.result = result
    return item


def fail_at(number: int, late: bool) -> Callable[[Sequence[int]], Callable[[], Sequence[int]]]:
    """Work that fails for the unit `number`, when it is started or (late) when it is waited for."""

    def check(units: Sequence[int]) -> Sequence[int]:
        if number in units:
            raise RuntimeError("an illegal memory access was encountered")
        return units

    def start(units: Sequence[int]) -> Callable[[], Sequence[int]]:
        if late:
            return lambda: check(units)
        check(units)
        return lambda: units

    return start


def finished(device: torch.device, late: bool, found: list[Numbered]) -> None:
    """Runs 40 items, of which number 20 fails, and appends to `found` what comes out."""
    stage: Stage[Numbered] = Stage(
        split=lambda item: [item.number],
        do=guarded(fail_at(20, late), device),
        merge=merge,
        place="device",
        max_batch=lambda kind: 4,
    )
    with Scheduler([stage], merge_error, workers=2) as scheduler:
        found.extend(scheduler.run(map(Numbered, range(40))))


def merge_error(item: Numbered, error: Exception) -> Numbered:
    item.result = error
    return item


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_device_ends_the_run_and_no_item_fails(late):
    found: list[Numbered] = []
    with pytest.raises(DeviceLostError, match=r"cuda:99 does not work any more.*illegal memory access"):
        finished(LOST, late, found)
    assert not any(isinstance(item.result, Exception) for item in found)


@GPU
@pytest.mark.parametrize("late", [False, True])
def test_an_error_on_a_device_that_works_is_its_items(late):
    found: list[Numbered] = []
    finished(torch.device("cuda", 0), late, found)
    assert [item.number for item in found if isinstance(item.result, Exception)] == [20]


def test_the_command_says_so_and_leaves_the_inputs_to_the_next_run(tmp_path, monkeypatch, capfd):
    source, out = fill(tmp_path / "in", {"a.jpg": encode(photograph(24, 24))}), tmp_path / "out"
    options = ("--weights", tiny_weights(tmp_path), "--workers", "1")
    tiles = restore.Restorer.restore_tiles
    monkeypatch.setattr(restore.Restorer, "restore_tiles", lambda *_: guarded(fail_at(1, late=False), LOST)([1]))
    assert restore.main(["--input-dir", str(source), "--output-dir", str(out), *map(str, options)]) == 2
    assert "run the same command again" in capfd.readouterr().err
    monkeypatch.setattr(restore.Restorer, "restore_tiles", tiles)
    assert [line["status"] for line in run(source, out, *options).values()] == ["restored"]
