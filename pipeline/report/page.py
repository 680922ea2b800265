"""Creates the page: reads the manifest once, chooses the gallery's files, and fills the template."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model.atomic import write_atomically
from pipeline.inputs.remote import Address, Remote, RemoteError
from pipeline.outputs.files import inputs_of
from pipeline.outputs.history import RunSummary, read_history
from pipeline.outputs.manifest import read_records
from pipeline.outputs.provenance import program_version
from pipeline.outputs.record import IDENTITY, SinkError, describe_counts, read_identity
from pipeline.report.charts import quality_chart, sampling_chart, status_chart
from pipeline.report.gallery import GalleryEntry, make_gallery
from pipeline.report.pictures import HEAT
from pipeline.report.statistics import Selection, Statistics

REPORT = "report.html"

GALLERY = 12
"""Default number of files in the gallery."""

RUNS = 20
"""The number of runs that the report lists, the last ones."""

_NAME_LENGTH = 240
_HERE = Path(__file__).parent


def write_report(output: Address, inputs: Sequence[Address] = (), gallery: int = GALLERY) -> Address:
    """Writes the report of an output folder; returns its address, `output / REPORT`.

    inputs: where they are now; empty: where they were when the run began.
    gallery: number of files to show; those that cannot be read any more are left out.

    Raises SinkError if there is no manifest, or if the report cannot be written."""
    try:
        place = output / REPORT
        _put(place, _page(output, inputs, gallery).encode())
    except (OSError, RemoteError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or error
        raise SinkError(f"{output}: no report can be made here: {what}") from error
    return place


def _page(output: Address, inputs: Sequence[Address], gallery: int) -> str:
    """The page as HTML. Raises SinkError, OSError and RemoteError."""
    run = read_identity(output)
    statistics, selection = Statistics(), Selection(gallery)
    for record in read_records(output):
        statistics.note(record)
        selection.note(record)
    if run is None and not statistics.counts:
        raise SinkError(f"{output}: has no {IDENTITY} and no manifest lines; give the output folder of a run")
    inputs = inputs or inputs_of(run)
    exhibits, skipped = make_gallery(output, inputs, selection.chosen(), upright=bool((run or {}).get("upright")))
    return render(output, run or {}, statistics, read_history(output), exhibits=exhibits, skipped=skipped)


def render(
    output: Address,
    run: Mapping[str, object],
    statistics: Statistics,
    runs: list[RunSummary],
    *,
    exhibits: list[GalleryEntry],
    skipped: list[tuple[str, str]],
) -> str:
    """The page as HTML. run: the fields of the run's identity."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"name": visible_name, "number": "{:,}".format, "short": short_number}
    style, script = ((_HERE / name).read_text() for name in ("style.css", "script.js"))
    total = statistics.counts.total()
    return environment.get_template("template.html").render(
        output=output if isinstance(output, Remote) else output.absolute(),
        run=run,
        version=program_version(),
        statistics=statistics,
        total=total,
        verdict=verdict(statistics),
        status=status_chart(statistics.counts, total) if total else None,
        charts=[quality_chart(statistics.qualities), sampling_chart(statistics.samplings)],
        runs=runs[-RUNS:],
        all_runs=len(runs),
        seconds=sum(run.seconds for run in runs),
        speed=_speed(runs),
        exhibits=exhibits,
        skipped=skipped,
        heat=["#{:02x}{:02x}{:02x}".format(*colour) for colour in HEAT],
        style=Markup(style),
        script=Markup(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
    )


def verdict(statistics: Statistics) -> str:
    """Two sentences: the inputs by status, and the certificates."""
    counts, total = statistics.counts, statistics.counts.total()
    if not total:
        return "The manifest has no lines yet."
    if counts["restored"] == total:
        inputs = f"{total:,} inputs, all restored." if total > 1 else "One input, restored."
    else:
        inputs = f"{total:,} {'input' if total == 1 else 'inputs'}: {describe_counts(counts)}."
    if not statistics.coefficients:
        return inputs
    if not statistics.mismatches:
        what = "the coefficients that were recovered" if statistics.recovered_from else "the coefficients of its file"
        return f"{inputs} Every restored image with a certificate compresses to exactly {what}."
    files = "file" if statistics.inexact == 1 else "files"
    return (
        f"{inputs} {statistics.mismatches:,} of {statistics.coefficients:,} coefficients differ, "
        f"in {statistics.inexact:,} {files}."
    )


def visible_name(text: str) -> Markup:
    """A name or message as HTML. Characters that are invisible or change the direction of text are escaped; very long
    names are shortened in the middle."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) > _NAME_LENGTH:
        shown = shown[: _NAME_LENGTH // 2] + " … " + shown[-_NAME_LENGTH // 2 :]
    return Markup("<bdi>{}</bdi>").format(shown)


def short_number(value: float) -> str:
    """From ten million on, three digits and a word."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= (size if size > 1e6 else 1e7):
            return f"{value / size:.3g} {word}" if value < 1e15 else f"{value:.2e}"
    return f"{value:,.0f}"


def _speed(runs: list[RunSummary]) -> float | None:
    """Megapixels per second of a process; None without runs."""
    seconds = sum(run.seconds for run in runs)
    return sum(run.megapixels for run in runs) / seconds if seconds else None


def _source_hash(text: str) -> str:
    """The hash that a content security policy allows."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _put(place: Address, data: bytes) -> None:
    """Writes a file atomically. Raises OSError and RemoteError."""
    if isinstance(place, Remote):
        place.write_bytes(data)
    else:
        write_atomically(place, data)
