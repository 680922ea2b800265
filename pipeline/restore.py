"""The command line: `python -m pipeline.restore --input-dir shards --output-dir restored`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import yaml

from pipeline.encode import Format, require
from pipeline.engine import Job, run
from pipeline.manifest import SinkError
from pipeline.remote import AddressError, address
from pipeline.restorer import MODES, REGRESSION, SAMPLER, Options, Restorer
from pipeline.source import SourceError

FINISHED, SOME_FAILED, STOPPED = 0, 1, 2

AVERAGED = 16
"""Draws of which mode `mean` is the average, unless told otherwise."""

EPILOG = """\
Inputs are JPEG files in folders (recursively) and in tar shards. Every one gets a line in DIR/manifest.jsonl: restored
(with its certificate: `mismatches` of 0 means that libjpeg-turbo compresses the output to the very same coefficients),
passed_through (a kind of JPEG that is not modelled, decoded as it is) or failed, with the reason. A run that was
stopped goes on when the same command is given again.

Folders may be addresses of S3, Google or Azure storage (s3://, gs://, az://) and, for input, https:// pages of links;
credentials are found as by fsspec. There the manifest is a folder of parts, DIR/manifest/*.jsonl.

exit codes: 0 all well, 1 some files failed, 2 the run could not start or go on, 130 or 143 interrupted

examples:
  python -m pipeline.restore --input-dir photos --output-dir restored
  python -m pipeline.restore --input-dir shards --output-dir restored --output-shards --format webp --verify
  python -m pipeline.restore --input-dir s3://photos/shards --output-dir s3://photos/restored --output-shards
"""


class UsageError(ValueError):
    """Options that cannot be used; the message names the option."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM arrived."""


def parser() -> argparse.ArgumentParser:
    defaults = Options()
    result = argparse.ArgumentParser(
        prog="python -m pipeline.restore",
        description="Restore JPEG files: find a natural image that each could have come from, and prove that it could.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--input-dir", metavar="PATH", help="a folder, a tar shard or a single file; or its address, s3://… (see below)"
    )
    add("--output-dir", metavar="DIR", help="where images and the manifest go; made when missing")
    add("--weights", metavar="NAME|PATH", help=f"shipped weights or a file [{SAMPLER}; {REGRESSION} for mode mmse]")
    add("--mode", choices=MODES, help="draw samples, average them, or regress [sample, if the weights can draw]")
    add("--samples", type=int, metavar="K", help=f"draws for each file [1; {AVERAGED} in mode mean]")
    add("--seed", type=int, default=0, metavar="N", help="the noise depends on it, on the file's key and no more [0]")
    add("--format", choices=get_args(Format), default="png", help="lossless; npy: a NumPy array [%(default)s]")
    add("--output-shards", action="store_true", help="write a tar for each input tar, its other members carried along")
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="[%(default)s: a GPU when there is one]")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the network's convolutions [auto]")
    add("--tile", type=int, default=defaults.tile, metavar="N", help="pixels, a multiple of 16 [%(default)s]")
    add("--batch", type=int, default=defaults.batch, metavar="N", help="tiles at a time on a GPU [%(default)s]")
    add("--workers", type=int, default=0, metavar="N", help="0: one for each core; 1: everything in turn [%(default)s]")
    add("--max-pixels", type=int, default=defaults.max_pixels, metavar="N", help="refuse larger images [%(default)s]")
    add("--overwrite", action="store_true", help="start afresh in an output folder that holds another run")
    add("--verify", action="store_true", help="compress each output again with libjpeg-turbo and check its certificate")
    add("--config", type=Path, metavar="FILE.yaml", help="options in a file, by the names above; the command line wins")
    add("--quiet", action="store_true", help="no progress bar and no summary, only errors")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line over the configuration file over the defaults. Raises UsageError."""
    commands = parser()
    given = commands.parse_args(arguments)
    if given.config is not None:
        commands.set_defaults(**_configuration(given.config, commands))
        given = commands.parse_args(arguments)
    for name in ("input_dir", "output_dir"):
        option = f"--{name.replace('_', '-')}"
        if getattr(given, name) is None:
            raise UsageError(f"{option} is missing (see --help)")
        try:
            setattr(given, name, address(getattr(given, name)))
        except AddressError as error:
            raise UsageError(f"{option} {error}") from error
    for name, least in (("batch", 1), ("workers", 0), ("max_pixels", 1), ("samples", 1)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(given, name)}: expected at least {least}")
    return given


def _configuration(path: Path, commands: argparse.ArgumentParser) -> dict[str, Any]:
    """Options by name, checked as argparse would check them."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    if not isinstance(tree, dict):
        raise UsageError(f"--config {path}: expected lines like `tile: 512`")
    actions = {action.dest: action for action in commands._actions if action.dest not in ("help", "config")}
    values = {}
    for key, value in tree.items():
        action = actions.get(str(key).replace("-", "_"))
        if action is None:
            raise UsageError(f"--config {path}: no option {key!r}; there are {', '.join(actions)}")
        values[action.dest] = _typed(action, value, path)
    return values


def _typed(action: argparse.Action, value: object, path: Path) -> object:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"--config {path}: {action.dest} is true or false, not {value!r}")
        return value
    try:
        typed = action.type(str(value)) if callable(action.type) else str(value)
    except ValueError as error:
        raise UsageError(f"--config {path}: {action.dest}: {value!r} is not a number") from error
    if action.choices is not None and typed not in action.choices:
        raise UsageError(f"--config {path}: {action.dest}: {value!r} is not one of {', '.join(action.choices)}")
    return typed


def prepare(given: argparse.Namespace) -> Job:
    """Loads the weights and says what is to be done. Raises UsageError when the options cannot be."""
    samples = given.samples or (AVERAGED if given.mode == "mean" else 1)
    options = Options(given.mode, samples, given.tile, given.batch, given.max_pixels)
    try:
        require(given.format)
        restorer = Restorer.from_pretrained(given.weights, given.device, given.dtype, options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Job(
        restorer=restorer,
        input=given.input_dir,
        output=given.output_dir,
        seed=given.seed,
        format=given.format,
        shards=given.output_shards,
        workers=given.workers,
        overwrite=given.overwrite,
        verify=given.verify,
        quiet=given.quiet,
    )


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does: nothing half done is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    """Restores and returns the exit code; see --help. To be called from the main thread, which signals reach."""
    try:
        with terminable():
            failed = run(prepare(parse(arguments)))
    except KeyboardInterrupt as error:
        print("restore: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(error, Interrupted) else signal.SIGINT)
    except (UsageError, SourceError, SinkError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        print("restore: stopped by an error of its own; what is finished stays finished", file=sys.stderr)
        return STOPPED
    return SOME_FAILED if failed else FINISHED


if __name__ == "__main__":
    code = main()
    if code > 128:  # a thread may be left amid what cannot be interrupted: the interpreter's own end could crash on it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
