"""The operators fused in Triton, one file each. All kernels work on MCUs in registers (blocks.py), are started alike
(launch.py) and can be compiled without a GPU (aot.py)."""

from kernels.triton_ops.decode import decode, decode_kernel
from kernels.triton_ops.encode import encode, encode_kernel
from kernels.triton_ops.exact import edge_kernel, exact_kernel, mend_kernel, project_exact
from kernels.triton_ops.noise import noise_kernel, uniform_kernel
from kernels.triton_ops.project import project, project_backward_kernel, project_kernel
from kernels.triton_ops.roundtrip import roundtrip, roundtrip_backward_kernel, roundtrip_kernel

KERNELS = {
    "encode": encode_kernel,
    "decode": decode_kernel,
    "roundtrip": roundtrip_kernel,
    "roundtrip_backward": roundtrip_backward_kernel,
    "project": project_kernel,
    "project_backward": project_backward_kernel,
    "exact": exact_kernel,
    "mend": mend_kernel,
    "edge": edge_kernel,
    "noise": noise_kernel,
    "uniform": uniform_kernel,
}

__all__ = ["KERNELS", "decode", "encode", "project", "project_exact", "roundtrip"]
