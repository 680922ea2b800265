"""One process for each device, as torchrun starts them; without it, one process that needs no collective at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.checks import ConfigError

if TYPE_CHECKING:
    from train.config import RunConfig

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> int:
        """How many of a step's crops are this rank's. Raises ConfigError when they cannot be shared out evenly."""
        if total % self.size:
            raise ConfigError(f"data.batch: expected a multiple of the {self.size} ranks, got {total}")
        return total // self.size

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def any(self, x: Tensor) -> Tensor:
        """A boolean: whether it is true on any rank."""
        if self.size == 1:
            return x
        found = x.float()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found > 0

    def from_first(self, values: list[float]) -> list[float]:
        """The first rank's numbers, on all ranks: sent from CPU to CPU, without waiting for the devices."""
        if self.size == 1:
            return values
        sent = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(sent, 0)
        received: list[float] = sent.tolist()
        return received

    def wait(self) -> None:
        """For all the others."""
        if self.size > 1:
            dist.barrier()


def join(run: RunConfig) -> Ranks:
    """Meets the other processes that torchrun has started, if it has. Raises ConfigError for a rank without a GPU of
    its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(run.device)
    if device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if number >= torch.cuda.device_count() or (device.index is not None and size > 1):
            raise ConfigError(f"run.device: expected cuda, and a GPU for each rank, got {run.device} for rank {number}")
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


def leave(ranks: Ranks) -> None:
    if ranks.size > 1:
        dist.destroy_process_group()


def shared(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network as the last backward pass of a step goes through it: it then averages over all ranks what has been
    summed up in its gradients, by this pass and by earlier ones through the plain network. There are no buffers to send
    around."""
    if ranks.size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor made on the CPU, sent without waiting for the device."""
    if device.type != "cuda":
        return x
    return x.pin_memory().to(device, non_blocking=True)
