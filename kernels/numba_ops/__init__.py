"""The exact projection for the CPU, compiled by numba."""

from kernels.numba_ops.exact import compile_kernels, project_exact

__all__ = ["compile_kernels", "project_exact"]
