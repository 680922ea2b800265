"""The options of `python -m pipeline.restore`. The command line takes precedence over a configuration file."""

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
"""The default output folder, in the current folder."""

MEAN_SAMPLES = 16
"""The default number of samples that mode `mean` averages."""

SINGLE_RUN_OPTIONS = ("merge", "overwrite", "retry_failed", "retry_all_failed", "limit", "dry_run")
"""Options that a rank of several does not accept, nor --merge the other ones."""

QUALITIES = ("min_quality", "max_quality")
FORMATS = "image format, lossless; png16: 16 bits per channel, without a certificate; npy: a NumPy array"

EPILOG = """\
Inputs are JPEG files, folders of JPEG files and tars (recursively), and tar shards. Every input gets a line in
DIR/manifest.jsonl with its status: restored, passed_through (excluded by a filter, or a kind of JPEG that is not
modelled) or failed, with the reason. `mismatches` is the certificate of a restored file: 0 means that libjpeg-turbo
compresses the output to exactly the coefficients of the input. To continue a run that was stopped, run the same command
again. Failures marked `transient` have another cause than the file (memory, a worker process, a disk); --retry-failed
tries them again. --retry-all-failed also tries the others: after files were renamed or replaced, or with a larger
--max-pixels.

Inputs and DIR may be addresses of S3, Google or Azure storage (s3://, gs://, az://), and inputs may be https:// pages
of links. Credentials are read by fsspec. In a store the manifest is a folder, DIR/manifest/*.jsonl.

Several processes: started by torchrun or srun, or with --rank R --world-size W, each process restores its share of the
same inputs into the same DIR, and writes its own part of the manifest, DIR/manifest.R-of-W.jsonl. The outputs are those
of a single process. A later run, with any number of processes, continues where these stopped. --merge, or a run of one
process, merges the parts into one manifest.

--frontend dali decodes files by NVIDIA DALI (on a GPU by nvJPEG) and recovers their coefficients from the pixels. Use
it with a strong GPU and few CPU cores. On photographs, with DALI's CPU decoder, 99.99 % of the recovered coefficients
are equal to the file's up to quality 75, 99.9 % at 90, and at least 99.4 % at 95. The certificate refers to the
recovered coefficients, which the manifest marks by `coefficients_from`; --verify also reads the file's own, and adds
how many are equal (`recovered` of `coefficients`). A file that DALI cannot decode fails.

--engine ray distributes the work over the nodes of a Ray cluster, with one worker per GPU or per --actor-cpus cores;
this command writes the manifest. All nodes need this program and must see the inputs, DIR and the weights under the
same names, on a shared file system or in a store; workers check this when they start. The work of a lost node is
repeated by others.

exit codes: 0 all inputs restored or passed through, 1 some failed, 2 the run could not start or continue, 130 or 143
interrupted. A rank of several returns 0 instead of 1, so that its launcher does not stop the others; --merge returns 1.

examples (`jpeg-posterior restore` is the same as `python -m pipeline.restore`):
  jpeg-posterior restore photo.jpg
  jpeg-posterior restore photos holiday.tar --output-dir restored --report
  jpeg-posterior restore photos --dry-run
  jpeg-posterior restore photos --max-quality 80 --passed-through copy --strength 0.5
  python -m pipeline.restore --input-dir shards --output-dir restored --output-shards --format webp --verify
  python -m pipeline.restore --input-dir s3://photos/shards --output-dir s3://photos/restored --output-shards
  torchrun --nproc-per-node 8 -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  srun --ntasks 64 --gpus-per-task 1 --cpus-per-task 12 \\
    python -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  python -m pipeline.restore --output-dir restored --merge --report
  python -m pipeline.restore --engine ray --input-dir /nfs/shards --output-dir /nfs/restored --output-shards
"""


Add = Callable[..., argparse.Action]
"""A group's `add_argument`."""


class UsageError(ValueError):
    """Invalid options; the message names them."""


