"""The operators on CUDA as fused Triton kernels, one file each.

Files have the names of their references in torch_ops: encode, decode, roundtrip, project; and shared blocks, colour,
dct and sampling, with edges for MCUs that extend beyond the image. The exact projection and noise have the names of
their twins in numba_ops: exact, planes, samples, lines, pixels, gamut, mcus, chroma, noise. launch starts kernels, aot
compiles them without a GPU, warm_up before they are needed. `excess` is PyTorch's.
"""

from kernels.torch_ops import excess
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

__all__ = ["KERNELS", "decode", "encode", "excess", "project", "project_exact", "roundtrip"]
