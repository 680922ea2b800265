"""kornia's differentiable JPEG, which is optional: the same tables, and what it does otherwise.

- It rounds by a polynomial, round(x) + (x - round(x))^3, which is up to an eighth from a whole number and has a slope
  for a gradient, where ours rounds and lets the gradient pass. Its tables go through such a polynomial too.
- 4:2:0 only, chroma made smaller and larger again by bilinear interpolation; ours averages and repeats.
- Pixels beyond 0..255 keep a little of their gradient (a leaky clamp); ours have none. Decoded planes are not limited.
- It has no uint8 and no coefficients to give; images are 0..1.

So results agree roughly, which `disagreement` looks at, and their costs are what can be compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.operators.cases import SIDE, Case, Inputs, make_inputs
from kernels import Subsampling, roundtrip

MISSING = "kornia is not installed: its columns are left out (pip install kornia, or pip install -e '.[bench]')"
AS_GIVEN = 50.0
"""kornia's quality at which it takes the tables about as they are: at 50 libjpeg's scale is 100 per cent."""


def load() -> Callable[..., Tensor] | None:
    """`jpeg_codec_differentiable`, or None without kornia."""
    try:
        codec: Callable[..., Tensor] = importlib.import_module("kornia.enhance").jpeg_codec_differentiable
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "kornia":
            raise
        return None
    return codec


def applies(case: Case) -> bool:
    return case.sampling is Subsampling.S420 and case.operator in ("roundtrip", "roundtrip+backward")


def prepare(codec: Any, case: Case, inputs: Inputs) -> Callable[[], object]:
    """The call that is timed, everything that it needs being ready: images 0..1, tables as floats."""
    x = inputs.x.detach() / 255
    luma, chroma = inputs.c.tables[:, 0].float(), inputs.c.tables[:, 1].float()
    quality = torch.full((case.images,), AS_GIVEN)  # on the CPU, where kornia looks at it without waiting for a GPU

    def call() -> object:
        leaf = x.detach().requires_grad_(case.backward)
        y = codec(leaf, quality, luma, chroma)
        return torch.autograd.grad(y, leaf, inputs.gradient) if case.backward else y

    return call


def disagreement(codec: Any, device: torch.device) -> tuple[str, str]:
    """(what is wrong, or nothing; what was found): root mean square differences in gray levels between both codecs'
    results for a photograph at quality 10, and of each from the photograph."""
    case = Case("roundtrip", Subsampling.S420, "float32", 1, 10, SIDE // 4)
    inputs = make_inputs(case, device)
    mine, theirs = roundtrip(inputs.x, inputs.c.tables, case.sampling), prepare(codec, case, inputs)()
    assert isinstance(theirs, Tensor)
    theirs = 255 * theirs

    def rms(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean().sqrt())

    apart, mine_lost, theirs_lost = rms(mine, theirs), rms(mine, inputs.x), rms(theirs, inputs.x)
    found = (
        f"kornia at quality 10 differs from roundtrip by {apart:.2f} gray levels (root mean square), "
        f"from the photograph by {theirs_lost:.2f}, roundtrip by {mine_lost:.2f}"
    )
    wrong = not (apart < mine_lost and 0.5 < theirs_lost / mine_lost < 2)
    return (found if wrong else ""), found
