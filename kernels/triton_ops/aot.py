"""Ahead-of-time compilation of every configuration of every kernel, without a GPU, and the resources that each takes.

python -m kernels.triton_ops.aot              a table for sm_80, sm_90 and sm_100
python -m kernels.triton_ops.aot --json       the same for programs
python -m kernels.triton_ops.aot --check      the table, and an error when a kernel spills
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.coefficients import Subsampling
from kernels.exact import DEFAULT_SETTINGS
from kernels.triton_ops import KERNELS, noise
from kernels.triton_ops.launch import INTERPRETED

CAPABILITIES = (80, 90, 100)
IMAGES = ("fp32", "bf16", "fp16")

POINTERS = {
    **dict.fromkeys(("x", "out", "gradient"), "image"),
    **dict.fromkeys(("out32", "gradient32", "amplitude"), "fp32"),
    **dict.fromkeys(("luma_plane", "cb_plane", "cr_plane", "ranges"), "i16"),
    **dict.fromkeys(("tables", "mismatches", "listed", "bases", "margins"), "i32"),
    **dict.fromkeys(("seeds", "origins"), "i64"),
    "image8": "u8",
}
"""Element types of pointers, by the argument's name; image: that of the caller's images."""

FLOATS = ("half", "limit")

CONSTANTS: dict[str, dict[str, Any]] = {
    "noise": noise.CONSTANTS,
    "uniform": noise.CONSTANTS,
    **{name: {"SETTINGS": replace(DEFAULT_SETTINGS, margins=())} for name in ("exact", "mend", "edge")},
}
"""Constants of a kernel that neither its sampling nor its configuration says, by the kernel's name."""

Job = tuple[str, Subsampling, str, int]
"""Kernel, sampling, dtype of the images, capability: a call of `compile_kernel`."""


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


def source_of(kernel: Any, values: dict[str, Any], dtype: str) -> ASTSource:
    """What a launch compiles on contiguous images in memory as PyTorch allocates it, which starts at multiples of 16
    bytes. values: the constants."""
    signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(FLOATS, "fp32")
    signature |= {name: f"*{dtype if target == 'image' else target}" for name, target in POINTERS.items()}
    signature = {name: "constexpr" if name in values else signature[name] for name in kernel.arg_names}
    constants = {name: value for name, value in values.items() if name in signature}
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_kernel(name: str, sampling: Subsampling, dtype: str, capability: int) -> Iterator[Resources]:
    """One kernel for one kind of input, in each of its configurations."""
    kernel = KERNELS[name]
    vertical, horizontal = sampling.factors
    always = {"C": sampling.components, "V": vertical, "H": horizontal, "stride_w": 1, "gradient_stride_w": 1}
    for chosen in kernel.configurations:
        source = source_of(kernel.fn, always | CONSTANTS.get(name, {}) | chosen.constants(sampling), dtype)
        options = chosen.options_of(sampling)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        blocks = vertical * horizontal if chosen.single else chosen.blocks
        taken = (*usage(compiled.asm["cubin"]), compiled.metadata.shared)
        yield Resources(name, sampling.label, dtype, capability, blocks, options["num_warps"], *taken)


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack in bytes) of a thread, by the cuobjdump of Triton's own package."""
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


def compile_job(job: Job) -> list[Resources]:
    return list(compile_kernel(*job))


def compile_all(work: list[Job], processes: int) -> Iterator[Resources]:
    """In the order of `work`, as it is done; in this process if there is to be one."""
    if processes == 1:
        for job in tqdm(work, unit="kernel", leave=False, file=sys.stderr):
            yield from compile_kernel(*job)
        return
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for found in tqdm(pool.map(compile_job, work), total=len(work), unit="kernel", leave=False, file=sys.stderr):
            yield from found


MOST_SHARED = 100 * 1024


def faults(row: Resources) -> list[str]:
    """What a kernel may not do: keep values in memory for want of registers, or take most of the shared memory."""
    found = [f"{row.stack} bytes of stack: it spills"] * (row.stack > 0)
    return found + [f"{row.shared} bytes of shared memory, more than {MOST_SHARED}"] * (row.shared > MOST_SHARED)


def main() -> int:
    """Exit code 1 when --check finds fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), help="[all]")
    labels = [sampling.label for sampling in Subsampling]
    parser.add_argument("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    parser.add_argument("--capability", nargs="+", type=int, default=list(CAPABILITIES), help="[80 90 100]")
    parser.add_argument("--dtype", nargs="+", choices=IMAGES, default=["fp32"], help="of the images [fp32]")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="compile N kernels at a time [1]")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--check", action="store_true", help="fail when a kernel spills, or takes much shared memory")
    options = parser.parse_args()
    if INTERPRETED:
        parser.error("with TRITON_INTERPRET=1 nothing is compiled")
    samplings = [Subsampling.from_label(label) for label in options.sampling]
    first = (samplings[0], options.dtype[0])  # the noise depends on neither: once is enough
    work = [
        job
        for job in product(options.kernel, samplings, options.dtype, options.capability)
        if job[0] not in ("noise", "uniform") or job[1:3] == first
    ]
    if not options.json:
        print("| kernel | sampling | images | sm | blocks | warps | registers | stack | shared |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    wrong = []
    for row in compile_all(work, options.processes):
        line = json.dumps(asdict(row)) if options.json else f"| {' | '.join(map(str, asdict(row).values()))} |"
        tqdm.write(line, file=sys.stdout)
        wrong += [f"{row.kernel} {row.sampling} sm_{row.capability}: {fault}" for fault in faults(row)]
    if options.check and wrong:
        print("aot:", *wrong, sep="\n", file=sys.stderr)
    return int(options.check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
