"""The device, number type and threads that the network runs with, and its compilation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class DeviceLostError(RuntimeError):
    """A GPU does not work any more in this process: after an error inside a kernel nothing runs on it until the process
    ends. Not a failure of the file at hand."""


def choose_device(name: str) -> torch.device:
    """The device of a name: `cpu`, `cuda`, `cuda:N`, or `auto` for the first GPU, if there is one. Raises ValueError
    for another name and for a GPU that PyTorch does not see."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r}: expected auto, cpu or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is bfloat16 where the hardware multiplies it (GPUs from Ampere on, CPUs with AMX or
    AVX512-BF16), else float32. Raises ValueError for another name."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            capable = torch.cpu.get_capabilities()
            fast = capable.get("amx_bf16", False) or capable.get("avx512_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r}: expected auto, {' or '.join(dtypes)}")
    return dtypes[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The inverse of `choose_dtype`: `float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def use_ieee_float32() -> None:
    """Disables TF32 in this process. By default PyTorch rounds the factors of float32 convolutions on a GPU to TF32,
    which has 10 bits of fraction."""
    torch.backends.cudnn.allow_tf32 = False  # setting only `conv.fp32_precision` makes reading this raise
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Runs PyTorch with one thread inside the block, if `device` is a CPU. The tensors of the JPEG operators are too
    small for several threads to pay."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def compile_network(network: nn.Module, device: torch.device, shapes: int, backend: str = "inductor") -> None:
    """Compiles the network in place, fusing the operations between convolutions.

    shapes: the largest number of input shapes; each is compiled when it first occurs.

    Raises ValueError for a CPU: there every image size is a shape, and compiling takes minutes in each worker."""
    if device.type != "cuda" and backend == "inductor":
        raise ValueError("--compile: needs a GPU; on a CPU every image size would be compiled separately")
    limit = torch._dynamo.config.recompile_limit  # beyond this limit PyTorch silently stops compiling
    torch._dynamo.config.recompile_limit = max(limit, shapes)
    network.compile(dynamic=False, fullgraph=True, backend=backend)


def check_gpu(device: torch.device) -> None:
    """Raises DeviceLostError if the device is a GPU that does not work any more."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        raise DeviceLostError(f"{device} does not work any more: {error}; start the run again to continue") from error
