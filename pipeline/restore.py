"""The command line: `python -m pipeline.restore --input-dir shards --output-dir restored`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import torch
import yaml

from model.weights import SHIPPED
from pipeline.distributed import cluster
from pipeline.distributed.ranks import choose
from pipeline.engine.job import Job
from pipeline.engine.options import FRONTENDS, MODES, REGRESSION, SAMPLER, Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.run import run
from pipeline.inputs.remote import AddressError, Remote, address
from pipeline.inputs.share import Share
from pipeline.inputs.source import SourceError
from pipeline.jpeg.dali_frontend import FrontendError
from pipeline.outputs.formats import Format, require
from pipeline.outputs.manifest import manifest_address, merge
from pipeline.outputs.record import SinkError

FINISHED, SOME_FAILED, STOPPED = 0, 1, 2

OUTPUT = "restored"
"""The output folder, in the current one, unless told otherwise."""

AVERAGED = 16
"""Draws of which mode `mean` is the average, unless told otherwise."""

EPILOG = """\
Inputs are JPEG files in folders (recursively) and in tar shards. Every one gets a line in DIR/manifest.jsonl: restored
(with its certificate: `mismatches` of 0 means that libjpeg-turbo compresses the output to the very same coefficients),
passed_through (a kind of JPEG that is not modelled, decoded as it is) or failed, with the reason. A run that was
stopped goes on when the same command is given again. Failures marked `transient` were not the file's (memory, a worker
process, a disk): --retry-failed does them again.

