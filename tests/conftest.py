"""Random input, the same in each run unless the environment asks for another; where the kernels run."""

import os

# Before PyTorch is imported: the tests' operations are too small to share out among threads, and some tests fork, which
# a pool of OpenMP threads does not survive.
os.environ["OMP_NUM_THREADS"] = "1"
# And looking for a GPU must not start CUDA, which does not survive a fork either.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import gc
import secrets
import threading
import zlib

import pytest
import torch
from tqdm import tqdm

# What tests leave to the garbage collector is destroyed in the process that made it, not in one that forked: DALI's
# pipelines have threads, and those do not survive it either.
os.register_at_fork(after_in_child=gc.freeze)
# tqdm's lock is one semaphore for all processes: a child that a test kills while it writes would keep it for ever.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is defined
    import interpreter

    interpreter.hasten()


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: a GPU, or else the CPU, interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Each test's own seed, torch's set to it. The environment's TEST_SEED replaces it: a number, which repeats a
    failure, or `random`, for input that no run has had."""
    own = str(zlib.crc32(request.node.nodeid.encode()))
    wanted = os.environ.get("TEST_SEED", own)
    value = secrets.randbelow(1 << 31) if wanted == "random" else int(wanted)
    torch.manual_seed(value)
    print(f"TEST_SEED={value} repeats this input")
    return value


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """Memory that a kernel is given to write comes full of nonsense, so that what it leaves unwritten shows."""
    new_empty = torch.Tensor.new_empty

    def filled(self: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        made = new_empty(self, *arguments, **options)
        return made.fill_(77)

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
