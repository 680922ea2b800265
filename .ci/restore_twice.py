"""Runs `python -m pipeline.restore` with the given options twice, into two folders, and compares every byte of the
outputs and the manifests' lines. Exit code 1 when something differs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def outputs(folder: Path) -> dict[str, bytes]:
    """By name; a manifest's lines in sorted order."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
    found["manifest.jsonl"] = b"\n".join(sorted((folder / "manifest.jsonl").read_bytes().splitlines()))
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / name for name in ("first", "second")]
        for place in folders:
            command = [sys.executable, "-m", "pipeline.restore", *sys.argv[1:], "--output-dir", str(place)]
            code = subprocess.run(command, check=False).returncode
            if code:
                return code
        first, second = map(outputs, folders)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print(f"{len(first)} files, {len(differing)} differ: {' '.join(differing)}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
