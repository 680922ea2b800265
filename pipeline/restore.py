"""The command `python -m pipeline.restore`; its options are in command_line.py."""

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
from typing import NoReturn

import torch

from model.weights import SHIPPED
from pipeline.command_line import MEAN_SAMPLES, UsageError, filters_of, parse
from pipeline.console import escape_names
from pipeline.distributed import cluster
from pipeline.engine.device import DeviceError, dtype_name
from pipeline.engine.dry_run import dry_run
from pipeline.engine.job import Job
from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.run import run
from pipeline.engine.signals import exit_process
from pipeline.inputs.listing import SourceError
from pipeline.inputs.remote import Address, Remote
from pipeline.jpeg.dali_frontend import FrontendError
from pipeline.outputs.formats import check_installed
from pipeline.outputs.manifest import manifest_address, merge
from pipeline.outputs.record import SinkError, describe_counts
from pipeline.report import write_report

FINISHED, SOME_FAILED, STOPPED = 0, 1, 2


def make_job(given: argparse.Namespace) -> Job:
    """Loads the weights and describes the run. Raises UsageError for options that the weights or the device do not
    support."""
    samples = given.samples or (MEAN_SAMPLES if given.mode == "mean" else 1)
    if given.format == "png16" and given.verify:
        raise UsageError("--verify: png16 has no certificate, because libjpeg-turbo compresses 8-bit images only")
    options = Options(
        mode=given.mode,
        samples=samples,
        tile=given.tile,
        batch=given.batch,
        max_pixels=given.max_pixels,
        frontend=given.frontend,
        compile=given.compile,
        strength=given.strength,
        bits=16 if given.format == "png16" else 8,
    )
    device = given.share.device(given.device, torch.cuda.device_count())
    try:
        check_installed(given.format)
        restorer = Restorer.from_pretrained(given.weights, device, given.dtype, options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Job(
        restorer=restorer,
        inputs=tuple(given.inputs),
        output=given.output_dir,
        seed=given.seed,
        format=given.format,
        shards=given.output_shards,
        workers=given.workers,
        overwrite=given.overwrite,
        retry_failed="all" if given.retry_all_failed else "transient" if given.retry_failed else "",
        verify=given.verify,
        quiet=given.quiet,
        share=given.share,
        device=restorer.device.type,
        dtype=dtype_name(restorer.dtype),
        filters=filters_of(given),
        limit=given.limit,
        provenance=not given.no_provenance,
        upright=given.upright,
    )


def restore(given: argparse.Namespace) -> int:
    """Runs what the options ask for; returns the exit code."""
    if given.merge:
        if isinstance(given.output_dir, Remote):
            raise UsageError(f"--merge: in a store the manifest is not merged: {manifest_address(given.output_dir)}")
        counts = merge(given.output_dir)
        if not given.quiet:
            print(describe_counts(counts) or "no lines", file=sys.stderr)
        return SOME_FAILED if counts["failed"] else FINISHED
    if given.engine == "ray":
        return SOME_FAILED if on_cluster(given) else FINISHED
    job = make_job(given)
    if given.dry_run:
        print(dry_run(job), flush=True)
        return FINISHED
    if job.share.part and not job.quiet:
        rank = f"rank {job.share.rank} of {job.share.world_size} ({job.share.origin})"
        print(f"restore: {rank}, on {job.restorer.device}", file=sys.stderr)
    failed = run(job)
    return SOME_FAILED if failed and not job.share.part else FINISHED


def on_cluster(given: argparse.Namespace) -> int:
    """Restores with Ray; returns the number of `failed` manifest lines."""
    if given.device not in ("auto", "cpu"):
        raise UsageError(f"--device {given.device}: with --engine ray, use auto or cpu; each worker gets its own GPU")
    if given.share.part:
        raise UsageError(f"--engine ray: start it once, not as {given.share.world_size} ranks")
    given.inputs = [absolute(one) for one in given.inputs]
    given.output_dir = absolute(given.output_dir)
    if given.weights is not None and not (SHIPPED / f"{given.weights}.safetensors").exists():
        given.weights = str(Path(given.weights).absolute())
    device, given.device = given.device, "cpu"
    compiled, given.compile = given.compile, False  # the workers compile, not this process
    job = make_job(given)
    job.restorer.options = replace(job.restorer.options, compile=compiled)
    job = replace(job, device="", dtype=given.dtype)
    return cluster.run(job, given.weights, device, given.dtype, address=given.address, cpus=given.actor_cpus)


def absolute(place: Address) -> Address:
    return place.absolute() if isinstance(place, Path) else place


@contextmanager
def sigterm_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt inside the block, as Ctrl-C does, so that partial outputs are removed. Yields a
    list of the SIGTERMs that arrived. An exception class of our own would not do: Ray replaces exceptions inside its
    code."""
    arrived: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        arrived.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None, prog: str = "python -m pipeline.restore") -> int:
    """Restores and returns the exit code; see --help. Must be called from the main thread, which receives signals."""
    arrived: list[int] = []
    overwrite = False
    escape_names()
    try:
        with sigterm_as_interrupt() as arrived:
            given = parse(arguments, prog)
            overwrite = given.overwrite
            code = restore(given)
            if given.report and not given.dry_run:
                place = write_report(given.output_dir, given.inputs)
                if not given.quiet:
                    print(f"the report is {place}", file=sys.stderr)
            return code
    except KeyboardInterrupt:
        how = "run the same command again" + (", without --overwrite," if overwrite else "")
        print(f"restore: interrupted; {how} to continue", file=sys.stderr)
        return 128 + (signal.SIGTERM if arrived else signal.SIGINT)
    except BrokenPipeError:  # of a program that reads what is printed; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UsageError, SourceError, SinkError, FrontendError, DeviceError, cluster.ClusterError) as error:
        print(f"restore: {'; '.join([str(error), *getattr(error, '__notes__', [])])}", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        print("restore: internal error; finished inputs stay finished", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    exit_process(main())
