"""project_exact on the CPU: compiled by numba, as a search sample by sample would be too slow in PyTorch."""

from __future__ import annotations

from torch import Tensor

from kernels.coefficients import Coefficients


def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """See kernels.project_exact."""
    from kernels import numba_ops  # noqa: PLC0415  # where it is used: a GPU needs no numba

    return numba_ops.project_exact(x, c)
