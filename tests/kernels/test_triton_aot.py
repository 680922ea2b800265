"""Every configuration compiles for GPUs that are not here, spills nothing and leaves shared memory to others."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from kernels.triton_ops import KERNELS
from kernels.triton_ops.aot import MOST_SHARED, Resources, faults


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """What `python -m kernels.triton_ops.aot` finds: one of its own, for here kernels are interpreted."""
    command = [sys.executable, "-m", "kernels.triton_ops.aot", "--json", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(900)
def test_kernels_compile_ahead_of_time_without_spilling():
    """Those that compile soon, for one sampling and GPU; .ci/run compiles all."""
    names = ["encode", "project", "noise", "uniform"]
    assert {*names} <= set(KERNELS)
    rows = compiled("--check", "--sampling", "4:2:0", "--capability", "90", "--kernel", *names)
    assert {row["kernel"] for row in rows} == set(names)
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] < 100 * 1024, row
        assert 0 < row["registers"] <= 255, row
        if row["kernel"] == "noise":  # 1024 threads of an SM's 65,536 registers, without shared memory
            assert (row["registers"] <= 64, row["shared"]) == (True, 0)


def test_images_of_half_the_size():
    rows = compiled(
        *("--check", "--dtype", "bf16", "fp16", "--sampling", "gray", "--capability", "80", "--kernel", "encode")
    )
    assert {row["dtype"] for row in rows} == {"bf16", "fp16"}


def test_what_spills_is_found():
    row = Resources("encode", "gray", "fp32", 90, 4, 1, registers=255, stack=0, shared=MOST_SHARED)
    assert not faults(row)
    assert len(faults(replace(row, stack=8))) == 1
    assert len(faults(replace(row, stack=8, shared=MOST_SHARED + 1))) == 2
