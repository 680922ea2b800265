"""bench/kernels.py without a GPU: torch_ops compared with kornia and with Pillow's codec, taking turns in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench.operators import kornia_jpeg
from bench.operators.cases import SIDE, Case, Inputs, Settings, in_torch, make_inputs, run
from bench.operators.table import Pair, cpu_table, device_line
from bench.operators.timing import time_side_by_side
from bench.pillow import decode, encode_jpeg
from kernels import Coefficients, Subsampling, torch_ops

CPU = torch.device("cpu")
CROPS = (32, 128)
"""The crops of a training step: their number, and their side in pixels."""


@dataclass(frozen=True)
class Comparison:
    """Two calls that compute the same of the same pixels."""

    what: str
    other: str
    shape: str
    pixels: int
    mine: Callable[[], object]
    theirs: Callable[[], object]


def shape_of(case: Case) -> str:
    return f"{case.images} x {case.side}x{case.side}"


def with_kornia(codec: Any, case: Case) -> Comparison:
    inputs = make_inputs(case, CPU)
    theirs = kornia_jpeg.prepare(codec, case, inputs)
    what = f"{case.operator} {case.sampling.label}"
    return Comparison(what, "kornia", shape_of(case), case.pixels, lambda: run(in_torch(), case, inputs), theirs)


def with_pillow(case: Case) -> tuple[Comparison, str]:
    """(the comparison, how the results differ, or ""). Both encode the same pixels and decode the same coefficients."""
    from pipeline.jpeg.bitstream import read_bitstream  # noqa: PLC0415  # needs jpeglib, unlike the measurement on a GPU

    inputs = make_inputs(case, CPU)
    exact = inputs.x.to(torch.uint8)
    images = [Image.fromarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in exact]
    label = case.sampling.label
    files = [encode_jpeg(image, case.quality, label) for image in images]
    each = [read_bitstream(data).coefficients for data in files]
    tables = torch.cat([c.tables for c in each])
    planes = tuple(torch.cat(plane) for plane in zip(*(c.planes for c in each), strict=True))
    inputs = Inputs(inputs.x, Coefficients(planes, tables, case.sampling, (case.side, case.side)), None)
    if case.operator == "encode":
        apart = float(torch_ops.encode(inputs.x, tables, case.sampling).mismatches(inputs.c).sum())
        apart, unit = 100 * apart / inputs.c.count / case.images, "per cent of coefficients differ from Pillow's"
    else:
        theirs = [np.asarray(image).reshape(case.side, case.side, -1) for image in map(decode, files)]
        pixels = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2)
        apart = float((torch_ops.decode(inputs.c) - pixels).abs().mean())
        unit = "gray levels from Pillow's pixels on average"
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: [encode_jpeg(image, case.quality, label) for image in images],
        "decode": lambda: [decode(data) for data in files],
    }
    what, mine = f"{case.operator} {label}", lambda: run(in_torch(), case, inputs)
    comparison = Comparison(what, "Pillow", shape_of(case), case.pixels, mine, calls[case.operator])
    return comparison, "" if apart < 1 else f"{what}: {apart:.2f} {unit}"


def kornia_comparisons(settings: Settings) -> tuple[list[Comparison], list[str]]:
    operators = [name for name in ("roundtrip", "roundtrip+backward") if name in settings.operators]
    if "kornia" not in settings.against or Subsampling.S420 not in settings.samplings or not operators:
        return [], []
    codec, wrong = kornia_jpeg.checked(CPU)
    if codec is None:
        return [], [wrong] if wrong else []
    shapes = [CROPS, *((images, SIDE) for images in settings.megapixels)]
    cases = [
        Case(operator, Subsampling.S420, "float32", images, settings.quality, side)
        for operator in operators
        for images, side in shapes
    ]
    return [with_kornia(codec, case) for case in cases], []


def pillow_comparisons(settings: Settings) -> tuple[list[Comparison], list[str]]:
    """All samplings except 4:4:0, which Pillow does not write."""
    if "pillow" not in settings.against:
        return [], []
    both = [
        with_pillow(Case(operator, sampling, "float32", images, settings.quality))
        for operator in ("encode", "decode")
        if operator in settings.operators
        for sampling in settings.samplings
        if sampling is not Subsampling.S440
        for images in settings.megapixels
    ]
    return [comparison for comparison, wrong in both if not wrong], [wrong for _, wrong in both if wrong]


def measure(settings: Settings) -> tuple[dict[str, Any], bool]:
    """Prints the table. Returns (figures for --json, whether all results agreed)."""
    print(f"{device_line(CPU)}; quality {settings.quality}; no CUDA: kernels are not timed")
    comparisons, wrong = kornia_comparisons(settings)
    others, apart = pillow_comparisons(settings)
    comparisons, wrong, pairs = comparisons + others, wrong + apart, []
    for comparison in tqdm(comparisons, desc="CPU", unit="pair", leave=False):
        calls = {"mine": comparison.mine, "theirs": comparison.theirs}
        costs = time_side_by_side(calls, settings.seconds, settings.repetitions)
        pairs.append(
            Pair(comparison.what, comparison.other, comparison.shape, comparison.pixels, costs["mine"], costs["theirs"])
        )
    print(cpu_table(pairs))
    print(
        "Ratios: how many times as long the other takes, by wall time and by CPU time. Pillow's codec includes entropy"
    )
    print("coding and computes in integers; torch_ops excludes it and computes in float32.")
    for problem in wrong:
        print(f"WRONG, not timed: {problem}")
    return {"device": device_line(CPU), "pairs": [pair.figures() for pair in pairs]}, not wrong
