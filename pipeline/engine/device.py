"""Where and how the network runs: the device, the numbers' type, PyTorch's threads, compilation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def choose_device(name: str) -> torch.device:
    """`auto` takes the first GPU that PyTorch sees. Raises ValueError when a named one is not there."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r}: expected auto, cpu or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the hardware multiplies it: GPUs, and CPUs with AMX or AVX512-BF16."""
    if name == "auto":
        capable = torch.cpu.get_capabilities()
        fast = device.type == "cuda" or capable.get("amx_bf16", False) or capable.get("avx512_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r}: expected auto, {' or '.join(dtypes)}")
    return dtypes[name]


def use_ieee_float32() -> None:
    """For this process: what is computed in float32 on a GPU is float32. PyTorch's default rounds what convolutions
    multiply to TF32, with 10 bits of fraction."""
    torch.backends.cudnn.allow_tf32 = False  # `conv.fp32_precision` alone would make reading this raise
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """The JPEG operators' tensors are too small to share out on a CPU: threads would wait for one another."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def compile_network(network: nn.Module, device: torch.device, shapes: int, backend: str = "inductor") -> None:
    """In place, for at most so many shapes of input, each compiled when it first comes: what lies between convolutions
    is fused. Raises ValueError for the CPU, where every size of image is a shape, and would be compiled for minutes in
    each worker."""
    if device.type != "cuda" and backend == "inductor":
        raise ValueError("--compile: for GPUs; on a CPU every size of image would be compiled anew")
    limit = torch._dynamo.config.recompile_limit  # beyond it PyTorch silently compiles no more
    torch._dynamo.config.recompile_limit = max(limit, shapes)
    network.compile(dynamic=False, fullgraph=True, backend=backend)
