"""A stage: what is done with each item of a stream, by units of work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
U = TypeVar("U")
Place = Literal["worker", "device"]


@dataclass(frozen=True)
class Stage(Generic[T]):
    """split: an item → its units of work, to be done in any order and in parallel; none: the item skips the stage.
    do: starts work on units; returns a function that blocks until it is done and returns their results, in order. It
        has no side effects but on the units' output buffers: a worker may be another process, to which units travel
        pickled, their tensors as places in shared memory.
    merge: (item, unit, result) → the item with the result; called from several threads.
    place: where `do` runs: in a worker, or, many units at a time, in a thread of its own that drives a device and
        begins the next before it ends the last.
    kind, max_batch: which units may go together (those of equal kind), and how many of a kind. A worker takes so many
        only where enough is left for the others."""

    split: Callable[[T], Sequence[Any]]
    do: Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
    merge: Callable[[T, Any, Any], T]
    place: Place = "worker"
    kind: Callable[[Any], Hashable] = lambda unit: None
    max_batch: Callable[[Any], int] = lambda kind: 1


def item_stage(function: Callable[[T], T], wanted: Callable[[T], bool]) -> Stage[T]:
    """A stage that takes an item as it is and returns its successor, for those that are `wanted`."""
    return Stage(
        split=lambda item: (item,) if wanted(item) else (),
        do=lambda items: lambda: [function(item) for item in items],
        merge=lambda item, unit, result: result,
    )


def group_by_key(units: Sequence[U], key: Callable[[U], Hashable]) -> dict[Hashable, list[int]]:
    """The numbers of units, those together that have an equal key."""
    groups: dict[Hashable, list[int]] = {}
    for number, unit in enumerate(units):
        groups.setdefault(key(unit), []).append(number)
    return groups


def batches(stage: Stage[T], units: Sequence[Any]) -> Iterator[list[Any]]:
    """The units, as many together as may go."""
    for kind, numbers in group_by_key(units, stage.kind).items():
        step = stage.max_batch(kind)
        yield from ([units[n] for n in numbers[first : first + step]] for first in range(0, len(numbers), step))


def run_stages(stages: Sequence[Stage[T]], item: T) -> T:
    """Runs an item through all stages, one after another, in this thread. Raises what a stage raises."""
    for stage in stages:
        for units in batches(stage, stage.split(item)):
            for unit, result in zip(units, stage.do(units)(), strict=True):
                item = stage.merge(item, unit, result)
    return item


def run_unit(stage: Stage[T], unit: Any) -> Any:
    """Of one unit, or the Exception in its place."""
    try:
        return stage.do([unit])()[0]
    except Exception as error:
        return error


def start_batch(stage: Stage[T], units: Sequence[Any]) -> Callable[[], Sequence[Any]]:
    try:
        return stage.do(units)
    except Exception as error:
        return _raising(error)


def _raising(error: Exception) -> Callable[[], Sequence[Any]]:
    def finish_batch() -> Sequence[Any]:
        raise error

    return finish_batch


def finish_batch(stage: Stage[T], units: Sequence[Any], begun: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Results of what was begun, or an Exception for one. Units that fail together are tried one by one: an error is
    one item's."""
    try:
        return begun()
    except Exception as error:
        if len(units) == 1:
            return [error]
    return [finish_batch(stage, [unit], start_batch(stage, [unit]))[0] for unit in units]
