"""Batches of a stage: what remains of one that failed."""

import traceback
import weakref

import pytest

from pipeline.engine.stage import Stage, finish_batch, start_batch


class Activations:
    """As a network leaves them, in the GPU's memory, until nothing refers to them."""


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_without_memory_leaves_none_occupied(late):
    """Its units are tried again one by one, and their errors are kept until their files are reported."""
    made, alive = [], []

    def compute(units):
        held = Activations()
        made.append(weakref.ref(held))
        alive.append(sum(reference() is not None for reference in made))
        try:
            raise ValueError("inside")
        except ValueError as error:
            raise MemoryError(f"for {units}") from error

    def do(units):
        if late:
            return lambda: compute(units)
        return compute(units)

    stage = Stage(split=lambda item: (), do=do, merge=lambda item, unit, result: item, place="device")
    units = [1, 2, 3]
    outcomes = finish_batch(stage, units, start_batch(stage, units))
    assert alive == [1, 1, 1, 1]
    assert not any(reference() for reference in made)
    assert [str(error) for error in outcomes] == ["for [1]", "for [2]", "for [3]"]
    assert "in compute" in "".join(traceback.format_exception(outcomes[0]))
