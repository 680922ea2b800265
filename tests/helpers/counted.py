"""Items for the scheduler that write down what happens to them."""

from dataclasses import dataclass, field


@dataclass
class CountedItem:
    """number: what the item is. units: as many as it is cut into."""

    number: int
    units: int = 1
    trace: list[object] = field(default_factory=list)
    error: Exception | None = None


def fail(job: CountedItem, error: Exception) -> CountedItem:
    job.error = error
    return job


def note(job: CountedItem, unit: object, result: object) -> CountedItem:
    job.trace.append(result)
    return job


def over(job: CountedItem) -> CountedItem:
    job.trace.append("over")
    return job
