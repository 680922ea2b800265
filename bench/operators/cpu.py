"""bench/kernels.py without a GPU: torch_ops beside kornia and beside Pillow's codec, in turn, in one run."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench.operators import kornia_jpeg
from bench.operators.cases import SIDE, Case, Inputs, in_torch, make_inputs, run
from bench.operators.table import Pair, cpu_table, device_line
from bench.operators.timing import time_side_by_side
from kernels import Coefficients, Subsampling, torch_ops

CPU = torch.device("cpu")
CROPS = (32, 128)
"""A training step's crops: how many, and their side."""


@dataclass(frozen=True)
class Settings:
    """seconds, repetitions: of one pair's medians. against: `kornia`, `pillow` or both."""

    operators: list[str]
    samplings: list[Subsampling]
    megapixels: list[int]
    quality: int
    against: list[str]
    seconds: float
    repetitions: int


@dataclass(frozen=True)
class Contest:
    """Two calls that do the same to the same pixels."""

    what: str
    other: str
    shape: str
    pixels: int
    mine: Callable[[], object]
    theirs: Callable[[], object]


def shape_of(case: Case) -> str:
    return f"{case.images} x {case.side}x{case.side}"


def beside_kornia(codec: Any, case: Case) -> Contest:
    inputs = make_inputs(case, CPU)
    theirs = kornia_jpeg.prepare(codec, case, inputs)
    what = f"{case.operator} {case.sampling.label}"
    return Contest(what, "kornia", shape_of(case), case.pixels, lambda: run(in_torch(), case, inputs), theirs)


def compress(images: list[Image.Image], quality: int, sampling: Subsampling) -> list[bytes]:
    """By Pillow's libjpeg-turbo, in memory."""
    chroma = {} if sampling is Subsampling.GRAY else {"subsampling": sampling.label}
    files = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, **chroma)
        files.append(stream.getvalue())
    return files


def decompress(files: list[bytes]) -> list[Image.Image]:
    images = [Image.open(io.BytesIO(data)) for data in files]
    for image in images:
        image.load()
    return list(images)


def beside_pillow(case: Case) -> tuple[Contest, str]:
    """(the contest, what is wrong, or nothing). Both encode the same pixels and decode the same coefficients."""
    from pipeline.jpeg.bitstream import read_bitstream  # noqa: PLC0415  # it needs jpeglib, which a GPU's table does not

    inputs = make_inputs(case, CPU)
    exact = inputs.x.to(torch.uint8)
    images = [Image.fromarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in exact]
    files = compress(images, case.quality, case.sampling)
    each = [read_bitstream(data).coefficients for data in files]
    tables = torch.cat([c.tables for c in each])
    planes = tuple(torch.cat(plane) for plane in zip(*(c.planes for c in each), strict=True))
    inputs = Inputs(inputs.x, Coefficients(planes, tables, case.sampling, (case.side, case.side)), None)
    if case.operator == "encode":
        apart = float(torch_ops.encode(inputs.x, tables, case.sampling).mismatches(inputs.c).sum())
        apart, unit = 100 * apart / inputs.c.count / case.images, "per cent of coefficients differ from Pillow's"
    else:
        theirs = [np.asarray(image).reshape(case.side, case.side, -1) for image in decompress(files)]
        pixels = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2)
        apart = float((torch_ops.decode(inputs.c) - pixels).abs().mean())
        unit = "gray levels from Pillow's pixels on average"
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: compress(images, case.quality, case.sampling),
        "decode": lambda: decompress(files),
    }
    what, mine = f"{case.operator} {case.sampling.label}", lambda: run(in_torch(), case, inputs)
    contest = Contest(what, "Pillow", shape_of(case), case.pixels, mine, calls[case.operator])
    return contest, "" if apart < 1 else f"{what}: {apart:.2f} {unit}"


def kornia_contests(settings: Settings) -> tuple[list[Contest], list[str]]:
    operators = [name for name in ("roundtrip", "roundtrip+backward") if name in settings.operators]
    if "kornia" not in settings.against or Subsampling.S420 not in settings.samplings or not operators:
        return [], []
    codec = kornia_jpeg.load()
    if codec is None:
        print(kornia_jpeg.MISSING)
        return [], []
    wrong, found = kornia_jpeg.disagreement(codec, CPU)
    if wrong:
        return [], [wrong]
    print(found)
    shapes = [CROPS, *((images, SIDE) for images in settings.megapixels)]
    cases = [
        Case(operator, Subsampling.S420, "float32", images, settings.quality, side)
        for operator in operators
        for images, side in shapes
    ]
    return [beside_kornia(codec, case) for case in cases], []


def pillow_contests(settings: Settings) -> tuple[list[Contest], list[str]]:
    """Without 4:4:0, which Pillow does not write."""
    if "pillow" not in settings.against:
        return [], []
    both = [
        beside_pillow(Case(operator, sampling, "float32", images, settings.quality))
        for operator in ("encode", "decode")
        if operator in settings.operators
        for sampling in settings.samplings
        if sampling is not Subsampling.S440
        for images in settings.megapixels
    ]
    return [contest for contest, wrong in both if not wrong], [wrong for _, wrong in both if wrong]


def measure(settings: Settings) -> tuple[dict[str, Any], bool]:
    """Prints the table. (figures for --json, whether all results agreed.)"""
    print(f"{device_line(CPU)}; quality {settings.quality}; no CUDA: kernels are not timed")
    contests, wrong = kornia_contests(settings)
    others, apart = pillow_contests(settings)
    contests, wrong, pairs = contests + others, wrong + apart, []
    for contest in tqdm(contests, desc="CPU", unit="pair", leave=False):
        calls = {"mine": contest.mine, "theirs": contest.theirs}
        costs = time_side_by_side(calls, settings.seconds, settings.repetitions)
        pairs.append(Pair(contest.what, contest.other, contest.shape, contest.pixels, costs["mine"], costs["theirs"]))
    print(cpu_table(pairs))
    print(
        "Ratios: how many times as long the other takes, by the clock and by CPU time. Pillow's codec includes entropy"
    )
    print("coding and computes in integers; torch_ops gives and takes coefficients, and computes in float32.")
    for problem in wrong:
        print(f"WRONG, not timed: {problem}")
    return {"device": device_line(CPU), "pairs": [pair.figures() for pair in pairs]}, not wrong
