"""Compiles what a restoration on a GPU launches, before the first file needs it.

python -m pipeline.warm_up            every kernel, for this machine's GPU, into Triton's cache (TRITON_CACHE_DIR)

`python -m pipeline.restore` compiles what it needs by itself; this is for images of machines, and for measuring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from functools import partial

import torch

from kernels import Subsampling

NEEDED = ("decode", "project_exact")
"""The operators that a restoration uses; all others are for training."""

DTYPES = (torch.float32, torch.bfloat16)


def compile_kernels(
    device: torch.device,
    processes: int = 0,
    progress: bool = True,
    *,
    operators: Iterable[str] = NEEDED,
    samplings: Iterable[Subsampling] = tuple(Subsampling),
    dtypes: Iterable[torch.dtype] = DTYPES[:1],
) -> dict[str, str]:
    """Kernels of these operators and the noise's, in several processes (0: one for each core but one), unless Triton's
    cache has them. What failed, by name, with the reason: it will fail again for the files that need it."""
    from kernels.triton_ops.warm_up import operator_tasks, warm_up  # noqa: PLC0415  # the CPU needs no Triton

    tasks = operator_tasks(operators, samplings, dtypes, device)
    tasks["noise"] = partial(draw_noise, device)
    failed = warm_up(tasks, processes=processes, progress=progress)
    for name, reason in failed.items():
        print(f"kernels of {name} could not be compiled ahead: {reason}", file=sys.stderr)
    return failed


def draw_noise(device: torch.device) -> None:
    """Compiles and launches the noise's kernel."""
    from kernels.triton_ops.noise import gaussian  # noqa: PLC0415

    zeros = torch.zeros(1, 3, dtype=torch.int64, device=device)
    gaussian(zeros[:, 0], 0, 4, zeros[:, 1:], (8, 8))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    from kernels.triton_ops.launch import INTERPRETED  # noqa: PLC0415
    from kernels.triton_ops.warm_up import OPERATORS  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.warm_up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    labels = [sampling.label for sampling in Subsampling]
    parser.add_argument("--operator", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="[all]")
    parser.add_argument("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="0: one for each core but one [0]")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or INTERPRETED):
        parser.error("PyTorch sees no GPU; `python -m kernels.triton_ops.ahead` compiles for GPUs that are not here")
    device = torch.device("cpu" if INTERPRETED else "cuda")
    samplings = [Subsampling.from_label(label) for label in options.sampling]
    return int(
        bool(compile_kernels(device, options.processes, operators=options.operator, samplings=samplings, dtypes=DTYPES))
    )


if __name__ == "__main__":
    sys.exit(main())
