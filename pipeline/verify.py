"""Verifies certificates without a run: `python -m pipeline.verify restored/photo.png photo.jpg`.

Compresses a restored image with libjpeg-turbo, with the JPEG file's tables and sampling, and counts the coefficients
that differ from the file's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.console import escape_names
from pipeline.engine.options import Options
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.formats import is_16_bits
from pipeline.outputs.verify import count_mismatches

PROVED, DIFFERS, STOPPED = 0, 1, 2

EPILOG = """\
Each image (PNG, WebP, JPEG XL or npy, of this or another program) is followed by the JPEG file that it was restored
from. For each pair, a line with the number of coefficients that differ is printed.

exit codes: 0 every image compresses to its file, 1 some do not, 2 some could not be read

examples:
  python -m pipeline.verify restored/photo.png photo.jpg
  python -m pipeline.verify restored/a.png a.jpg restored/b.webp b.jpg
"""


def parser(prog: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=prog,
        description="Verify that libjpeg-turbo compresses an image to exactly the coefficients of a JPEG file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("files", nargs="+", metavar="RESTORED ORIGINAL", help="pairs of an image and a JPEG file")
    most = Options.max_pixels
    result.add_argument("--max-pixels", type=int, default=most, metavar="N", help="refuse larger files [%(default)s]")
    result.add_argument("--quiet", action="store_true", help="print only images that do not match")
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


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error) or repr(error)


def main(arguments: list[str] | None = None, prog: str = "python -m pipeline.verify") -> int:
    """Verifies and returns the exit code; see --help."""
    commands = parser(prog)
    given = commands.parse_args(arguments)
    escape_names()
    if len(given.files) % 2:
        commands.error(f"{given.files[-1]} has no original: give pairs, RESTORED ORIGINAL RESTORED ORIGINAL …")
    paths = list(map(Path, given.files))
    return max(verify(*pair, given.quiet, given.max_pixels) for pair in zip(paths[::2], paths[1::2], strict=True))


if __name__ == "__main__":
    sys.exit(main())
