"""One update of a network, once its gradients are there; and the guard that lets none pass that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from train.distributed import Ranks
from train.state import Learner, State, learning_rate

if TYPE_CHECKING:
    from train.config import Config


class Guard:
    """Finds the first step with a loss or gradient that is not finite, without waiting for the device: from then on no
    network changes any more, and whoever looks at `failure`, however late, finds all as it was when that happened.

    `failed`: 0 or 1, float32 on the device, the same on all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.failed = torch.zeros((), device=ranks.device)
        self._step = torch.zeros((), dtype=torch.int64, device=ranks.device)
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, step: int, values: Mapping[str, Tensor]) -> None:
        """At this rank's losses of a step, and at the norm of the gradients."""
        sound = self.failed == 0
        for name, value in values.items():
            self._values[name] = torch.where(sound, value, self._values.get(name, value))
        finite = torch.stack([value.isfinite() for value in values.values()]).all()
        found = self.ranks.any(~finite)
        self._step = torch.where(sound & found, step, self._step)
        self.failed = torch.maximum(self.failed, found.float())

    def failure(self) -> tuple[int, dict[str, float]] | None:
        """The step, counted from 0, and the last value of each term on this rank, those of that step included; None
        when all is well. Waits for the device."""
        if not self.failed.item():
            return None
        return int(self._step), {name: value.item() for name, value in self._values.items()}


def update(learner: Learner[Any], losses: Mapping[str, Tensor], state: State, config: Config, guard: Guard) -> Tensor:
    """Clips the gradients of one of the state's networks, takes Adam's step if they and the losses are finite, and
    forgets them. Returns their norm before clipping. losses: by name, this rank's, for the guard."""
    norms = [torch.nn.utils.clip_grad_norm_(group.parameters, group.clip) for group in learner.groups]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    guard.look(state.step, {**losses, f"{type(learner.network).__name__.lower()}_norm": norm})
    for values, group in zip(learner.optimiser.param_groups, learner.groups, strict=True):
        values["lr"] = group.rate * learning_rate(config, state.step, state.mark)
    learner.optimiser.found_inf = guard.failed  # type: ignore[attr-defined]  # as torch.amp.GradScaler tells it to skip
    learner.optimiser.step()
    learner.optimiser.zero_grad(set_to_none=True)
    return norm
