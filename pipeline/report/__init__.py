"""The report of a run: one HTML file beside the outputs, with counts, certificates and a gallery of images before and
after.

    write_report(Path("restored"))       # the address of restored/report.html

On the command line: python -m pipeline.report --help."""

from pipeline.report.page import write_report

__all__ = ["write_report"]