def parser(prog: str = "python -m pipeline.restore", exit_on_error: bool = True) -> argparse.ArgumentParser:
    """The parser. exit_on_error: as argparse's."""
    result = argparse.ArgumentParser(
        prog=prog,
        exit_on_error=exit_on_error,
        description="Restore JPEG files to natural images, each certified to compress to the coefficients of its file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"{PROGRAM} {program_version()}")
    _add_places(result.add_argument_group("input and output").add_argument)
    _add_restoration(result.add_argument_group("restoration").add_argument)
    _add_filters(result.add_argument_group("which inputs (files that do not match are passed through)").add_argument)
    _add_machine(result.add_argument_group("machine").add_argument)
    _add_processes(result.add_argument_group("several processes and machines").add_argument)
    return result


def _add_places(add: Add) -> None:
    add("inputs", nargs="*", metavar="INPUT", help="a folder, a tar shard or a JPEG file, or an address such as s3://…")
    add(
        "--input-dir",
        nargs="+",
        default=[],
        metavar="INPUT",
        help="the same; with several inputs, output names begin with their folder's name",
    )
    add("--output-dir", metavar="DIR", help=f"output folder, created if missing [{DEFAULT_OUTPUT}]")
    add("--format", choices=get_args(Format), default="png", help=f"{FORMATS} [%(default)s]")
    add("--output-shards", action="store_true", help="write a tar for each input tar, and copy its other members")
    add("--upright", action="store_true", help="turn images as EXIF's orientation says [they lie as they are stored]")
    add("--no-provenance", action="store_true", help="do not record the restoration in the images' metadata")
    add("--retry-failed", action="store_true", help="try failures again that are marked as transient")
    add("--retry-all-failed", action="store_true", help="try all failures again, such as of files that were replaced")
    add("--overwrite", action="store_true", help="discard an earlier run's manifest and start again: does not continue")
    add("--verify", action="store_true", help="verify certificates: compress each output with libjpeg-turbo")
    add("--report", action="store_true", help="write DIR/report.html at the end (also: python -m pipeline.report)")
    add("--config", type=Path, metavar="FILE.yaml", help="read options from a file; the command line takes precedence")
    add("--quiet", action="store_true", help="print errors only, no progress bar or summary")


def _add_restoration(add: Add) -> None:
    add("--weights", metavar="NAME|PATH", help=f"shipped weights, or a file [{SAMPLER}; {REGRESSION} in mode mmse]")
    add("--mode", choices=MODES, help="sample, mean of samples, or regression [sample, if the weights have noise]")
    add("--samples", type=int, metavar="K", help=f"samples per file [1; {MEAN_SAMPLES} in mode mean]")
    add("--seed", type=int, default=0, metavar="N", help="the noise depends on the seed and the file's key only [0]")
    add(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="0: the weights' regression, which is smooth; 1: a sample, with natural texture [1]",
    )


def _add_filters(add: Add) -> None:
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "GLOB"}
    add("--max-quality", type=int, metavar="Q", help="restore files of at most this quality (libjpeg's, 1 to 100)")
    add("--min-quality", type=int, metavar="Q", help="restore files of at least this quality")
    add("--min-size", type=int, metavar="N", help="restore files with at least N pixels on the shorter side")
    add("--include", **several, help="restore files that match, as in --exclude; repeatable")
    add(
        "--exclude",
        **several,
        help="pass through files whose path below the input matches (a pattern without a slash: whose name); "
        "for no output, add --passed-through skip",
    )
    add(
        "--passed-through",
        choices=PASSED_THROUGH,
        default="decode",
        help="output for files that do not match or are not modelled: decoded by an ordinary decoder, a copy of the "
        "JPEG file, or none [%(default)s]",
    )
    add("--dry-run", action="store_true", help="print what would be done and an estimate of the time; write nothing")
    add("--limit", type=int, metavar="N", help="only the first N inputs")
    add("--max-pixels", type=int, default=Options.max_pixels, metavar="N", help="larger images fail [%(default)s]")


def _add_machine(add: Add) -> None:
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="auto: a GPU, if any; a rank's own [%(default)s]")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="number type of the network; float32 is IEEE, not TF32; auto: bfloat16 if the hardware has it [auto]",
    )
    add("--compile", action="store_true", help="compile the network for the GPU, which takes minutes at the start")
    add("--frontend", choices=FRONTENDS, default=Options.frontend, help="JPEG reader, see below [%(default)s]")
    add("--tile", type=int, default=Options.tile, metavar="N", help="tile side in pixels, multiple of 16 [%(default)s]")
    add("--batch", type=int, default=Options.batch, metavar="N", help="tiles per batch on a GPU [%(default)s]")
    add("--workers", type=int, default=0, metavar="N", help="worker processes; 0: one per available core [%(default)s]")


def _add_processes(add: Add) -> None:
    add("--rank", type=int, metavar="R", help="rank of this process, 0 to W-1 [from torchrun or srun]")
    add("--world-size", type=int, metavar="W", help="number of ranks [from torchrun or srun, else 1]")
    add("--merge", action="store_true", help="only merge the ranks' manifests into one")
    add("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster, see below [local]")
    add("--address", default="auto", metavar="HOST:PORT", help="Ray cluster; local: a new one on this machine [auto]")
    add("--actor-cpus", type=int, metavar="N", help="cores per Ray worker [1; with GPUs, the cores divided among them]")


