"""The operators in plain PyTorch, one file each: the CPU path, and the reference that triton_ops is tested against.
On any device, in float32 or wider, differentiable where operators.py says so.

Files have the names of their twins in triton_ops: encode, decode, roundtrip, project, exact. excess has none; blocks,
colour, dct and sampling are shared.
"""

from kernels.torch_ops.decode import decode
from kernels.torch_ops.encode import encode
from kernels.torch_ops.exact import project_exact
from kernels.torch_ops.excess import excess
from kernels.torch_ops.project import project
from kernels.torch_ops.roundtrip import roundtrip

__all__ = ["decode", "encode", "excess", "project", "project_exact", "roundtrip"]
