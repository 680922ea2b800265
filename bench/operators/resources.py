"""What each configuration of each kernel takes, by compiling it for a GPU that need not be there."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import product
from typing import Any

from tqdm import tqdm

from bench.operators.cases import OPERATORS
from bench.operators.table import line
from kernels import Subsampling

HEADER = ("kernel", "sampling", "images", "sm", "blocks", "warps", "registers", "stack", "shared")
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def kernels_of(operators: list[str], kernels: list[str]) -> list[str]:
    """The kernels that these operators launch."""
    named = {name.replace("+", "_"): name for name in OPERATORS} | dict.fromkeys(
        ("exact", "mend", "edge"), "project_exact"
    )
    forward = {name.removesuffix("+backward") for name in operators}
    return [kernel for kernel in kernels if named.get(kernel) in operators or kernel in forward]


def print_resources(
    operators: list[str], samplings: list[Subsampling], dtypes: list[str], capabilities: list[int]
) -> dict[str, Any]:
    """Prints the table: registers and stack (bytes spilled) of a thread, shared memory of a program in bytes."""
    from kernels.triton_ops import KERNELS, aot  # noqa: PLC0415  # where it is used: the CPU's table needs no Triton

    work = list(product(kernels_of(operators, list(KERNELS)), samplings, dtypes, capabilities))
    print(line(list(HEADER)))
    print(line(["---"] * len(HEADER)))
    rows = []
    for kernel, sampling, dtype, capability in tqdm(work, unit="kernel", leave=False, file=sys.stderr):
        for resources in aot.compile_kernel(kernel, sampling, DTYPES[dtype], capability):
            rows.append(asdict(resources))
            tqdm.write(line([str(rows[-1][name]) for name in columns(rows[-1])]), file=sys.stdout)
    return {"resources": rows}


def columns(row: dict[str, Any]) -> list[str]:
    names = ("kernel", "sampling", "dtype", "capability", "blocks", "warps", "registers", "stack", "shared")
    return [name for name in names if name in row]
