"""Muon: steepest descent of weight matrices in the spectral norm (Jordan et al., "Muon: an optimizer for hidden layers
in neural networks", 2024). The momentum of each matrix is orthogonalised: all its singular values become about 1.

torch.optim.Muon takes matrices only, one by one and in bfloat16, and cannot skip a step without reading from the
device. Here the weights of convolutions count as matrices of output channels × inputs, and those of one shape are
orthogonalised together, in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic iteration, which brings singular values to 0.7..1.2 within a few steps."""

ITERATIONS = 5

ROOT_MEAN_SQUARE = 0.2
"""Of the elements of an update, times the learning rate; about Adam's (Liu et al., "Muon is scalable for LLM training",
2025), so that learning rates are comparable."""

MIN_OUTPUTS = 32
"""Convolutions with fewer output channels are left to Adam."""


def convolution_weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of 3x3 convolutions with many output channels, the trunk's first and last included."""
    return [p for p in network.parameters() if p.dim() == 4 and p.shape[2:] == (3, 3) and len(p) >= MIN_OUTPUTS]


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, without weight decay, for weights [out, in, h, w].

    found_inf: float32 scalar on the weights' device; a step for which it is not 0 changes nothing, as in PyTorch's
    fused Adam."""

    found_inf: Tensor

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step(weights, group["lr"])

    def _step(self, weights: list[nn.Parameter], rate: float) -> None:
        """Updates weights of one shape."""
        gradients = torch.stack([weight.grad.flatten(1) for weight in weights if weight.grad is not None])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(gradients[0])
        before = torch.stack([self.state[weight]["momentum"] for weight in weights])
        failed = self.found_inf > 0
        momenta = torch.where(failed, before, before.lerp(gradients, 1 - MOMENTUM))
        scale = rate * ROOT_MEAN_SQUARE * max(gradients.shape[1:]) ** 0.5
        updates = orthogonalised(gradients.lerp(momenta, MOMENTUM)) * scale
        updates = torch.where(failed, 0.0, updates)
        for weight, momentum, update in zip(weights, momenta, updates, strict=True):
            self.state[weight]["momentum"].copy_(momentum)
            weight.sub_(update.view_as(weight))


def orthogonalised(x: Tensor) -> Tensor:
    """Matrices [n, rows, columns] → about U V^T of their singular value decompositions U S V^T."""
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
