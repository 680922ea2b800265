"""Random input that is new in each run, and can be had again."""

import os

# Before PyTorch is imported: the tests' operations are too small to share out among threads, and some tests fork, which
# a pool of OpenMP threads does not survive.
os.environ["OMP_NUM_THREADS"] = "1"

import secrets

import pytest
import torch


@pytest.fixture
def seed() -> int:
    """A fresh seed, torch's own set to it; the environment's TEST_SEED repeats the one that a failure has printed."""
    value = int(os.environ.get("TEST_SEED", secrets.randbelow(1 << 31)))
    torch.manual_seed(value)
    print(f"TEST_SEED={value} repeats this input")
    return value
