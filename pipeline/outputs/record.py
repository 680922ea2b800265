"""A manifest's lines: what became of an input, what run that was part of, and which of them count as finished work."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from pipeline.inputs.names import digest
from pipeline.inputs.remote import Address

Status = Literal["restored", "passed_through", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)

IDENTITY = "manifest.run.json"
"""The file beside a manifest that holds its RunIdentity."""


class SinkError(Exception):
    """The output cannot be used, or no longer: the run has to stop. What is finished stays finished."""


@dataclass(frozen=True)
class RunIdentity:
    """What decides an output's bytes, and so what must not change between a run and its continuation.

    `weights` is their hash, `input` the input folder: sources are paths below it, and mean other files below another;
    several inputs stand in a line each.
    A field that an older version has not written had its default.
    """

    weights: str
    mode: str
    seed: int = 0
    samples: int = 1
    format: str = "png"
    shards: bool = False
    input: str = ""
    frontend: str = "libjpeg"
    noise: int = 1
    dtype: str = ""
    tile: int = 0
    batch: int = 0
    compile: bool = False
    strength: float = 1.0
    filters: str = ""
    provenance: bool = False


METADATA_FIELDS = ("provenance",)
"""Fields of RunIdentity that decide nothing about the pixels: a run may go on with others, and it is said."""

NUMERICAL_FIELDS = ("dtype", "tile", "batch", "compile")
"""Fields of RunIdentity that decide an output's last bits only. With other values it is the same to 50 dB or better,
under the same certificate: a run may go on with them, and it is said."""


@dataclass(frozen=True)
class Record:
    """What became of one input: a manifest line, field by field.

    `size` is (height, width) in pixels, `quality` the nearest of libjpeg's, `tables` and `weights` are hashes.
    `mismatches` counts, over all of the input's outputs together, the coefficients that do not come back, of
    `coefficients` in each; for several samples `sample_mismatches` has each one's. `outputs` are paths below the output
    folder, a tar counting as a folder. With tar output `shard` is the output tar, and its last line has the number of
    its lines in `shard_lines`: without as many the shard is not whole.

    `coefficients_from` is the front end that recovered the coefficients from decoded pixels, where they are not read
    from the bitstream. The certificate is then about those, of which, if that was counted, `recovered` are the file's.

    `strength` is said where it is not 1. `excess` is an image's of 16 bits, which has no certificate: by how many
    quantisation steps, at most, a coefficient lies outside its interval.

    `transient` is true of a failure that was not the file's: memory, a worker process or a disk. `--retry-failed` tries
    again.
    """

    key: str
    source: str
    status: Status
    reason: str = ""
    size: tuple[int, int] | None = None
    sampling: str | None = None
    quality: int | None = None
    tables: str | None = None
    seed: int | None = None
    mode: str | None = None
    weights: str | None = None
    coefficients: int | None = None
    coefficients_from: str | None = None
    recovered: int | None = None
    mismatches: int | None = None
    sample_mismatches: tuple[int, ...] | None = None
    outputs: tuple[str, ...] = ()
    shard: str | None = None
    shard_lines: int | None = None
    transient: bool | None = None
    strength: float | None = None
    excess: float | None = None

    @property
    def pixels(self) -> int:
        """Pixels of all restored outputs together."""
        if self.status != "restored" or self.size is None:
            return 0
        return self.size[0] * self.size[1] * len(self.outputs)

    def failed(self, reason: str, transient: bool = False) -> Self:
        """The line of this input when it has failed: no outputs, no certificate."""
        return replace(
            self,
            status="failed",
            reason=reason,
            mismatches=None,
            sample_mismatches=None,
            excess=None,
            outputs=(),
            transient=transient or None,
        )

    def to_json(self) -> str:
        """One line without its end, in ASCII: names that are not valid Unicode survive as escapes."""
        values = vars(self).items()
        return json.dumps({name: value for name, value in values if value is not None or name not in _RARE})

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """The inverse of `to_json`. Raises ValueError if the line is not a record; unknown fields are ignored."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        known = _DEFAULTS | values
        if len(known) > len(_DEFAULTS):
            known = {name: known[name] for name in _DEFAULTS}
        for name in ("size", "sample_mismatches", "outputs"):
            if isinstance(known[name], list):
                known[name] = tuple(known[name])
        if not (isinstance(known["key"], str) and isinstance(known["source"], str)):
            raise ValueError("a record needs a key and a source")
        if known["status"] not in STATUSES or not isinstance(known["outputs"], tuple):
            raise ValueError(f"no such status or outputs: {known['status']!r}")
        record = object.__new__(cls)
        vars(record).update(known)  # as __init__ does, in a fifth of its time: manifests have many lines
        return record


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Record)}
"""Of every field; those without one have to be given."""

