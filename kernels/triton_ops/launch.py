"""From tensors to launches: layouts, grids, and the configurations among which a kernel's first launch chooses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.coefficients import Subsampling

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels then run on the CPU, slowly, in numpy."""

OPTIONS = {"enable_fp_fusion": True}
"""Of every compilation: multiply-adds are one instruction. Triton asks for a choice, for it will change its own."""

SIZES = [
    *(f"{prefix}stride_{axis}" for prefix in ("", "gradient_") for axis in "nch"),
    *("mcus", "rows", "columns", "height", "width"),
]
"""Arguments of whose values a kernel is compiled independently: else each kind of size, a multiple of 16 or not, would
cost a compilation, and pixels would be written four at a time, for which they would have to change threads."""


ALL_REGISTERS = 255
"""A thread's most. Said outright, for else the assembler may stop at 128 and spill, to have more threads at a time."""


def tuned(*choices: tuple[int, int], registers: int | None = None) -> Callable[[Any], Any]:
    """A kernel whose first launch for each sampling and dtype times `choices`, (luma blocks of a program, warps), and
    keeps the fastest. The interpreter has nothing to time and takes all blocks that it can."""
    configs = [triton.Config({"BLOCKS": blocks}, num_warps=warps, maxnreg=registers) for blocks, warps in choices]
    if INTERPRETED:
        configs = [triton.Config({"BLOCKS": 128})]
    decorator: Callable[[Any], Any] = triton.autotune(configs, key=["C", "V", "H"])
    return decorator


def check_precision(x: Tensor) -> None:
    """Raises ValueError for float64, which kernels would not keep."""
    if x.dtype == torch.float64:
        raise ValueError("images: float64 is more than the kernels compute in; kernels.torch_ops takes it")


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch(
    kernel: Any, sampling: Subsampling, size: tuple[int, int], images: int, *arguments: Any, **more: Any
) -> None:
    """Starts `kernel` over all MCUs of `images` images of `size` pixels. After `arguments` come the counts of MCUs, in
    all, down and across an image, the size, the sampling's constants, and `more` of them."""
    rows, columns = sampling.mcu_grid(size)
    vertical, horizontal = sampling.factors
    mcus = images * rows * columns

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(mcus, meta["BLOCKS"] // (vertical * horizontal)),)

    constants = {"C": sampling.components, "V": vertical, "H": horizontal}
    with on_device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, mcus, rows, columns, *size, **constants, **more, **OPTIONS)


def aligned(planes: list[Tensor]) -> list[Tensor]:
    """Planes as kernels may read them 16 bytes at a time: one that starts elsewhere, a view, is copied."""
    return [plane if plane.data_ptr() % 16 == 0 else plane.clone() for plane in planes]


def three(planes: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """Gray's one plane thrice: kernels take three pointers and leave the last two alone."""
    return list(planes) * (3 // len(planes))