def parse(arguments: list[str] | None, prog: str = "python -m pipeline.restore") -> argparse.Namespace:
    """Parses the command line and its configuration file. Raises UsageError."""
    commands = parser(prog)
    given = commands.parse_args(arguments)
    if given.config is not None:
        tokens = _tokens(given.config, given, parser(prog, exit_on_error=False))
        given = commands.parse_args([*tokens, *(sys.argv[1:] if arguments is None else arguments)])
    chosen = given.output_dir is not None or given.merge
    if not chosen:
        given.output_dir = DEFAULT_OUTPUT
    given.inputs = [_place("input", text) for text in given.inputs + given.input_dir]
    if not given.inputs and not given.merge:
        raise UsageError("no input is given (see --help)")
    if not given.output_dir:
        raise UsageError("--output-dir is missing (see --help)")
    given.output_dir = _place("--output-dir", given.output_dir)
    _check_numbers(given)
    given.share = share_of(given)
    _check_combinations(given)
    if not (chosen or given.quiet):
        where = f"{Path(DEFAULT_OUTPUT).absolute()} (choose another folder with --output-dir)"
        print(f"restore: outputs {'would ' * given.dry_run}go to {where}", file=sys.stderr)
    return given


def _place(option: str, text: str) -> Address:
    """Parses a path or an address. Raises UsageError."""
    try:
        return address(text)
    except AddressError as error:
        raise UsageError(f"{option} {error}") from error


def _check_numbers(given: argparse.Namespace) -> None:
    """Raises UsageError for a number outside its range."""
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
    """The filters that the options describe."""
    return Filters(
        given.min_quality,
        given.max_quality,
        given.min_size,
        tuple(given.include),
        tuple(given.exclude),
        given.passed_through,
    )


def share_of(given: argparse.Namespace) -> Share:
    """This process's rank. Raises UsageError."""
    try:
        share = choose_share(given.rank, given.world_size, os.environ)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Share() if given.merge and given.rank is None else share


def _check_combinations(given: argparse.Namespace) -> None:
    """Raises UsageError for options that exclude each other."""
    share: Share = given.share
    exclusive = [f"--{name.replace('_', '-')}" for name in SINGLE_RUN_OPTIONS if getattr(given, name)]
    if given.merge and len(exclusive) > 1:
        raise UsageError(f"{exclusive[1]}: not with --merge, which restores nothing")
    if share.part and given.report:
        instead = "when all have ended, use --merge --report (for a store: python -m pipeline.report)"
        raise UsageError(f"--report: not with {share.world_size} ranks; {instead}")
    if share.part and exclusive:
        raise UsageError(f"{exclusive[0]}: not with {share.world_size} ranks; use it with a single process")
    if given.engine == "ray" and (given.limit is not None or given.dry_run):
        raise UsageError(f"{exclusive[-1]}: not with --engine ray; use it with --engine local")
    if given.dry_run and given.report:
        raise UsageError("--report: not with --dry-run, which restores nothing")
    if given.limit is not None and given.output_shards:
        raise UsageError("--limit: not with --output-shards, because the last tar would be incomplete; give fewer tars")


def _tokens(path: Path, given: argparse.Namespace, commands: argparse.ArgumentParser) -> list[str]:
    """A configuration file as arguments, to be put before those of the command line. Lists on the command line replace
    the file's. Raises UsageError."""
    try:
        values = {str(key).replace("_", "-"): value for key, value in read_mapping(path).items()}
        if empty := [key for key, value in values.items() if None in (value if isinstance(value, list) else [value])]:
            raise UsageError(f"--config {path}: {empty[0]!r} has no value; give one, or leave the line out")
    except YamlError as error:
        raise UsageError(f"--config: {error}") from error
    for names in (("inputs", "input-dir"), ("include",), ("exclude",)):
        if any(getattr(given, name.replace("-", "_")) for name in names):
            values = {name: value for name, value in values.items() if name not in names}
    positional = _as_list(values.pop("inputs", []))
    options = [token for name, value in values.items() for token in _option(name, value)]
    try:
        found, unknown = commands.parse_known_args([*positional, *options])
    except argparse.ArgumentError as error:
        raise UsageError(f"--config {path}: {error}") from error
    if unknown or found.config:
        name = unknown[0].lstrip("-").partition("=")[0] if unknown else "config"
        raise UsageError(f"--config {path}: no option {name!r} (see --help)")
    return [*positional, *options]


def _option(name: str, value: Any) -> list[str]:
    """An entry of a configuration file as arguments: true is the option alone, false its absence."""
    if isinstance(value, bool):
        return [f"--{name}"] * value
    if name == "input-dir":  # repeated, the last one counts
        return [f"--{name}", *_as_list(value)]
    return [f"--{name}={one}" for one in _as_list(value)]


def _as_list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
