"""The options of `python -m pipeline.restore`: from the command line, over a configuration file, over the defaults."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pipeline.distributed.ranks import choose_share
from pipeline.engine.options import FRONTENDS, MODES, REGRESSION, SAMPLER, Options
from pipeline.inputs.filters import PASSED_THROUGH, Filters
from pipeline.inputs.rank_share import Share
from pipeline.inputs.remote import Address, AddressError, address
from pipeline.outputs.formats import Format
from pipeline.outputs.provenance import PROGRAM, program_version
from pipeline.yaml_file import YamlError, read_mapping

DEFAULT_OUTPUT = "restored"
"""The output folder, in the current one, unless told otherwise."""

MEAN_SAMPLES = 16
"""Draws of which mode `mean` is the average, unless told otherwise."""

SINGLE_RUN_OPTIONS = ("merge", "overwrite", "retry_failed", "limit", "dry_run")
"""Options that a rank of several does not take, nor --merge the others."""

QUALITIES = ("min_quality", "max_quality")
FORMATS = "all lossless; png16: 16 bits a channel, without a certificate; npy: a NumPy array"

EPILOG = """\
Inputs are JPEG files, folders of them (recursively) and tar shards. Every file gets a line in DIR/manifest.jsonl:
restored (with its certificate: `mismatches` of 0 means that libjpeg-turbo compresses the output to the very same
coefficients), passed_through (outside the filters, or a kind of JPEG that is not modelled) or failed, with the reason.
The same command given again finishes a run that was stopped. Failures marked `transient` were not the file's (memory, a
worker process, a disk): --retry-failed does them again.

