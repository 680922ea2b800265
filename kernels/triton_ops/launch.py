"""From tensors to launches: layouts, grids and launch configurations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
import triton
from torch import Tensor

from kernels.coefficients import Subsampling

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels then run on the CPU, slowly, in numpy."""

OPTIONS = {"enable_fp_fusion": True}
"""Of every compilation: multiply-adds are one instruction. Set explicitly, as Triton's default is going to change."""

SIZES = [
    *(f"{prefix}stride_{axis}" for prefix in ("", "gradient_") for axis in "nch"),
    *("mcus", "rows", "columns", "height", "width"),
]
"""Arguments that Triton does not specialise on: one compilation serves all sizes, and pixels are not written four at a
time, for which they would have to change threads. They are scalars, as Triton (3.6 to 3.9) always specialises on the
elements of tuples; kernels pack them into tuples, which their device functions take."""

ALL_REGISTERS = 255
"""The most that a thread can have. Without a limit the assembler may stop at 128, for more threads at a time, and
spill."""


def check_interpreter(triton_version: str, numpy_version: str) -> None:
    """Raises ImportError for versions with which Triton's interpreter fails: to 3.6 it converts arrays of one element
    to integers, which NumPy refuses from 2.4 on."""
    versions = [tuple(map(int, text.split(".")[:2])) for text in (triton_version, numpy_version)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        raise ImportError(
            f"TRITON_INTERPRET=1: the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}: "
            "pip install 'numpy<2.4', or Triton 3.7 or later where PyTorch allows it"
        )


if INTERPRETED:
    check_interpreter(triton.__version__, numpy.__version__)


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched: luma blocks of a program (0: not its own choice), warps of a program, the most
    registers of a thread (None: the assembler's choice), and whether a program has one MCU's blocks, however many: then
    the warps are 4:2:0's, and others have as many for each block of the plane that has most."""

    blocks: int
    warps: int
    registers: int | None = None
    single: bool = False

    def mcus(self, sampling: Subsampling) -> int:
        """MCUs of a program."""
        vertical, horizontal = sampling.factors
        return 1 if self.single else self.blocks // (vertical * horizontal)

    def constants(self, sampling: Subsampling) -> dict[str, int]:
        vertical, horizontal = sampling.factors
        return {"BLOCKS": self.mcus(sampling) * vertical * horizontal} if self.blocks else {}

    @property
    def options(self) -> dict[str, int]:
        """Of the compilation, if it does not depend on the sampling."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, **limit, **OPTIONS}

    def options_of(self, sampling: Subsampling) -> dict[str, int]:
        """Of the compilation for a sampling."""
        vertical, horizontal = sampling.factors
        most = max(vertical * horizontal, sampling.components - 1)
        return self.options | ({"num_warps": self.warps * most // 4} if self.single else {})


@dataclass
class Kernel:
    """A Triton kernel and the configurations that it may be launched with; `choice` is the one in use.

    None is chosen by timing: two configurations may round differently, and two processes could then choose, and write,
    differently. The benchmark times the others, and the tests compare what they give."""

    fn: Any
    configurations: tuple[Configuration, ...]
    choice: int = 0

    @property
    def configuration(self) -> Configuration:
        return self.configurations[self.choice]

    def __getitem__(self, grid: Any) -> Any:
        return self.fn[grid]


def configured(*configurations: Configuration, interpreted: int = 128) -> Callable[[Any], Kernel]:
    """A kernel with these configurations, the first of them in use. The interpreter takes `interpreted` blocks at a
    time, of those that programs share out."""
    if INTERPRETED:
        first = replace(configurations[0], blocks=interpreted * (configurations[0].blocks > 0), single=False)
        configurations = (first,)
    return lambda fn: Kernel(fn, configurations)


def check_precision(x: Tensor) -> None:
    """Raises ValueError for float64, which kernels would not keep."""
    if x.dtype == torch.float64:
        raise ValueError(
            "images: float64 is more than the kernels compute in: give float32, or use kernels.torch_ops, which takes "
            "it in all operators but project_exact"
        )


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch(
    kernel: Kernel,
    sampling: Subsampling,
    size: tuple[int, int],
    images: int,
    *arguments: Any,
    mcus: int | None = None,
    programs: int | None = None,
    **more: Any,
) -> None:
    """Starts `kernel` over all MCUs of `images` images of `size` pixels, or over `mcus` of each, in at most so many
    `programs`. After `arguments` come the counts of MCUs, in all, down and across an image, the size, the sampling's
    constants, and `more` of them."""
    rows, columns = sampling.mcu_grid(size)
    vertical, horizontal = sampling.factors
    count, chosen = images * (rows * columns if mcus is None else mcus), kernel.configuration
    wanted = triton.cdiv(count, chosen.mcus(sampling))
    grid = (wanted if programs is None else min(wanted, programs),)
    constants = {"C": sampling.components, "V": vertical, "H": horizontal, **chosen.constants(sampling), **more}
    with on_device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, count, rows, columns, *size, **constants, **chosen.options_of(sampling))


def aligned(planes: list[Tensor]) -> list[Tensor]:
    """Planes as kernels may read them 16 bytes at a time: one that starts elsewhere, a view, is copied."""
    return [plane if plane.data_ptr() % 16 == 0 else plane.clone() for plane in planes]


def three(planes: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """Three planes: gray's one plane is repeated, as kernels take three pointers and do not read the last two."""
    return list(planes) * (3 // len(planes))
