"""The operators fused in Triton, one file each. All kernels work on MCUs in registers (blocks.py), are started alike
(launch.py) and can be compiled without a GPU (ahead.py)."""

from kernels.triton_ops.encode import encode, encode_kernel

KERNELS = {"encode": encode_kernel}

__all__ = ["KERNELS", "encode"]
