"""The manifest's lines, the identity of the run that they belong to, and which lines count as finished work."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from pipeline.inputs.names import digest, first_names
from pipeline.inputs.remote import Address

Status = Literal["restored", "passed_through", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)

Retry = Literal["", "transient", "all"]
"""Which failures a run tries again: none, those with another cause than the file, or all."""

IDENTITY = "manifest.run.json"
"""The file beside a manifest with its RunIdentity."""


class SinkError(Exception):
    """The output cannot be used: the run has to stop. Finished inputs stay finished."""


@dataclass(frozen=True)
class RunIdentity:
    """What determines the outputs' bytes, and must therefore be equal when a run is resumed.

    weights: their hash.
    input: the input folder, one line per input; sources are paths below it.

    A field that an older version did not write had its default."""

    weights: str
    mode: str
    seed: int = 0
    samples: int = 1
    format: str = "png"
    shards: bool = False
    input: str = ""
    frontend: str = "libjpeg"
    noise: int = 1
    device: str = ""
    dtype: str = ""
    tile: int = 0
    batch: int = 0
    compile: bool = False
    strength: float = 1.0
    filters: str = ""
    provenance: bool = False
    upright: bool = False


MOST_NAMED = 3
"""Inputs of each kind that a message names."""

METADATA_FIELDS = ("provenance",)
"""Fields of RunIdentity that do not affect pixels: a run may be resumed with other values, with a message."""

NUMERICAL_FIELDS = ("device", "dtype", "tile", "batch", "compile")
"""Fields of RunIdentity that only affect rounding: outputs agree to 50 dB or better, with the same certificate. A run
may be resumed with other values, with a message."""


@dataclass(frozen=True)
class Record:
    """The result of one input: a manifest line, field by field.

    size: (height, width) in pixels.
    quality: the nearest of libjpeg's.
    tables, weights: hashes.
    coefficients: their number in each output.
    mismatches: coefficients that differ after compressing again, over all outputs of the input; sample_mismatches: of
        each of several samples.
    outputs: paths below the output folder, a tar counting as a folder.
    shard, shard_lines: with tar output, the output tar, and in its last line the number of its lines; with fewer lines
        the shard is incomplete.
    coefficients_from: the front end, if it recovered the coefficients from decoded pixels. The certificate then refers
        to those; `recovered`, if counted, is how many of them equal the file's.
    strength: if it is not 1.
    excess: of 16-bit images, which have no certificate: the largest distance of a coefficient from its interval, in
        quantisation steps.
    transient: true for a failure with another cause than the file (memory, a worker process, a disk), which
        `--retry-failed` tries again."""

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
        """Pixels of all restored outputs together; 0 for an input that was not restored."""
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
        """One line without its end, in ASCII: names that are not valid Unicode are escaped."""
        values = vars(self).items()
        return json.dumps({name: value for name, value in values if value is not None or name not in _RARE})

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """The inverse of `to_json`; ignores unknown fields. Raises ValueError if the line is not a record."""
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
        vars(record).update(known)  # five times as fast as __init__: manifests have many lines
        return record


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Record)}
"""The default of every field; fields without one are required."""

_RARE = frozenset(("coefficients_from", "recovered", "transient", "strength", "excess"))
"""Fields that are left out of a line if they are None."""


def describe_counts(counts: Mapping[str, int]) -> str:
    """`3 restored, 1 failed`: the statuses that `counts` has, in the order of STATUSES."""
    return ", ".join(f"{counts[status]:,} {status.replace('_', ' ')}" for status in STATUSES if status in counts)


class FinishedInputs:
    """What a manifest's lines say is finished: digests of sources, and of the keys of those with outputs outside of
    shards; complete shards; counts by status."""

    def __init__(self) -> None:
        self.sources: set[bytes] = set()
        self.keys: set[bytes] = set()
        self.shards: set[str] = set()
        self.counts: Counter[str] = Counter()

    def finished(self, source: str) -> bool:
        """Whether the source has a line that counts."""
        return digest(source) in self.sources

    def key_taken(self, key: str) -> bool:
        """Whether there are outputs of this key, outside of shards."""
        return digest(key) in self.keys

    def note(self, block: Sequence[Record]) -> None:
        """Adds the lines of one input or of one shard."""
        for record in block:
            self.sources.add(digest(record.source))
            self.counts[record.status] += 1
            if record.outputs and record.shard is None:
                self.keys.add(digest(record.key))
        shard = block[0].shard
        if shard is not None:
            self.shards.add(shard)


def valid_blocks(
    lines: Iterable[bytes],
    done: FinishedInputs,
    exist: Callable[[Iterable[str]], bool],
    retry_failed: Retry,
) -> Iterator[tuple[int, int, list[Record]]]:
    """Yields the byte ranges of the valid lines of a manifest with their records, in order, and adds them to `done`.

    A shard's lines are one range, valid only together and with their tar. A line is invalid if it is incomplete, if its
    source has a line already, if `exist` does not find its outputs (names below the output folder), or if it is a
    failure that is tried again."""
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
                failed = [record for record in block if record.status == "failed"] if retry_failed else []
                again = any(retry_failed == "all" or record.transient for record in failed)
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
    """Raises SinkError if the identity `found` of an earlier run differs from `run`, and names the differences.
    Differences in NUMERICAL_FIELDS and METADATA_FIELDS are only printed to stderr."""
    wanted = asdict(run)
    known = {field.name: field.default for field in fields(run) if field.default is not MISSING} | found
    differing = [name for name in known | wanted if known.get(name) != wanted.get(name)]

    def differences(names: Iterable[str]) -> str:
        return ", ".join(_difference(name, known.get(name), wanted.get(name)) for name in names)

    if refused := [name for name in differing if name not in NUMERICAL_FIELDS + METADATA_FIELDS]:
        raise SinkError(
            f"{where}: holds the outputs of another run: {differences(refused)}; "
            "choose another folder, or use --overwrite, which starts a new manifest and leaves the old images"
            + f" (if the inputs have only moved, write their new place into {IDENTITY})"
            * (refused == ["input"])
        )
    if changed := [name for name in differing if name in METADATA_FIELDS]:
        print(f"{where}: continues with another {differences(changed)}: the pixels are the same", file=sys.stderr)
    if changed := [name for name in differing if name in found and name in NUMERICAL_FIELDS]:
        print(
            f"{where}: continues with another {differences(changed)}: outputs agree with the earlier run's "
            "to 50 dB or better, not bit for bit",
            file=sys.stderr,
        )


def _difference(name: str, before: object, now: object) -> str:
    """For a message. Of several inputs only those that differ are named, and of these the first few."""
    old, new = str(before).splitlines(), str(now).splitlines()
    if name != "input" or max(len(old), len(new)) < 2:
        return f"{name} {before!r} (now {now!r})"
    changes = (("no longer has", set(old).difference(new)), ("has in addition", set(new).difference(old)))
    told = " and ".join(f"{how} {first_names(sorted(map(repr, which)), MOST_NAMED)}" for how, which in changes if which)
    return f"input (now it {told or 'has another order'})"


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
