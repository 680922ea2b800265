"""The device, number type and threads that the network runs with, and its compilation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class DeviceError(RuntimeError):
    """No file can be restored on a GPU as it was asked for. Not a failure of the file at hand."""


class DeviceLostError(DeviceError):
    """A GPU can no longer be used in this process: after an error inside a kernel nothing runs on it until the process
    ends."""


class NetworkMemoryError(torch.OutOfMemoryError):
    """The network has too little memory for a batch, which is as large for one tile as for many."""


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
    """The dtype of a name; `auto` is bfloat16 where the hardware multiplies it (GPUs, CPUs with AMX or AVX512-BF16),
    else float32. Raises ValueError for another name."""
    if name == "auto":
        capable = torch.cpu.get_capabilities()
        fast = device.type == "cuda" or capable.get("amx_bf16", False) or capable.get("avx512_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r}: expected auto, {' or '.join(dtypes)}")
    return dtypes[name]


def choose_hardware(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of these names (`choose_device`, `choose_dtype`). Raises ValueError."""
    where = choose_device(device)
    return where, choose_dtype(dtype, where)


def dtype_name(dtype: torch.dtype) -> str:
    """The inverse of `choose_dtype`: `float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def multiplies_bfloat16(gpu: torch.device) -> bool:
    """Whether it has units for that, as GPUs from Ampere on have. Starts CUDA."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def prepare_gpu(device: torch.device, dtype: torch.dtype, processes: int, progress: bool) -> None:
    """Compiles the kernels that a restoration needs. dtype: of the network, for a hint where it is slow. Raises
    DeviceError if they cannot be compiled."""
    from kernels.triton_ops.warm_up import compile_kernels  # noqa: PLC0415  # the CPU needs no Triton

    if dtype == torch.bfloat16 and not multiplies_bfloat16(device):
        print(f"{device} has no units for bfloat16: --dtype float32 is faster here", file=sys.stderr)
    if failed := compile_kernels(device, processes, progress):
        name, reason = next(iter(failed.items()))
        raise DeviceError(f"{device}: {len(failed)} kernels cannot be compiled, such as {name}: {reason}")


def fix_convolutions() -> None:
    """Makes a GPU's convolutions in this process IEEE's float32 and the same every time. By default PyTorch rounds
    their factors to TF32, which has 10 bits of fraction; cuDNN may take algorithms that add in varying order, and with
    `benchmark` those that are fastest at the moment."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = False  # setting only `conv.fp32_precision` makes reading this raise
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@contextmanager
def network_memory() -> Iterator[None]:
    """Lack of a GPU's memory inside the block is a NetworkMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NetworkMemoryError(str(error)) from error


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


def prepare_network(network: nn.Module, device: torch.device, shapes: int) -> None:
    """Sets what a GPU's convolutions need, and compiles the network for so many shapes of input, unless that is 0.
    Raises ValueError as `compile_network`."""
    if device.type == "cuda":
        fix_convolutions()
    if shapes:
        compile_network(network, device, shapes)


def compile_network(network: nn.Module, device: torch.device, shapes: int, backend: str = "inductor") -> None:
    """Compiles the network in place, fusing the operations between convolutions.

    shapes: the largest number of input shapes; each is compiled when it first occurs.

    Raises ValueError for a CPU: there every image size is a shape, and compiling takes minutes in each worker."""
    if device.type != "cuda" and backend == "inductor":
        raise ValueError("--compile: needs a GPU; on a CPU every image size would be compiled separately")
    limit = torch._dynamo.config.recompile_limit  # beyond this limit PyTorch silently stops compiling
    torch._dynamo.config.recompile_limit = max(limit, shapes)
    network.compile(dynamic=False, fullgraph=True, backend=backend)


def check_gpu(device: torch.device, error: Exception | None = None) -> None:
    """Raises DeviceLostError if the device is a GPU that does not work any more. error: of a single tile: raises
    DeviceError if the network has too little memory for that."""
    if isinstance(error, NetworkMemoryError):
        raise DeviceError(
            f"{device} has too little memory for a batch: start the run again with a smaller --batch, --tile or "
            f"--samples to continue ({error})"
        ) from error
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as lost:
        raise DeviceLostError(f"{device} does not work any more: {lost}; start the run again to continue") from lost
