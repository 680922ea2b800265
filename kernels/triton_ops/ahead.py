"""Compiles every configuration of every kernel for GPUs that need not be there, and reads off what each takes.

python -m kernels.triton_ops.ahead              a table for sm_80, sm_90 and sm_100
python -m kernels.triton_ops.ahead --json       the same for programs
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.coefficients import Subsampling
from kernels.triton_ops import KERNELS
from kernels.triton_ops.launch import INTERPRETED

CAPABILITIES = (80, 90, 100)
IMAGES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Resources:
    """What one configuration takes. registers and stack (spilled bytes): of a thread. shared: bytes of a program."""

    kernel: str
    sampling: str
    dtype: str
    capability: int
    blocks: int
    warps: int
    registers: int
    stack: int
    shared: int


def types(kernel: Any, dtype: str) -> dict[str, str]:
    """The kernel's signature; what an argument is can be told from its name."""
    names = {"tables": "*i32", "image8": "*u8", "mismatches": "*i32", "stride_w": "constexpr"}
    names |= dict.fromkeys(("x", "out", "gradient"), f"*{dtype}")
    names |= {"out32": "*fp32", "gradient32": "*fp32", "half": "fp32"}
    names |= {argument: "*i16" for argument in kernel.arg_names if argument.endswith("_plane")}
    names |= {argument: "constexpr" for argument in kernel.arg_names if argument.isupper()}
    return {argument: names.get(argument, "i32") for argument in kernel.arg_names}


def compile_kernel(name: str, sampling: Subsampling, dtype: str, capability: int) -> Iterator[Resources]:
    """One kernel for one kind of input, in each of its configurations."""
    tuner = KERNELS[name]
    kernel = tuner.fn
    signature = types(kernel, dtype)
    for config in tuner.configs:
        vertical, horizontal = sampling.factors
        values = {"C": sampling.components, "V": vertical, "H": horizontal, "stride_w": 1, **config.kwargs}
        constants = {key: value for key, value in values.items() if key in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": config.num_warps}
        )
        registers, stack = usage(compiled.asm["cubin"])
        shared = compiled.metadata.shared
        blocks = config.kwargs["BLOCKS"]
        yield Resources(name, sampling.label, dtype, capability, blocks, config.num_warps, registers, stack, shared)


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack in bytes) of a thread, as cuobjdump of Triton's own package tells."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), help="[all]")
    labels = [sampling.label for sampling in Subsampling]
    parser.add_argument("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    parser.add_argument("--capability", nargs="+", type=int, default=list(CAPABILITIES), help="[80 90 100]")
    parser.add_argument("--dtype", nargs="+", choices=IMAGES, default=["fp32"], help="of the images [fp32]")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    if INTERPRETED:
        parser.error("with TRITON_INTERPRET=1 nothing is compiled")
    samplings = [Subsampling.from_label(label) for label in options.sampling]
    work = list(product(options.kernel, samplings, options.dtype, options.capability))
    if not options.json:
        print("| kernel | sampling | images | sm | blocks | warps | registers | stack | shared |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for arguments in tqdm(work, unit="kernel", leave=False, file=sys.stderr):
        for row in compile_kernel(*arguments):
            line = json.dumps(asdict(row)) if options.json else f"| {' | '.join(map(str, asdict(row).values()))} |"
            tqdm.write(line, file=sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
