"""Verifies the certificates of a whole run after the fact, from its manifest, inputs and outputs.

    for verdict in verdicts(judge(check, max_pixels) for check in read_checks(output, inputs)):
        verdict.is_true, verdict.found, verdict.problem

Files are read in the manifest's order, each tar once, one input and one output at a time. What is read can be judged in
other processes: engine/verification.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from pipeline.inputs.names import is_shard
from pipeline.inputs.remote import Address
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.files import read_inputs, read_output, read_outputs
from pipeline.outputs.manifest import read_records
from pipeline.outputs.record import Record
from pipeline.outputs.verify import count_mismatches

LOOSE_FILES = 256
"""Files outside of tars, with images outside of tars, whose lines are held at a time."""


@dataclass(frozen=True)
class Check:
    """An output of a certified record, and what it is verified with.

    data, image: the JPEG file and the output; None if they could not be read, and when the output has been judged.
    found: mismatches; None if they could not be counted, for the reason `problem`."""

    record: Record
    name: str
    data: bytes | None = None
    image: bytes | None = None
    found: int | None = None
    problem: str = ""

    def judged(self, found: int | None = None, problem: str = "") -> Check:
        """With the result, and without the files."""
        return replace(self, data=None, image=None, found=found, problem=problem)


@dataclass(frozen=True)
class Verdict:
    """found: mismatches in all outputs of the record's input; None if they could not be counted, for the reason
    `problem`."""

    record: Record
    found: int | None = None
    problem: str = ""

    @property
    def is_true(self) -> bool:
        """Whether the certificate states the number that was found."""
        return self.found == self.record.mismatches


def certified(output: Address) -> Iterator[Record]:
    """The lines with a certificate about the file's own coefficients. Raises OSError and RemoteError for a manifest
    that cannot be read."""
    return (r for r in read_records(output) if r.mismatches is not None and r.coefficients_from is None)


def read_checks(output: Address, inputs: Sequence[Address]) -> Iterator[Check]:
    """Every output of a line of `certified`; those of a record follow each other. inputs: where they are now. Raises as
    `certified`."""
    for tars, records in groupby(certified(output), lambda record: (_tar(record.source), record.shard)):
        while group := list(records if any(tars) else islice(records, LOOSE_FILES)):
            yield from _read(group, output, inputs)


def judge(check: Check, max_pixels: int) -> Check:
    """Compresses an output again and counts the mismatches. max_pixels: of an input."""
    if check.data is None:
        return check.judged(problem="the input cannot be read")
    try:
        bitstream = read_bitstream(check.data, max_pixels)
    except JpegError as error:
        return check.judged(problem=f"the input: {error}")
    if check.image is None:
        return check.judged(problem=f"{check.name} cannot be read")
    try:
        return check.judged(count_mismatches(check.image, bitstream))
    except Exception as error:  # of any type that a decoding library raises
        return check.judged(problem=f"{check.name}: {error or repr(error)}")


def verdicts(judged: Iterable[Check]) -> Iterator[Verdict]:
    """A verdict for each record, from the judged checks of its outputs."""
    for _, group in groupby(judged, lambda check: check.record.source):
        checks = list(group)
        problem = next((check.problem for check in checks if check.problem), "")
        found = None if problem else sum(check.found or 0 for check in checks)
        yield Verdict(checks[0].record, found, problem)


def _tar(source: str) -> str:
    """The tar of a source; empty for a file of its own."""
    parts = source.split("/")
    return next(("/".join(parts[:end]) for end in range(1, len(parts)) if is_shard(parts[end - 1])), "")


def _read(records: Sequence[Record], output: Address, inputs: Sequence[Address]) -> Iterator[Check]:
    left, outputs = {record.source: record for record in records}, _Outputs(output, records)
    for source, data in read_inputs(inputs, list(left)):
        record = left.pop(source)
        for name in record.outputs or ("",):
            yield Check(record, name, data, outputs.read(name))
    yield from (Check(record, "") for record in left.values())


class _Outputs:
    """The outputs of records which have the same shard or none. A shard has its members in the order of the records; it
    is read once, from the start."""

    def __init__(self, output: Address, records: Sequence[Record]) -> None:
        self._output = output
        self._shard = read_outputs(output, records) if records[0].shard is not None else None
        names = (name for record in records for name in record.outputs)
        self._order = {name: position for position, name in enumerate(names)}
        self._following: tuple[str, bytes] | None = None

    def read(self, name: str) -> bytes | None:
        """A file, in the order of the records; None if it cannot be read."""
        if name not in self._order:
            return None
        if self._shard is None:
            return read_output(self._output, name)
        while self._following is None or self._order[self._following[0]] < self._order[name]:
            self._following = next(self._shard, None)
            if self._following is None:
                return None
        found, data = self._following
        return data if found == name else None
