"""Operators are chosen by device alone, both packages have all of them, and PyTorch's defaults do not change them."""

import subprocess
import sys

import pytest
import torch

import kernels
from kernels import torch_ops, triton_ops
from kernels.operators import implementation

OPERATORS = ("decode", "encode", "excess", "project", "project_exact", "roundtrip")


def test_both_implementations_have_every_operator():
    for name in OPERATORS:
        assert name in kernels.__all__
        assert callable(getattr(torch_ops, name))
        assert callable(getattr(triton_ops, name))


def test_the_cpu_takes_pytorch():
    assert implementation(torch.device("cpu")) is torch_ops


def test_a_missing_triton_is_an_error_and_no_slower_path(monkeypatch):
    monkeypatch.delattr(kernels, "triton_ops", raising=False)
    monkeypatch.setitem(sys.modules, "kernels.triton_ops", None)
    with pytest.raises(RuntimeError, match=r"tensors on cuda need Triton: pip install 'triton>=3\.6'"):
        implementation(torch.device("cuda"))


def succeed(code: str) -> None:
    """In a process of its own, where operators are used for the first time."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_default_dtype_changes_nothing():
    code = (
        "import torch\n"
        "torch.set_default_dtype(torch.float64)\n"
        "from kernels import Subsampling, encode, project, quality_to_tables, roundtrip\n"
        "x, tables = torch.rand(1, 3, 21, 18, dtype=torch.float32), quality_to_tables(50, 3)[None]\n"
        "assert roundtrip(x, tables, Subsampling.S420).dtype == torch.float32\n"
        "assert project(x, encode(x, tables, Subsampling.S420)).dtype == torch.float32\n"
    )
    succeed(code)


def test_a_default_device_changes_nothing():
    """Of the first use, which makes the constants, and of what is cached; "meta" stands for a GPU."""
    code = (
        "import torch\n"
        "from kernels import Subsampling, encode, excess, project, project_exact, quality_to_tables, roundtrip\n"
        "from kernels.libjpeg import compress\n"
        "x, tables = torch.rand(1, 3, 21, 18) * 255, quality_to_tables(50, 3)[None]\n"
        "def results():\n"
        "    c = encode(x, tables, Subsampling.S420)\n"
        "    both = [roundtrip(x, tables, Subsampling.S420), project(x, c), excess(x, c), *project_exact(x, c)]\n"
        "    return both + list(compress(both[3], tables, Subsampling.S420).planes)\n"
        "with torch.device('meta'):\n"
        "    first = results()\n"
        "assert all(torch.equal(one, other) for one, other in zip(first, results(), strict=True))\n"
    )
    succeed(code)
