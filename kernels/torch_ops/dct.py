"""The DCT of tiles: linear maps between pixels and coefficients, with averaging and repetition of chroma and of edges.

Shapes as in blocks.py: N images, [rows, columns] MCUs of a region, C components, P pixels of an MCU, B blocks of one
component of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tables import constant, dct_basis
from kernels.torch_ops.blocks import Mcu, Region

FEW_ROWS = 16
"""Below so many rows, a matrix product is made larger: MKL multiplies three rows or fewer by another kernel, which sums
in another order, and an image's last bits would depend on what is in the batch beside it."""


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """[..., k * B] @ [B, D] → [..., k * D]: each run of B values times the matrix, to the same bits whatever is beside
    it."""
    runs = x.reshape(-1, matrix.shape[0])
    missing = max(0, FEW_ROWS - len(runs))
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in bfloat16
        product = (F.pad(runs, (0, 0, 0, missing)) if missing else runs) @ matrix
    return product[: len(runs)].reshape(*x.shape[:-1], x.shape[-1] // matrix.shape[0] * matrix.shape[1])


@constant
def block_dct(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """[64, 64]: a flattened block times this is its two-dimensional orthonormal DCT; its transpose is the inverse."""
    basis = dct_basis(torch.float64, device)
    return torch.kron(basis, basis).T.contiguous().to(dtype)


@dataclass(frozen=True)
class McuMatrices:
    """The linear maps of one kind of MCU between pixels and coefficients, matrices to multiply tiles by from the right.

    luma [B, B], luma_back [B, B]: pixels → coefficients and the way back, B = 64 for a whole MCU (block by block) and P
        for one at an edge.
    chroma [P, 64], chroma_back [64, P]: the same through averaging, with repetition on the way back.

    At an edge the way back gives a pixel the mean of what comes to the places that repeat it.
    """

    luma: Tensor
    luma_back: Tensor
    chroma: Tensor
    chroma_back: Tensor


def repetition_inverse(spread: Tensor) -> Tensor:
    """The pseudo-inverse of a 0/1 matrix [pixels, places] that shows each pixel at some places: the mean over them."""
    return spread.T / spread.sum(1).clamp(min=1)


def _mcu_matrices(mcu: Mcu, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> McuMatrices:
    """Places beyond the image and blocks of padding have rows and columns of zeros."""
    dct = block_dct("cpu", torch.float64)
    average = mcu.chroma_sums().double() / (mcu.sampling.factors[0] * mcu.sampling.factors[1])
    repeat = mcu.chroma_samples().double().T
    luma, luma_back, chroma_back = dct, dct.T, dct.T @ repeat
    if not mcu.whole:
        blocks = torch.block_diag(*[dct] * len(mcu.true_luma_blocks))
        shown = torch.tensor(mcu.true_luma_blocks).repeat_interleave(64)
        spread = F.one_hot(mcu.luma_source(), mcu.pixels).double().T * shown
        luma, luma_back = spread @ blocks, blocks.T @ repetition_inverse(spread)
        chroma_back = chroma_back @ repetition_inverse(F.one_hot(mcu.chroma_source(), mcu.pixels).double().T)
    matrices = (luma, luma_back, average @ dct, chroma_back)
    return McuMatrices(*(m.to(device, dtype).contiguous() for m in matrices))


mcu_matrices = constant(_mcu_matrices, kept=64)  # the 256 kinds of 4:2:0 take 200 MB


def forward_dct(planes: tuple[Tensor, ...], region: Region) -> list[Tensor]:
    """Component planes of tiles → coefficients [N, rows, columns, blocks, 64], unquantised."""
    matrices = mcu_matrices(region.mcu, planes[0].device, planes[0].dtype)
    maps = (matrices.luma, matrices.chroma, matrices.chroma)
    return [times(p, m).unflatten(-1, (-1, 64)) for p, m in zip(planes, maps, strict=False)]


def steps_of(tables: Tensor, component: int, dtype: torch.dtype) -> Tensor:
    """One component's quantisation steps as [N, 1, 1, 1, 64], to divide tiles' coefficients by."""
    return tables[:, component].reshape(-1, 1, 1, 1, 64).to(dtype)


def round_half_away(x: Tensor) -> Tensor:
    """To the nearest integer, ties away from zero, as JPEG encoders round."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))
