"""bfloat16 where it is fast, deterministic operators where they are asked for, and PyTorch's settings restored."""

import os

import pytest
import torch
from training import assert_equal, checkpoint, config_of, energy_of, write_photos

import train.numerics as numerics_module
from train.config import RunConfig
from train.numerics import WORKSPACE, numerics, uses_bfloat16
from train.trainer import train

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch):
    def capable(**capabilities):
        numerics_module._is_fast.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    yield capable
    numerics_module._is_fast.cache_clear()


def test_auto_takes_bfloat16_where_the_hardware_multiplies_it(cpu_with):
    for capabilities, fast in (({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
        cpu_with(**capabilities)
        assert uses_bfloat16(RunConfig(), CPU) is fast
        assert uses_bfloat16(RunConfig(bfloat16=True), CPU)
        assert not uses_bfloat16(RunConfig(bfloat16=False), CPU)


def test_auto_takes_bfloat16_on_gpus_that_multiply_it(cpu_with, monkeypatch):
    for capability, fast in (((7, 5), False), ((8, 0), True), ((10, 0), True)):
        cpu_with()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert uses_bfloat16(RunConfig(), torch.device("cuda", 0)) is fast


def test_bfloat16_on_a_cpu_without_it_is_allowed_and_said_once(tmp_path, cpu_with, capsys):
    photos = write_photos(tmp_path)
    cpu_with(avx2=True)
    for bfloat16, said in ((True, 1), ("auto", 0), (False, 0)):
        train(config_of(photos, tmp_path / str(bfloat16), optimiser={"steps": 2}, run={"bfloat16": bfloat16}))
        assert capsys.readouterr().err.count("run.bfloat16: this CPU") == said


def test_settings_last_as_long_as_the_run(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = torch.backends.cuda.matmul.fp32_precision
    with numerics(RunConfig(device="cuda:0", deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[WORKSPACE] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "highest"  # torch.compile asks in this way
        assert torch.backends.cudnn.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ
    assert torch.backends.cuda.matmul.fp32_precision == before
    with numerics(RunConfig()):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_deterministic_run_learns_what_another_does(tmp_path):
    """All its operators exist in PyTorch's deterministic mode, on the CPU at least."""
    photos = write_photos(tmp_path)
    terms = {"features": 1.0, "spectra": 0.1, "power": 0.1, "distribution": 1.0}
    for deterministic in (False, True):
        run = {"deterministic": deterministic}
        train(energy_of(photos, tmp_path / str(deterministic), energy=terms, optimiser={"steps": 2}, run=run))
    one, other = (checkpoint(tmp_path / str(deterministic)) for deterministic in (False, True))
    assert_equal(one["generator"], other["generator"])
