"""The optimiser step of one network, and the check that skips steps with non-finite losses or gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from train.distributed import Ranks
from train.schedule import learning_rate
from train.state import Learner, State

if TYPE_CHECKING:
    from train.config import Config


class Guard:
    """Detects the first step with a non-finite loss or gradient without synchronising with the device. From that step
    on no update is applied, so that the networks are unchanged when the host reads `failure` some steps later.

    failed: float32 scalar on the device, 0 or 1, the same on all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.failed = torch.zeros((), device=ranks.device)
        self._step = torch.zeros((), dtype=torch.int64, device=ranks.device)
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def check(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Checks this rank's losses and gradient norm of a step: scalars by name, on the device."""
        sound = self.failed == 0
        for name, value in values.items():
            self._values[name] = torch.where(sound, value, self._values.get(name, value))
        finite = torch.stack([value.isfinite() for value in values.values()]).all()
        found = self.ranks.any(~finite)
        self._step = torch.where(sound & found, step, self._step)
        self.failed = torch.maximum(self.failed, found.float())

    def failure(self) -> tuple[int, dict[str, float]] | None:
        """The failed step, counted from 0, and this rank's last value of each loss and norm up to it; None if no step
        has failed. Synchronises with the device."""
        if not self.failed.item():
            return None
        return int(self._step), {name: value.item() for name, value in self._values.items()}


def update(
    learner: Learner[Any], losses: Mapping[str, Tensor], state: State, config: Config, guard: Guard
) -> dict[str, Tensor]:
    """Clips the accumulated gradients of a network, updates it unless a loss or gradient is not finite, and clears the
    gradients. losses: this rank's scalars by name, for the guard. Returns the gradient norm before clipping, by
    its name, `generator_norm` or `critic_norm`."""
    norms = [torch.nn.utils.clip_grad_norm_(group.parameters, group.clip) for group in learner.groups]
    norm = {f"{type(learner.network).__name__.lower()}_norm": torch.linalg.vector_norm(torch.stack(norms))}
    guard.check(state.step, {**losses, **norm})
    rate = learning_rate(config, state.step, state.anchor)
    optimisers: list[tuple[Any, float]] = [(learner.adam, 1.0), (learner.muon, config.optimiser.muon_rate)]
    for optimiser, factor in optimisers:
        if optimiser is None:
            continue
        for values, group in zip(optimiser.param_groups, learner.groups, strict=True):
            values["lr"] = factor * group.rate * rate
        optimiser.found_inf = guard.failed  # skips the step, as torch.amp.GradScaler does
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return norm
