"""Checks of an operator's gradient that do not depend on the operator."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_compilation_and_autocast_change_nothing(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Neither the scalar `loss` of x nor its gradient."""

    def value_and_gradient(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        return value, leaf.grad

    expected = value_and_gradient(loss)
    with torch.autocast(x.device.type, torch.bfloat16):
        torch.testing.assert_close(value_and_gradient(loss), expected, rtol=0, atol=0)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(value_and_gradient(compiled), expected, rtol=0, atol=0)