Inputs and DIR may be addresses of S3, Google or Azure storage (s3://, gs://, az://) and inputs https:// pages of links;
credentials are found as by fsspec. In a store the manifest is a folder of parts, DIR/manifest/*.jsonl.

Started by torchrun or srun, or with --rank R --world-size W, each process restores its share of the same inputs into
the same folder, and writes its own part of the manifest, DIR/manifest.R-of-W.jsonl. The outputs are those of a run of
one; any later run, of as many ranks or others, goes on where they stopped. A run of one rank or --merge makes one
manifest of the parts.

With --frontend dali files are decoded by NVIDIA DALI, on a GPU by nvJPEG, and their coefficients recovered from the
pixels: for machines with a strong GPU and few cores. Of photographs (measured with DALI's CPU decoder) 99.99 % of them
are the file's up to quality 75, 99.9 % at 90 and 99.3 % or more at 95. The certificate is about what was recovered: the
manifest says `coefficients_from`, and with --verify, which reads the file's own beside them, how many of the
`coefficients` were `recovered`. A file that DALI cannot decode fails.

With --engine ray the nodes of a Ray cluster do the work, one worker for each GPU or for --actor-cpus cores, and this
command hands it out and writes the manifest. All nodes have to see the inputs, the output and the weights under the
same names, on a shared file system or in a store, which is checked at the start, and have this program installed. A
lost node's work is done again by others.

exit codes: 0 all well, 1 some files failed, 2 the run could not start or go on, 130 or 143 interrupted; a rank of
several does not end with 1, which would end the others, too, but --merge does

examples (`jpeg-posterior restore` is the same as `python -m pipeline.restore`):
  jpeg-posterior restore photo.jpg
  jpeg-posterior restore photos holiday.tar --output-dir restored --report
  jpeg-posterior restore photos --dry-run
  jpeg-posterior restore photos --max-quality 80 --passed-through copy --strength 0.5
  python -m pipeline.restore --input-dir shards --output-dir restored --output-shards --format webp --verify
  python -m pipeline.restore --input-dir s3://photos/shards --output-dir s3://photos/restored --output-shards
  torchrun --nproc-per-node 8 -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  srun --ntasks 64 --gpus-per-task 1 python -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  python -m pipeline.restore --output-dir restored --merge --report
  python -m pipeline.restore --engine ray --input-dir /nfs/shards --output-dir /nfs/restored --output-shards
"""


Add = Callable[..., argparse.Action]
"""`add_argument` of a group."""


class UsageError(ValueError):
    """Options that cannot be used; the message names the option."""


def parser(prog: str = "python -m pipeline.restore", exit_on_error: bool = True) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=prog,
        exit_on_error=exit_on_error,
        description="Restore JPEG files: find a natural image that each could have come from, and prove that it could.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"{PROGRAM} {program_version()}")
    _add_places(result.add_argument_group("input and output").add_argument)
    _add_restoration(result.add_argument_group("restoration").add_argument)
    _add_filters(result.add_argument_group("which files are restored; the others are passed through").add_argument)
    _add_machine(result.add_argument_group("machine").add_argument)
    _add_processes(result.add_argument_group("several processes and machines").add_argument)
    return result


def _add_places(add: Add) -> None:
    add("inputs", nargs="*", metavar="INPUT", help="a folder, a tar shard or a JPEG file; or its address, s3://…")
    add(
        "--input-dir",
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="the same; with several, keys of a folder's files begin with its name",
    )
    add("--output-dir", metavar="DIR", help=f"where images and the manifest go; made when missing [{DEFAULT_OUTPUT}]")
    add("--format", choices=get_args(Format), default="png", help=f"{FORMATS} [%(default)s]")
    add("--output-shards", action="store_true", help="write a tar for each input tar, its other members carried along")
    add("--no-provenance", action="store_true", help="do not record in the images that they were restored, and how")
    add("--retry-failed", action="store_true", help="do failures again that were not the file's: memory, a disk, …")
    add("--overwrite", action="store_true", help="start afresh in an output folder that holds another run")
    add("--verify", action="store_true", help="compress each output again with libjpeg-turbo and check its certificate")
    add("--report", action="store_true", help="write DIR/report.html at the end (also: python -m pipeline.report)")
    add("--config", type=Path, metavar="FILE.yaml", help="options in a file, by the names above; the command line wins")
    add("--quiet", action="store_true", help="no progress bar and no summary, only errors")


def _add_restoration(add: Add) -> None:
    add("--weights", metavar="NAME|PATH", help=f"shipped weights or a file [{SAMPLER}; {REGRESSION} for mode mmse]")
    add("--mode", choices=MODES, help="draw samples, average them, or regress [sample, if the weights can draw]")
    add("--samples", type=int, metavar="K", help=f"draws for each file [1; {MEAN_SAMPLES} in mode mean]")
    add("--seed", type=int, default=0, metavar="N", help="the noise depends on it, on the file's key and no more [0]")
    add(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="0: smooth, smallest error; 1: a full sample, with natural texture [1]",
    )


def _add_filters(add: Add) -> None:
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "GLOB"}
    add("--max-quality", type=int, metavar="Q", help="restore files up to this quality, libjpeg's nearest, 1 to 100")
    add("--min-quality", type=int, metavar="Q", help="… of at least this quality")
    add("--min-size", type=int, metavar="N", help="… with at least N pixels on the shorter side")
    add("--include", **several, help="… whose path below the input matches; may be given several times")
    add("--exclude", **several, help="… whose path does not; a pattern without a slash is compared with the name only")
    add(
        "--passed-through",
        choices=PASSED_THROUGH,
        default="decode",
        help="the others, and kinds of JPEG that are not modelled: decoded as they are, the JPEG itself, or no output "
        "[%(default)s]",
    )
    add(
        "--dry-run",
        action="store_true",
        help="read all inputs, say what would be done and how long it would take, write nothing",
    )
    add("--limit", type=int, metavar="N", help="stop after N inputs, for a trial run")
    add("--max-pixels", type=int, default=Options.max_pixels, metavar="N", help="refuse larger images [%(default)s]")


def _add_machine(add: Add) -> None:
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="[%(default)s: a GPU when there is one]")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's convolutions; float32 is IEEE's, no TF32 [auto]",
    )
    add("--compile", action="store_true", help="compile the network for the GPU first, which takes minutes")
    add("--frontend", choices=FRONTENDS, default=Options.frontend, help="how files are read, see below [%(default)s]")
    add("--tile", type=int, default=Options.tile, metavar="N", help="pixels, a multiple of 16 [%(default)s]")
    add("--batch", type=int, default=Options.batch, metavar="N", help="tiles at a time on a GPU [%(default)s]")
    add("--workers", type=int, default=0, metavar="N", help="0: one for each core; 1: everything in turn [%(default)s]")


def _add_processes(add: Add) -> None:
    add("--rank", type=int, metavar="R", help="of --world-size processes; restore a share [what torchrun or srun says]")
    add("--world-size", type=int, metavar="W", help="how many ranks there are [1, or what torchrun or srun says]")
    add("--merge", action="store_true", help="restore nothing, only make one manifest of the ranks' parts")
    add("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster, see below [local]")
    add("--address", default="auto", metavar="HOST:PORT", help="of the Ray cluster; local: one of this machine [auto]")
    add("--actor-cpus", type=int, metavar="N", help="cores for each Ray worker [1; with GPUs each one's share]")


def parse(arguments: list[str] | None, prog: str = "python -m pipeline.restore") -> argparse.Namespace:
    """The command line over the configuration file over the defaults. Raises UsageError."""
    commands = parser(prog)
    given = commands.parse_args(arguments)
    if given.config is not None:
        tokens = _tokens(given.config, given, parser(prog, exit_on_error=False))
        given = commands.parse_args([*tokens, *(sys.argv[1:] if arguments is None else arguments)])
    if given.output_dir is None and not given.merge:
        given.output_dir = DEFAULT_OUTPUT
        if not given.quiet:
            where = f"{Path(DEFAULT_OUTPUT).absolute()} (--output-dir names another folder)"
            print(f"restore: outputs {'would ' * given.dry_run}go to {where}", file=sys.stderr)
    given.inputs = [_place("input", text) for text in given.inputs + given.input_dir]
    if not given.inputs and not given.merge:
        raise UsageError("an input is missing (see --help)")
    if not given.output_dir:
        raise UsageError("--output-dir is missing (see --help)")
    given.output_dir = _place("--output-dir", given.output_dir)
    _check_numbers(given)
    given.share = share_of(given)
    _check_combinations(given)
    return given


def _place(option: str, text: str) -> Address:
    """Raises UsageError."""
    try:
        return address(text)
    except AddressError as error:
        raise UsageError(f"{option} {error}") from error


def _check_numbers(given: argparse.Namespace) -> None:
    """Raises UsageError for one that is too small."""
    least, most = {"workers": 0}, dict.fromkeys(QUALITIES, 100)
    for name in ("batch", "workers", "max_pixels", "samples", "actor_cpus", "limit", "min_size", *QUALITIES):
        value = getattr(given, name)
        if value is not None and not least.get(name, 1) <= value <= most.get(name, value):
            limits = f"{least.get(name, 1)} to {most[name]}" if name in most else f"at least {least.get(name, 1)}"
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected {limits}")
    low, high = (getattr(given, name) for name in QUALITIES)
    if low is not None and high is not None and low > high:
        raise UsageError(f"--min-quality {low} is above --max-quality {high}: no file can match both")


def filters_of(given: argparse.Namespace) -> Filters:
    """Which inputs are restored."""
    return Filters(
        given.min_quality,
        given.max_quality,
        given.min_size,
        tuple(given.include),
        tuple(given.exclude),
        given.passed_through,
    )


def share_of(given: argparse.Namespace) -> Share:
    """Which rank this process is. Raises UsageError."""
    try:
        share = choose_share(given.rank, given.world_size, os.environ)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Share() if given.merge and given.rank is None else share


def _check_combinations(given: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together."""
    share: Share = given.share
    alone = [f"--{name.replace('_', '-')}" for name in SINGLE_RUN_OPTIONS if getattr(given, name)]
    if given.merge and len(alone) > 1:
        raise UsageError(f"{alone[1]}: not with --merge, which restores nothing")
    if share.part and given.report:
        instead = "when all have ended, use --merge --report (of a store: python -m pipeline.report)"
        raise UsageError(f"--report: not with {share.world_size} ranks; {instead}")
    if share.part and alone:
        raise UsageError(f"{alone[0]}: not with {share.world_size} ranks; use it with a run of one")
    if given.engine == "ray" and (given.limit is not None or given.dry_run):
        raise UsageError(f"{alone[-1]}: not with --engine ray; use it with a run on one machine")
    if given.limit is not None and given.output_shards:
        raise UsageError("--limit: not with --output-shards, whose last tar would be cut short; give fewer tars")


def _tokens(path: Path, given: argparse.Namespace, commands: argparse.ArgumentParser) -> list[str]:
    """A configuration file as command-line arguments, to be put before those given. Lists that are given replace the
    file's. Raises UsageError."""
    try:
        values = {str(key).replace("_", "-"): value for key, value in read_mapping(path).items()}
    except YamlError as error:
        raise UsageError(f"--config: {error}") from error
    for names in (("inputs", "input-dir"), ("include",), ("exclude",)):
        if any(getattr(given, name.replace("-", "_")) for name in names):
            values = {name: value for name, value in values.items() if name not in names}
    positional = _as_list(values.pop("inputs", []))
    options = [token for name, value in values.items() for token in _option(name, value)]
    try:
        found, unknown = commands.parse_known_args([*options, *positional])
    except argparse.ArgumentError as error:
        raise UsageError(f"--config {path}: {error}") from error
    if unknown or found.config:
        name = unknown[0].lstrip("-").partition("=")[0] if unknown else "config"
        raise UsageError(f"--config {path}: no option {name!r} (see --help)")
    return [*options, *positional]


def _option(name: str, value: Any) -> list[str]:
    """One entry of a configuration file as arguments: true is the option alone, false its absence."""
    if isinstance(value, bool):
        return [f"--{name}"] * value
    return [f"--{name}={one}" for one in _as_list(value)]


def _as_list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