Folders may be addresses of S3, Google or Azure storage (s3://, gs://, az://) and, for input, https:// pages of links;
credentials are found as by fsspec. There the manifest is a folder of parts, DIR/manifest/*.jsonl.

Started by torchrun or srun, or with --rank R --world-size W, each process restores its share of the same input into the
same folder, and writes its own part of the manifest, DIR/manifest.R-of-W.jsonl. The outputs are those of a run of one;
any later run, of as many ranks or others, goes on where they stopped. A run of one rank or --merge makes one manifest
of the parts.

With --frontend dali files are decoded by NVIDIA DALI, on a GPU by nvJPEG, and their coefficients recovered from the
pixels: for machines with a strong GPU and few cores. Of photographs (measured with DALI's CPU decoder) 99.99 % of them
are the file's up to quality 75, 99.9 % at 90 and 99.3 % or more at 95. The certificate is about what was recovered: the
manifest says `coefficients_from`, and with --verify, which reads the file's own beside them, how many of the
`coefficients` were `recovered`. A file that DALI cannot decode fails.

With --engine ray the nodes of a Ray cluster do the work, one worker for each GPU or for --actor-cpus cores, and this
command hands it out and writes the manifest. All nodes have to see the input, the output and the weights under the same
names, on a shared file system or in a store, which is checked at the start, and have this program installed. A lost
node's work is done again by others.

exit codes: 0 all well, 1 some files failed, 2 the run could not start or go on, 130 or 143 interrupted; a rank of
several does not end with 1, which would end the others, too, but --merge does

examples:
  python -m pipeline.restore --input-dir photos
  python -m pipeline.restore --input-dir shards --output-dir restored --output-shards --format webp --verify
  python -m pipeline.restore --input-dir s3://photos/shards --output-dir s3://photos/restored --output-shards
  torchrun --nproc-per-node 8 -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  srun --ntasks 64 --gpus-per-task 1 python -m pipeline.restore --input-dir shards --output-dir restored --output-shards
  python -m pipeline.restore --output-dir restored --merge
  python -m pipeline.restore --engine ray --input-dir /nfs/shards --output-dir /nfs/restored --output-shards
"""


class UsageError(ValueError):
    """Options that cannot be used; the message names the option."""


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
    add("--output-dir", metavar="DIR", help=f"where images and the manifest go; made when missing [{OUTPUT}]")
    add("--weights", metavar="NAME|PATH", help=f"shipped weights or a file [{SAMPLER}; {REGRESSION} for mode mmse]")
    add("--mode", choices=MODES, help="draw samples, average them, or regress [sample, if the weights can draw]")
    add("--samples", type=int, metavar="K", help=f"draws for each file [1; {AVERAGED} in mode mean]")
    add("--seed", type=int, default=0, metavar="N", help="the noise depends on it, on the file's key and no more [0]")
    add("--format", choices=get_args(Format), default="png", help="lossless; npy: a NumPy array [%(default)s]")
    add("--output-shards", action="store_true", help="write a tar for each input tar, its other members carried along")
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="[%(default)s: a GPU when there is one]")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's convolutions; float32 is IEEE's, no TF32 [auto]",
    )
    add("--compile", action="store_true", help="compile the network for the GPU first, which takes minutes")
    add("--frontend", choices=FRONTENDS, default=defaults.frontend, help="how files are read, see below [%(default)s]")
    add("--tile", type=int, default=defaults.tile, metavar="N", help="pixels, a multiple of 16 [%(default)s]")
    add("--batch", type=int, default=defaults.batch, metavar="N", help="tiles at a time on a GPU [%(default)s]")
    add("--workers", type=int, default=0, metavar="N", help="0: one for each core; 1: everything in turn [%(default)s]")
    add("--max-pixels", type=int, default=defaults.max_pixels, metavar="N", help="refuse larger images [%(default)s]")
    add("--retry-failed", action="store_true", help="do failures again that were not the file's: memory, a disk, …")
    add("--overwrite", action="store_true", help="start afresh in an output folder that holds another run")
    add("--rank", type=int, metavar="R", help="of --world-size processes; restore a share [what torchrun or srun says]")
    add("--world-size", type=int, metavar="W", help="how many ranks there are [1, or what torchrun or srun says]")
    add(
        "--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster (see below) [local]"
    )
    add("--address", default="auto", metavar="HOST:PORT", help="of the Ray cluster; local: one of this machine [auto]")
    add("--actor-cpus", type=int, metavar="N", help="cores for each Ray worker [1; with GPUs each one's share]")
    add("--merge", action="store_true", help="restore nothing, only make one manifest of the ranks' parts")
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
    if given.output_dir is None and not given.merge:
        given.output_dir = OUTPUT
        if not given.quiet:
            print(
                f"restore: outputs go to {Path(OUTPUT).absolute()} (--output-dir names another folder)", file=sys.stderr
            )
    for name in ("input_dir", "output_dir"):
        option = f"--{name.replace('_', '-')}"
        if getattr(given, name) is None:
            if given.merge and name == "input_dir":
                continue
            raise UsageError(f"{option} is missing (see --help)")
        try:
            setattr(given, name, address(getattr(given, name)))
        except AddressError as error:
            raise UsageError(f"{option} {error}") from error
    for name, least in (("batch", 1), ("workers", 0), ("max_pixels", 1), ("samples", 1), ("actor_cpus", 1)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(given, name)}: expected at least {least}")
    given.share = share_of(given)
    return given


def share_of(given: argparse.Namespace) -> Share:
    """Which rank this process is. Raises UsageError."""
    try:
        share = choose(given.rank, given.world_size, os.environ)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if given.merge and given.rank is None:
        return Share()
    alone = next((name for name in ("merge", "overwrite", "retry_failed") if getattr(given, name)), None)
    if share.part and alone is not None:
        option = f"--{alone.replace('_', '-')}"
        raise UsageError(f"{option}: not with {share.ranks} ranks; none knows whether the others have begun")
    return share


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
    options = Options(
        mode=given.mode,
        samples=samples,
        tile=given.tile,
        batch=given.batch,
        max_pixels=given.max_pixels,
        frontend=given.frontend,
        compile=given.compile,
    )
    device = given.share.device(given.device, torch.cuda.device_count())
    try:
        require(given.format)
        restorer = Restorer.from_pretrained(given.weights, device, given.dtype, options)
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
        retry_failed=given.retry_failed,
        verify=given.verify,
        quiet=given.quiet,
        share=given.share,
        dtype=given.dtype,
    )


def restore(given: argparse.Namespace) -> int:
    """Does what the options say; returns the exit code."""
    if given.merge:
        if isinstance(given.output_dir, Remote):
            raise UsageError(f"--merge: in a store the manifest stays in parts: {manifest_address(given.output_dir)}")
        counts = merge(given.output_dir)
        if not given.quiet:
            print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no lines", file=sys.stderr)
        return SOME_FAILED if counts["failed"] else FINISHED
    if given.engine == "ray":
        return SOME_FAILED if on_cluster(given) else FINISHED
    job = prepare(given)
    if job.share.part and not job.quiet:
        who = f"rank {job.share.rank} of {job.share.ranks} ({job.share.said_by})"
        print(f"restore: {who}, on {job.restorer.device}", file=sys.stderr)
    failed = run(job)
    return SOME_FAILED if failed and not job.share.part else FINISHED


def on_cluster(given: argparse.Namespace) -> int:
    """Restores with Ray; returns how many lines say `failed`."""
    if given.device not in ("auto", "cpu"):
        raise UsageError(f"--device {given.device}: with --engine ray, auto or cpu; each worker gets a GPU of its own")
    if given.share.part:
        raise UsageError(f"--engine ray: start it once, not as {given.share.ranks} ranks")
    for name in ("input_dir", "output_dir", "weights"):
        value = getattr(given, name)
        if isinstance(value, Path):
            setattr(given, name, value.absolute())
        elif name == "weights" and value is not None and not (SHIPPED / f"{value}.safetensors").exists():
            given.weights = str(Path(value).absolute())
    device, given.device = given.device, "cpu"
    compiled, given.compile = given.compile, False  # not here: by the workers
    job = prepare(given)
    job.restorer.options = replace(job.restorer.options, compile=compiled)
    return cluster.run(job, given.weights, device, given.dtype, address=given.address, cpus=given.actor_cpus)


@contextmanager
def terminable() -> Iterator[list[int]]:
    """SIGTERM ends what is inside as Ctrl-C does: nothing half done is left behind. Yields the SIGTERMs that arrived.
    An exception of another class would not tell: Ray replaces what is raised inside its own code."""
    arrived: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        arrived.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    """Restores and returns the exit code; see --help. To be called from the main thread, which signals reach."""
    arrived: list[int] = []
    try:
        with terminable() as arrived:
            return restore(parse(arguments))
    except KeyboardInterrupt:
        print("restore: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 128 + (signal.SIGTERM if arrived else signal.SIGINT)
    except (UsageError, SourceError, SinkError, FrontendError, cluster.ClusterError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        print("restore: stopped by an error of its own; what is finished stays finished", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    code = main()
    if code > 128:  # a thread may be left amid what cannot be interrupted: the interpreter's own end could crash on it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
