"""The exact projection and uniform noise on the CPU, compiled by numba.

Files have the names of their twins in triton_ops, which give the same values to the bit: exact (an image), planes (an
attempt on an MCU), samples (a block's transform and search), lines (a single row or column), pixels (the search over an
MCU's pixels), gamut (colour), mcus (geometry), chroma (averages), noise. compiler keeps compiled code on disk.
"""

from kernels.numba_ops import exact, noise
from kernels.numba_ops.exact import project_exact

__all__ = ["compile_kernels", "project_exact"]


def compile_kernels(quiet: bool = False) -> None:
    """Compiles all kernels, or loads what has been compiled before. Processes that are forked afterwards have them.
    Says on stderr when that takes long, unless quiet."""
    exact.compile_kernels(quiet)
    noise.compile_kernel()
