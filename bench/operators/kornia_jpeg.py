"""kornia's differentiable JPEG, an optional package, with the same tables. Differences from kernels.roundtrip:

- It rounds by a differentiable polynomial, round(x) + (x - round(x))^3, up to an eighth from an integer; ours rounds,
  with a straight-through gradient. Its tables pass through such a polynomial as well.
- 4:2:0 only, with chroma resampled by bilinear interpolation; ours averages and repeats.
- Pixels beyond 0..255 keep a small gradient (a leaky clamp); ours have none. Decoded planes are not clamped.
- It neither takes uint8 nor returns coefficients; images are 0..1.

So results agree only roughly, which `checked` verifies; the costs are comparable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.operators.cases import SIDE, Case, Inputs, make_inputs
from kernels import Subsampling, roundtrip

MISSING = "kornia is not installed: its columns are left out (pip install -e '.[bench]')"
AS_GIVEN = 50.0
"""The quality at which kornia uses the given tables nearly unchanged: libjpeg's scale at 50 is 100 per cent."""


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
    """The call to be timed, with its inputs prepared: images 0..1, tables as floats."""
    x = inputs.x.detach() / 255
    luma, chroma = inputs.c.tables[:, 0].float(), inputs.c.tables[:, 1].float()
    quality = torch.full((case.images,), AS_GIVEN)  # on the CPU, where kornia reads it without synchronising with a GPU

    def call() -> object:
        leaf = x.detach().requires_grad_(case.backward)
        y = codec(leaf, quality, luma, chroma)
        return torch.autograd.grad(y, leaf, inputs.gradient) if case.backward else y

    return call


def checked(device: torch.device) -> tuple[Callable[..., Tensor] | None, str]:
    """(the codec, or None where it is missing or wrong; how it is wrong, or ""). Prints root mean square differences in
    gray levels for a photograph at quality 10: between both codecs' results, and of each from the photograph."""
    codec = load()
    if codec is None:
        print(MISSING)
        return None, ""
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
    if not (apart < mine_lost and 0.5 < theirs_lost / mine_lost < 2):
        return None, found
    print(found)
    return codec, ""
