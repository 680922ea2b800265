"""The command `python -m pipeline.report --output-dir restored`."""

from __future__ import annotations

import argparse
import sys

from pipeline.inputs.remote import AddressError, address
from pipeline.outputs.record import SinkError
from pipeline.report.page import GALLERY, write_report

EPILOG = """\
The report is a self-contained file, DIR/report.html, with inputs by status, speed, certificates, the reasons for which
files failed or were passed through, and a few files before and after. It can be written at any time, also of an
unfinished run; nothing else in DIR is changed. Files that have been moved or deleted since the run are left out of the
gallery and listed.

exit codes: 0 written, 2 not written

examples:
  python -m pipeline.report --output-dir restored
  python -m pipeline.report --input-dir photos --output-dir restored --gallery 30
  python -m pipeline.report --output-dir s3://photos/restored
"""


def parser(prog: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=prog,
        description="Write a report of a run of pipeline.restore, from its manifest and its files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--input-dir", nargs="+", default=[], metavar="INPUT", help="where the inputs are now [as in the run]")
    add("--output-dir", metavar="DIR", required=True, help="the output folder of the run, or its address")
    add("--gallery", type=int, default=GALLERY, metavar="N", help="number of files in the gallery [%(default)s]")
    add("--quiet", action="store_true", help="print only errors")
    return result


def main(arguments: list[str] | None = None, prog: str = "python -m pipeline.report") -> int:
    """Writes the report and returns the exit code; see --help."""
    given = parser(prog).parse_args(arguments)
    try:
        if given.gallery < 0:
            raise SinkError(f"--gallery {given.gallery}: expected at least 0")
        place = write_report(address(given.output_dir), list(map(address, given.input_dir)), given.gallery)
    except (AddressError, SinkError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if not given.quiet:
        print(f"the report is {place}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
