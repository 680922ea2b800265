"""Kernels compile for GPUs that are not here, spill nothing and leave shared memory to others."""

import json
import os
import subprocess
import sys

from kernels.triton_ops.ahead import CAPABILITIES


def test_kernels_compile_ahead_of_time_without_spilling():
    # all kernels and samplings take minutes: `python -m kernels.triton_ops.ahead` does them
    command = [sys.executable, "-m", "kernels.triton_ops.ahead", "--json", "--kernel", "encode"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--sampling", "4:2:0"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["capability"] for row in rows} == set(CAPABILITIES)
    assert len(rows) == len(CAPABILITIES) * 3
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] < 100 * 1024, row
        assert 0 < row["registers"] <= 255, row
