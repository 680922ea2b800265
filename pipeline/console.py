"""The console script `jpeg-posterior`. Each of its commands is also a module for `python -m`."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import NoReturn

from pipeline.engine.signals import exit_process
from pipeline.outputs.provenance import PROGRAM, program_version

COMMANDS = {
    "restore": ("pipeline.restore", "restore JPEG files"),
    "report": ("pipeline.report.__main__", "write an HTML report of a run, with a gallery"),
    "verify": ("pipeline.verify", "verify that an image compresses to a JPEG file"),
    "train": ("train.main", "train a network"),
}
"""Command → its module and a description. Modules are imported when needed: training lies in a layer above this
package, and imports slowly."""


def escape_names() -> None:
    """Lets stdout print file names that it cannot encode, with escapes, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def usage() -> str:
    """The help text."""
    lines = "\n".join(f"  {name:<9}{what}" for name, (_, what) in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND …\n\nRestores JPEG files with certificates.\n\n{lines}\n\n"
        f"{PROGRAM} COMMAND --help: options of a command; {PROGRAM} --version: the version"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "--version"):
        print(f"{PROGRAM} {program_version()}" if command == "--version" else usage())
        return 0
    if command not in COMMANDS:
        print(f"{PROGRAM}: no command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    code: int = import_module(COMMANDS[command][0]).main(arguments[1:], f"{PROGRAM} {command}")
    return code


def script() -> NoReturn:
    """The entry point of the installed script."""
    exit_process(main())


if __name__ == "__main__":
    script()
