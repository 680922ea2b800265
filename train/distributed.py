"""Data-parallel training: one process per device, started by torchrun. Without torchrun there is one process and no
collective operation."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.checks import ConfigError
from train.numerics import device_of

if TYPE_CHECKING:
    from train.config import RunConfig

Network = TypeVar("Network", bound=nn.Module)

PERIOD = 1.0
"""Seconds, about, between two exchanges of an `Agreement`."""


@dataclass(frozen=True)
class Ranks:
    """This process among all processes, and the collective operations that training uses."""

    rank: int = 0
    size: int = 1  # number of ranks
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def local_batch(self, total: int, parts: int) -> int:
        """This rank's number of a step's `total` crops. parts: micro-batches (`optimiser.accumulate`). Raises
        ConfigError if these are not of equal size on all ranks."""
        if total % (self.size * parts):
            wanted = f"a multiple of optimiser.accumulate, {parts}" + f", times the {self.size} ranks" * (self.size > 1)
            raise ConfigError(f"data.batch: expected {wanted}, got {total}")
        return total // self.size

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def any(self, x: Tensor) -> Tensor:
        """Whether the boolean scalar is true on any rank."""
        if self.size == 1:
            return x
        found = x.float()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found > 0

    def max(self, values: list[float]) -> list[float]:
        """The largest values of all ranks; from CPU to CPU, without synchronising with the devices."""
        if self.size == 1:
            return values
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        found: list[float] = largest.tolist()
        return found

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


class Agreement:
    """Values that all ranks must know after the same step, exchanged about once a second instead of after each step."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._began, self._steps, self._next = monotonic(), 0, 1

    def largest(self, values: list[float]) -> list[float] | None:
        """To be called after each step, by all ranks: the largest values of all ranks, or None between two exchanges. A
        single rank gets its own, always."""
        self._steps += 1
        if self.ranks.size == 1:
            return values
        if self._steps < self._next:
            return None
        steps_per_period = PERIOD * self._steps / (monotonic() - self._began)
        *found, pause = self.ranks.max([*values, max(1.0, steps_per_period)])
        self._next = self._steps + int(pause)
        return found


@contextmanager
def process_group(run: RunConfig) -> Iterator[Ranks]:
    """The process group, if torchrun has started this process. Raises ConfigError for a rank without a GPU of its own.

    Nothing that the body has wrapped in DistributedDataParallel may outlive it. The last owner of a gloo group waits
    for the group's threads, which need the GIL to free tensors. Python's own reference to the group releases the GIL;
    that of DistributedDataParallel does not, and the process would never end. If the body fails the group is left to
    the process's exit, because the exception's traceback keeps the networks."""
    ranks = _init_ranks(run)
    yield ranks
    if ranks.size > 1:
        dist.destroy_process_group()


def _init_ranks(run: RunConfig) -> Ranks:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in os.environ and tasks != "1":
        raise ConfigError(
            f"SLURM has started {tasks} tasks of this command, each of which would train alone: start one task on a "
            "node, and in it torchrun (srun --ntasks-per-node=1 torchrun --nproc-per-node=... -m train.main ...)"
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = device_of(run)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        number = local if device.index is None else device.index
        if number >= torch.cuda.device_count() or (device.index is not None and size > 1):
            raise ConfigError(
                f"run.device: expected cuda, and a GPU for each rank, got {device} for local rank {local}"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if size == 1:
        return Ranks(device=device)
    timeout = timedelta(seconds=run.timeout)
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    return Ranks(dist.get_rank(), size, device)


def check_same_networks(network: nn.Module, step: int, ranks: Ranks, folder: Path) -> None:
    """Raises ConfigError on all ranks unless all begin at the same step with the same weights, as ranks do not that see
    different files."""
    checksum = 0
    for value in network.state_dict().values() if ranks.size > 1 else ():
        checksum = zlib.crc32(value.cpu().reshape(-1).view(torch.uint8).numpy(), checksum)
    last, first, largest, smallest = ranks.max([step, -step, checksum, -checksum])
    if (last, largest) != (-first, -smallest):
        raise ConfigError(
            f"the ranks do not begin alike: at steps {int(-first)} to {int(last)}, and rank {ranks.rank} at {step}; "
            f"run.output ({folder}) and run.start must be the same files on all nodes"
        )


def wrap_ddp(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network, in DistributedDataParallel if there are several ranks. A backward pass through the wrapper averages
    the gradients over ranks, those accumulated by earlier passes through the plain network included. Buffers are
    constants."""
    if ranks.size == 1:
        return network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.13 renamed broadcast_buffers; 2.11 has no other name
        return DistributedDataParallel(network, broadcast_buffers=False)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copies a small CPU tensor to the device without synchronising."""
    if device.type != "cuda":
        return x
    return x.pin_memory().to(device, non_blocking=True)
