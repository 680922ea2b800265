"""Verifies the certificates of a whole run after the fact, from its manifest, inputs and outputs.

    for verdict in verify_certificates(output, inputs, max_pixels):
        verdict.is_true, verdict.found, verdict.problem

Files are read in the manifest's order, each tar once, one input and one output at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def verify_certificates(output: Address, inputs: Sequence[Address], max_pixels: int) -> Iterator[Verdict]:
    """A verdict for each line with a certificate about the file's own coefficients. inputs: where they are now.
    max_pixels: of an input. Raises OSError and RemoteError for a manifest that cannot be read."""
    certified = (r for r in read_records(output) if r.mismatches is not None and r.coefficients_from is None)
    for tars, records in groupby(certified, lambda record: (_tar(record.source), record.shard)):
        while group := list(records if any(tars) else islice(records, LOOSE_FILES)):
            yield from _verify(group, output, inputs, max_pixels)


def _tar(source: str) -> str:
    """The tar of a source; empty for a file of its own."""
    parts = source.split("/")
    return next(("/".join(parts[:end]) for end in range(1, len(parts)) if is_shard(parts[end - 1])), "")


def _verify(
    records: Sequence[Record], output: Address, inputs: Sequence[Address], max_pixels: int
) -> Iterator[Verdict]:
    left, outputs = {record.source: record for record in records}, _Outputs(output, records)
    for source, data in read_inputs(inputs, list(left)):
        yield _verdict(left.pop(source), data, outputs, max_pixels)
    yield from (Verdict(record, problem="the input cannot be read") for record in left.values())


def _verdict(record: Record, data: bytes, outputs: _Outputs, max_pixels: int) -> Verdict:
    try:
        bitstream, found = read_bitstream(data, max_pixels), 0
    except JpegError as error:
        return Verdict(record, problem=f"the input: {error}")
    for name in record.outputs:
        image = outputs.read(name)
        if image is None:
            return Verdict(record, problem=f"{name} cannot be read")
        try:
            found += count_mismatches(image, bitstream)
        except Exception as error:  # of any type that a decoding library raises
            return Verdict(record, problem=f"{name}: {error or repr(error)}")
    return Verdict(record, found)


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
        if self._shard is None:
            return read_output(self._output, name)
        while self._following is None or self._order[self._following[0]] < self._order[name]:
            self._following = next(self._shard, None)
            if self._following is None:
                return None
        found, data = self._following
        return data if found == name else None
