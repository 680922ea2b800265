"""Verifies certificates after the fact: `python -m pipeline.verify restored/photo.png photo.jpg`, or all of a run,
`python -m pipeline.verify --output-dir restored`.

Compresses restored images with libjpeg-turbo, with the JPEG file's tables and sampling, and counts the coefficients
that differ from the file's."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kernels.cores import available_cores
from pipeline.console import escape_names
from pipeline.engine.options import Options
from pipeline.engine.progress import progress_bar
from pipeline.engine.verification import verify_certificates
from pipeline.inputs.remote import Address, AddressError, RemoteError, address
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.certificates import certified
from pipeline.outputs.files import inputs_of
from pipeline.outputs.formats import is_16_bits
from pipeline.outputs.record import IDENTITY, SinkError, read_identity
from pipeline.outputs.verify import count_mismatches

PROVED, DIFFERS, STOPPED = 0, 1, 2

EPILOG = """\
Each image (PNG, WebP, JPEG XL or npy, of this or another program) is followed by the JPEG file that it was restored
from. For each pair, a line with the number of coefficients that differ is printed.

With --output-dir all images that have a certificate are counted again, and each line of the manifest that states
another number is printed, and those whose files cannot be read.

exit codes: 0 every image compresses to its file (--output-dir: every certificate is true), 1 some do not (are not),
2 some could not be read, or there is none

examples:
  python -m pipeline.verify restored/photo.png photo.jpg
  python -m pipeline.verify restored/a.png a.jpg restored/b.webp b.jpg
  python -m pipeline.verify --output-dir restored
  python -m pipeline.verify --output-dir s3://photos/restored --input-dir s3://photos/shards
"""


def parser(prog: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=prog,
        description="Verify that libjpeg-turbo compresses an image to exactly the coefficients of a JPEG file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("files", nargs="*", metavar="RESTORED ORIGINAL", help="pairs of an image and a JPEG file")
    add("--output-dir", metavar="DIR", help="the output folder of a run, or its address: verify all its certificates")
    add("--input-dir", nargs="+", default=[], metavar="INPUT", help="where its inputs are now [as in the run]")
    most = Options.max_pixels
    add("--max-pixels", type=int, default=most, metavar="N", help="refuse larger files [%(default)s]")
    add("--workers", type=int, default=0, metavar="N", help="processes for a run [one per available core]")
    add("--quiet", action="store_true", help="print only images that do not match")
    return result


def verify(restored: Path, original: Path, quiet: bool, max_pixels: int = Options.max_pixels) -> int:
    """Verifies one pair and prints the result; returns an exit code."""
    try:
        bitstream = read_bitstream(original.read_bytes(), max_pixels)
    except (OSError, JpegError) as error:
        print(f"verify: {original}: {_reason(error)}", file=sys.stderr)
        return STOPPED
    try:
        data = restored.read_bytes()
        if is_16_bits(data):
            raise ValueError(
                "16 bits per channel; libjpeg-turbo compresses 8-bit images only, so there is no certificate"
            )
        found = count_mismatches(data, bitstream)
    except Exception as error:  # of any type that a decoding library raises
        print(f"verify: {restored}: {_reason(error)}", file=sys.stderr)
        return STOPPED
    if found or not quiet:
        verdict = f"does not compress to {original}" if found else f"compresses to {original}"
        print(f"{restored}: {verdict}: {found} of {bitstream.coefficients.count} coefficients differ")
    return DIFFERS if found else PROVED


def verify_run(
    output: Address, inputs: Sequence[Address], quiet: bool, max_pixels: int = Options.max_pixels, workers: int = 1
) -> int:
    """Verifies all certificates of a run, and prints what is wrong and a summary; returns an exit code. inputs: empty:
    where they were. workers: processes."""
    code, images = PROVED, 0
    certificates = coefficients = mismatches = 0
    try:
        run = read_identity(output)
        if run is None:
            raise SinkError(f"{output}: has no {IDENTITY}; give the output folder of a run")
        verdicts = verify_certificates(output, inputs or inputs_of(run), max_pixels, workers)
        total = sum(1 for _ in certified(output))
        with progress_bar(total, 0, quiet) as progress, closing(verdicts):
            for verdict in verdicts:
                record, certificates = verdict.record, certificates + 1
                code = max(code, STOPPED if verdict.problem else DIFFERS if not verdict.is_true else PROVED)
                if verdict.problem:
                    progress.write(f"verify: {record.source}: {verdict.problem}", file=sys.stderr)
                elif not verdict.is_true:
                    wrong = f"{verdict.found} coefficients differ, the manifest states {record.mismatches}"
                    progress.write(f"{record.source}: {wrong}")
                images += len(record.outputs) * (not verdict.problem)
                mismatches += verdict.found or 0
                coefficients += (record.coefficients or 0) * len(record.outputs) * (not verdict.problem)
                progress.update()
    except (SinkError, OSError, RemoteError) as error:
        print(f"verify: {_reason(error)}", file=sys.stderr)
        return STOPPED
    if not certificates:
        print(f"verify: {output}: its manifest has no line with a certificate that can be verified", file=sys.stderr)
        return STOPPED
    if not quiet:
        print(f"{images} images verified: {mismatches} of {coefficients} coefficients differ")
    return code


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error) or repr(error)


def main(arguments: list[str] | None = None, prog: str = "python -m pipeline.verify") -> int:
    """Verifies and returns the exit code; see --help."""
    commands = parser(prog)
    given = commands.parse_args(arguments)
    escape_names()
    try:
        return _verify(given, commands)
    except KeyboardInterrupt:
        print("verify: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _verify(given: argparse.Namespace, commands: argparse.ArgumentParser) -> int:
    if bool(given.files) == bool(given.output_dir):
        commands.error("give pairs, RESTORED ORIGINAL …, or --output-dir with the folder of a run")
    if given.output_dir:
        try:
            places = [address(place) for place in (given.output_dir, *given.input_dir)]
        except AddressError as error:
            commands.error(str(error))
        if given.workers < 0:
            commands.error(f"--workers {given.workers}: expected 1 or more, or 0")
        workers = given.workers or available_cores()
        return verify_run(places[0], places[1:], given.quiet, given.max_pixels, workers)
    if len(given.files) % 2:
        commands.error(f"{given.files[-1]} has no original: give pairs, RESTORED ORIGINAL RESTORED ORIGINAL …")
    paths = list(map(Path, given.files))
    return max(verify(*pair, given.quiet, given.max_pixels) for pair in zip(paths[::2], paths[1::2], strict=True))


if __name__ == "__main__":
    sys.exit(main())
