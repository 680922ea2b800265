"""Random input that is new in each run, and can be had again."""

# ruff: noqa: I001
import os
import secrets

# Before PyTorch: it says how the threads are to wait. Spinning makes many small operations very slow on a busy machine.
import pipeline  # noqa: F401
import pytest
import torch


@pytest.fixture
def seed() -> int:
    """A fresh seed, torch's own set to it; the environment's TEST_SEED repeats the one that a failure has printed."""
    value = int(os.environ.get("TEST_SEED", secrets.randbelow(1 << 31)))
    torch.manual_seed(value)
    print(f"TEST_SEED={value} repeats this input")
    return value