_RARE = frozenset(("coefficients_from", "recovered", "transient", "strength", "excess"))
"""Fields that only those lines have of which they say something."""


def describe_counts(counts: Mapping[str, int]) -> str:
    """`3 restored, 1 failed`: the statuses that `counts` has, in the order of STATUSES."""
    return ", ".join(f"{counts[status]:,} {status.replace('_', ' ')}" for status in STATUSES if status in counts)


class FinishedInputs:
    """What the lines of a manifest say is finished: digests of sources, whole shards, and counts."""

    def __init__(self) -> None:
        self.sources: set[bytes] = set()
        self.shards: set[str] = set()
        self.counts: Counter[str] = Counter()

    def note(self, block: Sequence[Record]) -> None:
        """Count these lines in: one input's, or a whole shard's."""
        for record in block:
            self.sources.add(digest(record.source))
            self.counts[record.status] += 1
        shard = block[0].shard
        if shard is not None:
            self.shards.add(shard)


def valid_blocks(
    lines: Iterable[bytes],
    done: FinishedInputs,
    exist: Callable[[Iterable[str]], bool],
    retry_failed: bool,
) -> Iterator[tuple[int, int, list[Record]]]:
    """Byte ranges of the good lines of a manifest, and their records, which are noted in `done`, in order.

    A shard's lines are one range, good only all together and with their tar. A line is not good when it is torn, when
    its source has one already, when `exist` does not find the outputs (names below the output folder), or, with
    `retry_failed`, when it is of a transient failure.
    """
    start = 0
    block: list[Record] = []
    block_start = 0
    for line in lines:
        end = start + len(line)
        record = _parse(line)
        if record is None or digest(record.source) in done.sources:
            block = []
        else:
            if not block or record.shard is None or record.shard != block[0].shard:
                block, block_start = [], start
            block.append(record)
            if record.shard is None or record.shard_lines is not None:
                again = retry_failed and any(record.transient for record in block)
                if record.shard_lines in (None, len(block)) and not again and exist(_outputs(block)):
                    done.note(block)
                    yield block_start, end, block
                block = []
        start = end


def identity_text(run: RunIdentity) -> bytes:
    """The content of the file IDENTITY."""
    return (json.dumps(asdict(run), indent=1) + "\n").encode()


def read_identity(output: Address) -> dict[str, object] | None:
    """The fields of an output folder's RunIdentity; {} if its file is damaged, None if there is none. Raises OSError
    and RemoteError."""
    try:
        found = json.loads((output / IDENTITY).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def check_same_run(where: str, found: dict[str, object], run: RunIdentity) -> None:
    """Raises SinkError if what an earlier run has written down about itself is not `run`, saying what differs. A
    difference in the fields of `NUMERICAL_FIELDS` is only printed, to stderr."""
    wanted = asdict(run)
    known = {field.name: field.default for field in fields(run) if field.default is not MISSING} | found
    differing = [name for name in known | wanted if known.get(name) != wanted.get(name)]

    def said(names: Iterable[str]) -> str:
        return ", ".join(f"{name} {known.get(name)!r} (now {wanted.get(name)!r})" for name in names)

    if refused := [name for name in differing if name not in NUMERICAL_FIELDS + METADATA_FIELDS]:
        raise SinkError(
            f"{where}: holds the outputs of another run: {said(refused)}; "
            "choose another folder, or start afresh with --overwrite"
        )
    if changed := [name for name in differing if name in METADATA_FIELDS]:
        print(f"{where}: goes on with another {said(changed)}: the pixels are the same", file=sys.stderr)
    if changed := [name for name in differing if name in found and name in NUMERICAL_FIELDS]:
        print(
            f"{where}: goes on with another {said(changed)}: outputs agree with the earlier run's to 50 dB or better, "
            "not bit for bit",
            file=sys.stderr,
        )


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return Record.from_json(line)
    except (ValueError, TypeError):
        return None


def _outputs(block: Sequence[Record]) -> set[str]:
    shard = block[0].shard
    if shard is not None:
        return {shard} if any(record.outputs for record in block) else set()
    return set(block[0].outputs)
