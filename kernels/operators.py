"""The operators, the same on every device: triton_ops on CUDA, torch_ops elsewhere.

N images of C components, H x W pixels: images are [N, C, H, W], gray levels 0..255, floating point or uint8, contiguous
or channels_last; C is 3 (RGB) or 1 (gray); float64 on the CPU only. Gradients are autograd's (`torch.autograd.grad`,
`backward`), not those of torch.func. All operators raise ValueError for tensors whose shapes, dtypes, layouts or
devices contradict each other. Equation numbers are those of arXiv 2211.11827.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels import torch_ops
from kernels.coefficients import Coefficients, Subsampling


def implementation(device: torch.device) -> ModuleType:
    """The package that has all operators for tensors on `device`.

    Raises RuntimeError on CUDA when Triton is missing: there is no silent fallback to a slower path."""
    if device.type != "cuda":
        return torch_ops
    try:
        from kernels import triton_ops  # noqa: PLC0415  # where it is used: the CPU needs no Triton
    except ImportError as error:
        raise RuntimeError(f"tensors on {device} need Triton: pip install 'triton>=3.6' ({error})") from error
    return triton_ops


def encode(x: Tensor, tables: Tensor, sampling: Subsampling) -> Coefficients:
    """Compresses images with tables [N, C, 8, 8] int32, in float32: the real-number JPEG, rounding half away from zero.
    It differs from libjpeg's integers (kernels.libjpeg) by one step here and there, by a few where the steps are as
    small as libjpeg's own rounding."""
    coefficients: Coefficients = implementation(x.device).encode(x, tables, sampling)
    return coefficients


def decode(c: Coefficients) -> Tensor:
    """Decompresses to [N, C, H, W] float32, 0..255, as libjpeg-turbo does but for its rounding: planes limited to
    0..255 after the inverse DCT, chroma upsampled by the triangle filter, then colour, limited again."""
    image: Tensor = implementation(c.device).decode(c)
    return image


def roundtrip(x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """JPEG_Q of the paper's section 3.1: compresses and decompresses, chroma upsampled by repetition. Computed in at
    least float32 and returned in the input's dtype (float32 for uint8).

    Gradient, first derivatives in reverse mode only: straight through the rounding; zero where a decoded plane or the
    final colour leaves 0..255 (the clamp's own)."""
    image: Tensor = implementation(x.device).roundtrip(x, tables, sampling)
    return image


def project(x: Tensor, c: Coefficients, margin: float = 0.0) -> Tensor:
    """Equation 11: the image nearest to x in YCbCr whose coefficients lie in c's intervals, each end drawn in by
    `margin` (0..0.5) of a step. float32 (float64 for float64 on the CPU); not limited to 0..255.

    Inside the image that is exact in one pass; MCUs over its edge average the correction over the places that repeat a
    pixel, and need not arrive. Gradient: the projection's own (the clamp's, 0 at its ends, carried through both linear
    maps); second derivatives on the CPU only.

    Raises ValueError for another margin."""
    image: Tensor = implementation(x.device).project(x, c, margin)
    return image


def excess(x: Tensor, c: Coefficients) -> Tensor:
    """[N] float64: by how many quantisation steps, at most, an image's coefficients lie outside c's intervals, their
    ends included; 0: the real-number JPEG compresses it to c, but for ties. x is not limited to 0..255. PyTorch on
    every device: a measure, not a stage. No gradient."""
    largest: Tensor = implementation(x.device).excess(x, c)
    return largest


def project_exact(x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """The 8-bit image near x ([N, C, H, W], 0..255) that libjpeg-turbo's default encoder, given c's tables and
    sampling, compresses to exactly c.

    Quantisation steps above 8191 overflow libjpeg-turbo's own arithmetic and are not covered by the certificate.
    Returns uint8 [N, C, H, W], and [N] int64: how many true coefficients could not be satisfied (0: certified). No
    gradient. Raises ValueError for steps below 1 (on the CPU: a GPU would have to be waited for)."""
    result: tuple[Tensor, Tensor] = implementation(x.device).project_exact(x, c)
    return result
