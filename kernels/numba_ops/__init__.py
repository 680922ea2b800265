"""The exact projection and uniform noise for the CPU, compiled by numba."""

from kernels.numba_ops import exact, noise
from kernels.numba_ops.exact import project_exact

__all__ = ["compile_kernels", "project_exact"]


def compile_kernels(quiet: bool = False) -> None:
    """Compiles all kernels, or loads what has been compiled before. Processes that are forked afterwards have them.
    Says on stderr when that takes long, unless quiet."""
    exact.compile_kernels(quiet)
    noise.compile_kernel()
