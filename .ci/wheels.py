"""Fetches the wheels that a GPU machine without a network lacks (.ci/wheels.txt), for .ci/gpu to install there.

  python .ci/wheels.py             into .whl, made small
  python .ci/wheels.py --check     only whether PyPI has all of them for that machine; nothing is written

jpeglib brings 27 codecs of 2 MB each; the two that are used are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

LIST = Path(__file__).with_name("wheels.txt")
GLIBC = (17, 27, 28, 34, 35, 39)
MACHINE = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
MACHINE += [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
MACHINE += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
CODEC, KEPT = "jpeglib/cjpeglib/", ("jpeglib/cjpeglib/cjpeglib_6b.", "jpeglib/cjpeglib/cjpeglib_turbo210.")
LIMIT = 32 << 20
"""Bytes of all wheels together: what travels to such a machine at once is 64 MiB, the photographs included."""


def prune(path: Path) -> None:
    """Leaves codecs that are not used, and C sources, out of jpeglib's wheel, and their lines out of its RECORD."""
    smaller = path.with_suffix(".part")

    def kept(name: str) -> bool:
        return not name.startswith(CODEC) or name.startswith(KEPT) or name.endswith(".py")

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        for name in filter(kept, old.namelist()):
            data = old.read(name)
            if name.endswith(".dist-info/RECORD"):
                data = b"".join(line for line in data.splitlines(True) if kept(line.decode().split(",")[0]))
            new.writestr(name, data)
    smaller.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".whl"), metavar="DIR", help="[.whl]")
    parser.add_argument("--check", action="store_true", help="download nothing")
    options = parser.parse_args()
    pip = [sys.executable, "-m", "pip"]
    if options.check:
        command = [*pip, "install", "--dry-run", "-q", "--ignore-installed", "--target", "nowhere"]
        return subprocess.run([*command, *MACHINE, "-r", LIST], check=False).returncode
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.out.glob("*.whl"):
        path.unlink()
    subprocess.run([*pip, "download", "-q", *MACHINE, "-d", options.out, "-r", LIST], check=True)
    for path in options.out.glob("jpeglib-*.whl"):
        prune(path)
    total = 0
    for path in sorted(options.out.glob("*.whl")):
        total += path.stat().st_size
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")
    print(f"{total / 1e6:6.1f} MB of {LIMIT / 1e6:.1f}")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
