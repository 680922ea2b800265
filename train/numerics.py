"""Device and numerical settings of training: bfloat16 autocast, TF32 and deterministic algorithms."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipeline.engine.device import choose_device, choose_dtype, multiplies_bfloat16

if TYPE_CHECKING:
    from train.config import RunConfig

AUTO = "auto"
"""Value of `run.bfloat16` that uses bfloat16 where the hardware is fast at it, and of `run.device` that uses a GPU if
there is one."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable; cuBLAS is deterministic with a fixed workspace."""


def device_of(run: RunConfig) -> torch.device:
    """The device of a run, without the number of the rank's GPU."""
    return torch.device(choose_device(AUTO).type if run.device == AUTO else run.device)


def uses_bfloat16(run: RunConfig, device: torch.device) -> bool:
    """Whether forward passes use bfloat16 autocast."""
    return _is_fast(device) if run.bfloat16 == AUTO else bool(run.bfloat16)


@cache
def _is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return multiplies_bfloat16(device)
    return choose_dtype(AUTO, device) == torch.bfloat16


def warn_of_slow_bfloat16(run: RunConfig, device: torch.device) -> None:
    """Warns on stderr if bfloat16 is requested on a device without instructions for it."""
    if uses_bfloat16(run, device) and not _is_fast(device):
        kind = "GPU" if device.type == "cuda" else "CPU"
        tqdm.write(
            f"run.bfloat16: this {kind} has no instructions for it, as GPUs from Ampere on and CPUs with AMX or "
            "AVX512-BF16 have; float32 is faster here",
            file=sys.stderr,
        )


@contextmanager
def numerics(run: RunConfig) -> Iterator[None]:
    """Applies the settings of `run` and restores PyTorch's on exit. To be entered before the first CUDA operation."""
    with ExitStack() as settings:
        if device_of(run).type == "cuda":
            settings.enter_context(_float32_on_cuda())
        if run.deterministic:
            settings.enter_context(_deterministic())
        yield


@contextmanager
def _float32_on_cuda() -> Iterator[None]:
    """Convolutions, nearly all of the work, use TF32 (10 bits of mantissa, sums in float32); matrix products, a few
    small linear layers and Muon's orthogonalisation, use full float32. These are PyTorch's defaults, set through
    `fp32_precision`, the interface since PyTorch 2.9; mixing it with the older `allow_tf32` raises. TF32 for matrix
    products, set in this way, breaks torch.compile in some releases (PyTorch issue 166387)."""
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision, convolutions.fp32_precision = "ieee", "tf32"
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = before


@contextmanager
def _deterministic() -> Iterator[None]:
    """On CUDA, PyTorch's operators give the same bits every time, or raise RuntimeError if they cannot. According to
    the documentation of torch.use_deterministic_algorithms (2.13), of the operators that training uses

    - convolutions and the backward pass of indexing by tensors become deterministic, at a cost;
    - the backward pass of bilinear interpolation (of the noise head's amplitudes) is computed by indexing and products;
    - the backward passes of adaptive average pooling and reflection padding would raise: the critic and
      train/objectives/energy_score.py use slices instead.

    Not used: replication padding with a gradient, float cumsum, scattered sums. The Triton kernels that training runs
    have no atomic additions, and one launch configuration. Sums over ranks are NCCL's: the same only on the same
    machines. None of this has run on a GPU."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read before the first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[WORKSPACE]
