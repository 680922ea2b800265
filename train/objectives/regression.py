"""The regression objective: E[X | Y], the paper's "Ours-MSE" and X̄ of equation 7 (arXiv 2211.11827)."""

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
    """Settings of `objective: regression`."""

    loss: str = "log_mse"  # or mse: see train/objectives/losses.py

    def __post_init__(self) -> None:
        expect(self, "loss", self.loss in REGRESSION_LOSSES, " or ".join(REGRESSION_LOSSES))


class Regression:
    """An Objective (forward.py)."""

    seeds = 0

    def __init__(self, config: Config) -> None:
        self.config = config
        self.loss = REGRESSION_LOSSES[config.regression.loss]

    def step(self, state: State, micro_batches: list[Batch], guard: Guard) -> Terms:
        """One update of the generator. Returns the loss and the gradient norm."""
        learner, total = state.generator, torch.zeros((), device=guard.failed.device)
        for batch, network in learner.passes(micro_batches):
            loss = self.loss(restore(network, batch, self.config), batch.clean) / len(micro_batches)
            torch.autograd.backward(loss)
            total += loss.detach()
        return {"loss": total} | update(learner, {"loss": total}, state, self.config, guard)

    def schedule(self, state: State) -> dict[str, float]:
        return {}


def check_regression(config: Config) -> None:
    """Raises ConfigError for a model that does not fit the objective."""
    expect(config, "model.noise", not config.model.noise, "false: a regression trains a deterministic generator")
