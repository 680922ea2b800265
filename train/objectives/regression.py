"""The regression: one step towards E[X | Y], the paper's "Ours-MSE", and X̄ of equation 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from train.checks import expect
from train.degradation import Batch
from train.objectives.forward import Terms, restore
from train.objectives.losses import REGRESSION_LOSSES
from train.state import State
from train.update import Guard, update

if TYPE_CHECKING:
    from train.config import Config


@dataclass(frozen=True)
class RegressionConfig:
    """For `objective: regression`."""

    loss: str = "log_mse"  # or mse: see train/objectives/losses.py

    def __post_init__(self) -> None:
        expect(self, "loss", self.loss in REGRESSION_LOSSES, " or ".join(REGRESSION_LOSSES))


class Regression:
    """An objective (forward.py)."""

    seeds = 0

    def __init__(self, config: Config) -> None:
        self.config = config
        self.loss = REGRESSION_LOSSES[config.regression.loss]

    def step(self, state: State, parts: list[Batch], guard: Guard) -> Terms:
        learner, total = state.generator, torch.zeros((), device=guard.failed.device)
        for part in parts:
            network = learner.shared if part is parts[-1] else learner.network
            loss = self.loss(restore(network, part, self.config), part.clean) / len(parts)
            torch.autograd.backward(loss)
            total += loss.detach()
        norm = update(learner, {"loss": total}, state, self.config, guard)
        return {"loss": total, "generator_norm": norm}

    def schedule(self, state: State) -> dict[str, float]:
        return {}


def check_regression(config: Config) -> None:
    """Raises ConfigError for settings of several sections that do not go together."""
    expect(config, "model.noise", not config.model.noise, "false: a regression trains a deterministic generator")
