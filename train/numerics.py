"""How numbers are computed in training: bfloat16, TF32, and the same sums every time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipeline.engine.device import choose_dtype

if TYPE_CHECKING:
    from train.config import RunConfig

AUTO = "auto"
"""`run.bfloat16` where the hardware decides."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def uses_bfloat16(run: RunConfig, device: torch.device) -> bool:
    """Whether networks run under autocast."""
    return _is_fast(device) if run.bfloat16 == AUTO else bool(run.bfloat16)


@cache
def _is_fast(device: torch.device) -> bool:
    return choose_dtype(AUTO, device) == torch.bfloat16


def warn_of_slow_bfloat16(run: RunConfig, device: torch.device) -> None:
    if uses_bfloat16(run, device) and not _is_fast(device):
        tqdm.write(
            "run.bfloat16: this CPU has no instructions for it (AMX, AVX512-BF16); float32 is faster here",
            file=sys.stderr,
        )


@contextmanager
def numerics(run: RunConfig) -> Iterator[None]:
    """To be entered before CUDA computes anything; leaves PyTorch's settings as they were."""
    with ExitStack() as settings:
        if torch.device(run.device).type == "cuda":
            settings.enter_context(_float32_on_cuda())
        if run.deterministic:
            settings.enter_context(_deterministic())
        yield


@contextmanager
def _float32_on_cuda() -> Iterator[None]:
    """Convolutions, nearly all of the work, in TF32 (ten bits of mantissa, sums in float32); matrix products, a few
    small linear layers, in full. These are PyTorch's defaults, said through `fp32_precision` as PyTorch 2.9 and later
    want it; mixed with the older `allow_tf32`, that raises. TF32 for matrix products, said in this way, breaks
    torch.compile in some releases (PyTorch issue 166387)."""
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
    """PyTorch's operators give the same bits every time on CUDA, or raise RuntimeError where they cannot. By the
    documentation of torch.use_deterministic_algorithms (2.13), of what training uses

    - convolutions and the backward pass of indexing by tensors become deterministic, at a cost;
    - the backward pass of adaptive average pooling raises: the critic pools so where its halvings do not take a crop to
      4x4 places (5 halvings: all crops but those of 128 pixels);
    - reflection padding raised, too; train/objectives/scores.py reflects by slices instead;

    - the backward pass of bilinear interpolation (of the noise head's amplitudes) is computed by slices and products.

    Not used: replication padding with a gradient, float cumsum, scattered sums. Our Triton
    kernels have no atomic additions in what training runs, and one launch configuration. Sums over ranks are NCCL's:
    the same only on the same machines. None of this has run on a GPU."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[WORKSPACE]
