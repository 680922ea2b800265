"""Prints what the machine is, as a line of JSON. Exit code 1 when a module that .ci/gpu needs cannot be imported, or a
device that is named does not work.

  python .ci/describe.py cuda
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys

NUMERICAL = ("torch", "triton", "numpy", "numba")
OTHERS = ("PIL", "yaml", "tqdm", "safetensors", "fsspec", "isal", "jpeglib", "simplejpeg")
OURS = ("kernels", "model.generator", "pipeline.engine.restorer", "train.trainer")
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader")
MISSING = "missing"


def version(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "imported"))
    except Exception as error:
        return f"{MISSING}: {type(error).__name__}: {error}"


def works(device: str) -> str:
    try:
        torch = importlib.import_module("torch")
        return "works" if float(torch.ones(2, device=device).sum()) == 2 else f"{MISSING}: sums wrongly"
    except Exception as error:
        return f"{MISSING}: {type(error).__name__}: {error}"


def main() -> int:
    found = {name: version(name) for name in (*NUMERICAL, *OTHERS, *OURS)}
    found |= {device: works(device) for device in sys.argv[1:]}
    code = int(any(text.startswith(MISSING) for text in found.values()))
    if shutil.which(QUERY[0]):
        found["gpu"] = subprocess.run(QUERY, capture_output=True, text=True, check=False).stdout.strip()
    found["cores"] = str(len(os.sched_getaffinity(0)))
    print(json.dumps(found))
    return code


if __name__ == "__main__":
    sys.exit(main())
