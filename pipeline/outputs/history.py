"""The duration of each run into an output folder: one JSON line per run, beside the manifest.

On a disk the lines are in `manifest.history.jsonl`, a rank's in `manifest.history.<rank>-of-<ranks>.jsonl`; in an
object store each is an object, `manifest.history/<time>-<random>.jsonl`. Runs that were interrupted or had no inputs to
process are not recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.outputs.provenance import program_version
from pipeline.outputs.record import SinkError

HISTORY = "manifest.history"


@dataclass(frozen=True)
class RunSummary:
    """One run.

    started: UTC, ISO 8601.
    seconds, inputs: of this run.
    megapixels: of restored outputs.
    version: of this program."""

    started: str
    seconds: float
    inputs: int
    megapixels: float
    device: str
    dtype: str
    workers: int
    version: str

    @property
    def speed(self) -> float:
        """Megapixels per second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


def append_run(
    output: Address, part: str, *, seconds: float, inputs: int, megapixels: float, device: str, dtype: str, workers: int
) -> None:
    """Appends the line of a run that ends now, unless it had no inputs. part: the rank's, or empty. Raises
    SinkError."""
    if not inputs:
        return
    started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
    run = RunSummary(
        started, round(seconds, 3), inputs, round(megapixels, 6), device, dtype, workers, program_version()
    )
    line = (json.dumps(asdict(run)) + "\n").encode()
    name = f"{HISTORY}.{part}.jsonl" if part else f"{HISTORY}.jsonl"
    try:
        if isinstance(output, Remote):
            (output / HISTORY / f"{started.replace(':', '')}-{os.urandom(4).hex()}.jsonl").write_bytes(line)
        else:
            with (output / name).open("ab", buffering=0) as file:
                file.write(line)
    except (OSError, RemoteError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise SinkError(
            f"{output / name}: cannot be written: {what}; the outputs and their manifest are complete"
        ) from error


def read_history(output: Address) -> list[RunSummary]:
    """All runs, ordered by their start. Raises OSError and RemoteError."""
    runs = (_parse(line) for place in _places(output) for line in place.read_bytes().splitlines())
    return sorted((run for run in runs if run is not None), key=lambda run: run.started)


def clear_history(output: Address) -> None:
    """Removes all lines. Raises OSError and RemoteError."""
    for place in _places(output):
        place.unlink()


def _places(output: Address) -> Iterator[Address]:
    if isinstance(output, Remote):
        names = (name for name in (output / HISTORY).listing()[0] if name.endswith(".jsonl"))
        yield from (output / HISTORY / name for name in sorted(names))
    else:
        yield from sorted(output.glob(f"{HISTORY}*.jsonl"))


def _parse(line: bytes) -> RunSummary | None:
    """None for an incomplete line."""
    try:
        run = RunSummary(**json.loads(line))
        return run if isinstance(run.started, str) and run.seconds + run.megapixels + run.inputs >= 0 else None
    except (ValueError, TypeError):
        return None
