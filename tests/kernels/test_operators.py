"""Operators are chosen by device alone, and both packages have all of them."""

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
