"""A stage of the scheduler: splits items into work units, runs them, and merges the results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from traceback import clear_frames
from typing import Any, Generic, Literal, NoReturn, TypeVar

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
Place = Literal["worker", "device"]


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A stage.

    split: item → its work units, which may run in any order and in parallel; with none, the item skips the stage.
    do: starts work on units; the function that it returns blocks until they are done and returns their results, in
        order. It may only change the units' output buffers: it may run in another process, to which units are pickled,
        with tensors as references to shared memory.
    merge: (item, unit, result) → the item with the result; called from several threads.
    place: where `do` runs: in a worker, or in the one thread that drives a device and starts the next batch before it
        waits for the last.
    kind, max_batch: units of equal kind may form a batch, of at most `max_batch(kind)` units. Workers take fewer where
        other workers would have nothing to do.
    check: called after an error on the device, with the error if it was a single unit's; what it raises ends the run,
        and no item fails."""

    split: Callable[[T], Sequence[Any]]
    do: Callable[[Sequence[Any]], Callable[[], Sequence[Any]]]
    merge: Callable[[T, Any, Any], T]
    place: Place = "worker"
    kind: Callable[[Any], Hashable] = lambda unit: None
    max_batch: Callable[[Any], int] = lambda kind: 1
    check: Callable[[Exception | None], None] = lambda error: None


def item_stage(function: Callable[[T], T], wanted: Callable[[T], bool]) -> Stage[T]:
    """A stage whose only work unit is the item itself. wanted: whether an item takes part."""
    return Stage(
        split=lambda item: (item,) if wanted(item) else (),
        do=lambda items: lambda: [function(item) for item in items],
        merge=lambda item, unit, result: result,
    )


def uses_device(stages: Iterable[Stage[T]]) -> bool:
    """Whether a device runs one of the stages."""
    return any(stage.place == "device" for stage in stages)


def group_by_key(units: Sequence[U], key: Callable[[U], Hashable]) -> dict[Hashable, list[int]]:
    """key(unit) → the indices of the units that have this key."""
    groups: dict[Hashable, list[int]] = {}
    for number, unit in enumerate(units):
        groups.setdefault(key(unit), []).append(number)
    return groups


def map_groups(units: Sequence[U], key: Callable[[U], Hashable], function: Callable[[list[U]], Iterable[V]]) -> list[V]:
    """Calls `function` once for each group of units with an equal key; its results, in the order of the units."""
    results: dict[int, V] = {}
    for numbers in group_by_key(units, key).values():
        results |= zip(numbers, function([units[n] for n in numbers]), strict=True)
    return [results[n] for n in range(len(units))]


def batches(stage: Stage[T], units: Sequence[Any]) -> Iterator[list[Any]]:
    """Splits units into batches of one kind, of at most `max_batch(kind)` units."""
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
    """The result of one unit, or the Exception that it raised."""
    try:
        return stage.do([unit])()[0]
    except Exception as error:
        return error


def start_batch(stage: Stage[T], units: Sequence[Any]) -> Callable[[], Sequence[Any]]:
    """Calls `stage.do`; an Exception is raised by the returned function instead."""
    try:
        return stage.do(units)
    except Exception as error:
        return partial(_raise, _without_locals(error))


def _without_locals(error: Exception) -> Exception:
    """The error, without the local variables of the functions that it passed through: it is kept for a while, and a
    batch's tensors may be most of a GPU's memory."""
    link: BaseException | None = error
    while link is not None:
        clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return error


def _raise(error: Exception) -> NoReturn:
    raise error


def finish_batch(stage: Stage[T], units: Sequence[Any], begun: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """The results of a started batch, with an Exception in the place of a unit that failed. After an error each unit is
    run again by itself, so that only the item that caused it fails. Raises what the stage's `check` raises."""
    try:
        return begun()
    except Exception as error:
        stage.check(error if len(units) == 1 else None)
        if len(units) == 1:
            return [_without_locals(error)]
    return [finish_batch(stage, [unit], start_batch(stage, [unit]))[0] for unit in units]
