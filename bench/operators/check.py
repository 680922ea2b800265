"""Checks that two implementations of an operator agree, before they are timed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.operators.cases import Case, Inputs, Operators, in_torch, make_inputs, run
from kernels import Coefficients
from kernels.libjpeg import compress

SIDE, IMAGES = 93, 3
NEAR, FEW = 0.02, 0.02
"""Tolerance in gray levels, in addition to the dtype's last bits; the share of values that may exceed it. A coefficient
next to a tie may be rounded to either side, which changes its whole block."""


def to_cpu(inputs: Inputs) -> Inputs:
    gradient = None if inputs.gradient is None else inputs.gradient.cpu()
    return Inputs(inputs.x.cpu(), inputs.c.to("cpu"), gradient)


def share_apart(found: Tensor, expected: Tensor) -> float:
    """The share of values that exceed the tolerance."""
    near = NEAR + 2 * torch.finfo(expected.dtype).eps * expected.float().abs()
    return float(((found.float() - expected.float()).abs() > near).float().mean())


def compare_coefficients(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str:
    apart = [(a.int() - b.int()).abs() for a, b in zip(found, expected, strict=True)]
    share = sum(int((d > 0).sum()) for d in apart) / sum(d.numel() for d in apart)
    worst = max(int(d.max()) for d in apart)
    return f"{100 * share:.2f} % of coefficients differ, by {worst} at most" if share > 1e-3 or worst > 1 else ""


def compare_exact(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], c: Coefficients) -> str:
    """Also checks the certificate by libjpeg's arithmetic. The search is in integers, so images must be equal."""
    (image, mismatches), (other, others) = found, expected
    counted = compress(image, c.tables, c.sampling).mismatches(c)
    if not torch.equal(counted, mismatches.long()):
        return f"claims {mismatches.tolist()} mismatches, has {counted.tolist()}"
    if not torch.equal(mismatches.long(), others):
        return f"{mismatches.tolist()} mismatches, numba_ops {others.tolist()}"
    share = float((image != other).float().mean())
    return f"{100 * share:.2f} % of values differ from numba_ops" if share else ""


def disagreement(case: Case, operators: Operators, device: torch.device) -> str:
    """How `operators` differ on small images of an odd size from torch_ops, or numba_ops, on the CPU; empty if they
    agree."""
    case = replace(case, images=IMAGES, side=SIDE)
    inputs = make_inputs(case, device, seed=1)
    found = tuple(tensor.cpu() for tensor in run(operators, case, inputs))
    expected = run(in_torch(), case, to_cpu(inputs))
    if case.operator == "encode":
        return compare_coefficients(found, expected)
    if case.operator == "project_exact":
        return compare_exact(found, expected, inputs.c.to("cpu"))
    names = ("the result", "the gradient")
    for name, a, b in zip(names, found, expected, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {list(a.shape)} {a.dtype}, expected {list(b.shape)} {b.dtype}"
        if not share_apart(a, b) <= FEW:
            return f"{100 * share_apart(a, b):.1f} % of {name} differs"
    return ""
