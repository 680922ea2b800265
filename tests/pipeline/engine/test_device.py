"""What is set and said before a GPU is used."""

import pytest
import torch
from torch import nn

import kernels.triton_ops.warm_up
from pipeline.engine.device import DeviceError, fix_convolutions, prepare_gpu, prepare_network

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Kernels that fail, and a GPU of a given age; there need not be one."""

    def make(failed, capability):
        monkeypatch.setattr(kernels.triton_ops.warm_up, "compile_kernels", lambda *arguments: failed)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return make


def test_kernels_that_cannot_be_compiled_end_the_run(gpu):
    gpu({"decode gray float32": "RuntimeError: Failed to find C compiler"}, (9, 0))
    with pytest.raises(DeviceError, match=r"1 kernels cannot be compiled, such as decode gray.*C compiler"):
        prepare_gpu(GPU, torch.bfloat16, 0, False)


@pytest.mark.parametrize(
    ("capability", "dtype", "hint"),
    [((7, 5), torch.bfloat16, True), ((7, 5), torch.float32, False), ((8, 0), torch.bfloat16, False)],
)
def test_bfloat16_where_it_is_slow_is_said(gpu, capsys, capability, dtype, hint):
    gpu({}, capability)
    prepare_gpu(GPU, dtype, 0, False)
    assert ("--dtype float32" in capsys.readouterr().err) == hint


def test_convolutions_are_the_same_every_time_and_ieee(monkeypatch):
    """Whatever the program that uses the library has set before."""
    cudnn = torch.backends.cudnn
    for name, value in (("benchmark", True), ("deterministic", False), ("allow_tf32", True)):
        monkeypatch.setattr(cudnn, name, value)
    prepare_network(nn.Identity(), torch.device("cpu"), 0)
    assert cudnn.benchmark
    fix_convolutions()
    assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, False)
