"""The cases of bench/kernels.py: operators, their inputs, and the bytes that they must move."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kernels
from kernels import Coefficients, Subsampling, quality_to_tables, torch_ops

OPERATORS = (
    "encode",
    "decode",
    "roundtrip",
    "roundtrip+backward",
    "project",
    "project+backward",
    "project_exact",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDE = 1024
"""Height and width of an image in pixels: one megapixel of 2^20. A launch of 16 megapixels is a batch of 16 images."""

EDGED_SIDE = 1009
"""The same of images of whose last row and column of MCUs only one row and column of pixels are inside. project_exact
searches these MCUs by themselves."""

SAMPLE = Path(__file__).parents[2] / "pipeline" / "sample" / "sample.tar"
PHOTOGRAPHS = ("dogs-q20", "cat-q20", "coffee-q30", "stream-q30", "drum-q40", "fig-q40", "dandelion-q50", "stream-q75")
NOISE = 3.0
"""Gray levels of noise that is added to decoded images, the inputs of `project` and `project_exact`."""


@dataclass(frozen=True)
class Case:
    """An operator on a batch of `images` of `side` x `side` pixels."""

    operator: str
    sampling: Subsampling
    dtype: str
    images: int
    quality: int = 10
    side: int = SIDE

    @property
    def pixels(self) -> int:
        return self.images * self.side**2

    @property
    def name(self) -> str:
        """The operator's, and whether MCUs extend beyond the images."""
        return self.operator + ", edges" * self.edges

    @property
    def edges(self) -> bool:
        return self.side % 16 > 0

    @property
    def backward(self) -> bool:
        return self.operator.endswith("+backward")


@dataclass(frozen=True)
class Settings:
    """quality: of the tables. against: other implementations, by name. seconds, repetitions: limits of one median.
    minutes: after which nothing new is started; of a GPU."""

    operators: list[str]
    samplings: list[Subsampling]
    dtypes: list[str]
    megapixels: list[int]
    quality: int
    against: list[str]
    seconds: float
    repetitions: int
    minutes: float


@dataclass(frozen=True)
class Operators:
    """One implementation of the five operators."""

    encode: Callable[..., Coefficients]
    decode: Callable[..., Tensor]
    roundtrip: Callable[..., Tensor]
    project: Callable[..., Tensor]
    project_exact: Callable[..., tuple[Tensor, Tensor]]


def ours() -> Operators:
    """Those of kernels/, by device: Triton on CUDA."""
    return Operators(kernels.encode, kernels.decode, kernels.roundtrip, kernels.project, kernels.project_exact)


def in_torch() -> Operators:
    """Plain PyTorch on any device, except for project_exact, which is numba's and takes tensors on the CPU."""
    return Operators(
        torch_ops.encode, torch_ops.decode, torch_ops.roundtrip, torch_ops.project, torch_ops.project_exact
    )


@dataclass(frozen=True)
class Inputs:
    """x: images [N, C, H, W], 0..255. c: coefficients, for operators that take them. gradient: of the result."""

    x: Tensor
    c: Coefficients
    gradient: Tensor | None


def bytes_needed(case: Case) -> int:
    """The minimum that must be read and written, each once per launch. A backward pass is a separate launch: it
    reads the pixels, the gradient of the result and, for `project`, the coefficients, and writes the pixels' gradient.
    Includes tables and counts of mismatches."""
    sampling, size = case.sampling, (case.side, case.side)
    channels = sampling.components
    values, element = case.pixels * channels, DTYPES[case.dtype].itemsize
    blocks = (sampling.plane_blocks(component, size) for component in range(channels))
    coefficients = case.images * sum(2 * 64 * rows * columns for rows, columns in blocks)
    tables = case.images * channels * 64 * 4
    image, single = values * element, values * 4
    return {
        "encode": image + tables + coefficients,
        "decode": coefficients + tables + single,
        "roundtrip": image + tables + image,
        "roundtrip+backward": (image + tables + image) + (image + tables + image + image),
        "project": image + coefficients + tables + single,
        "project+backward": (image + coefficients + tables + single) + (image + coefficients + tables + single + image),
        "project_exact": image + coefficients + tables + values + 8 * case.images,
    }[case.operator]


@cache
def photographs(side: int) -> Tensor:
    """[8, 3, side, side] uint8: photographs of the sample shard, extended by mirroring."""
    pictures = []
    with tarfile.open(SAMPLE) as archive:
        for name in sorted(archive.getnames()):
            if name.startswith(PHOTOGRAPHS) and name.endswith(".jpg"):
                member = archive.extractfile(name)
                assert member is not None
                pixels = np.asarray(Image.open(io.BytesIO(member.read())).convert("RGB"))[:side, :side]
                missing = [(0, side - pixels.shape[0]), (0, side - pixels.shape[1]), (0, 0)]
                pictures.append(torch.from_numpy(np.pad(pixels, missing, mode="symmetric")).permute(2, 0, 1))
    return torch.stack(pictures)


def pictures(images: int, sampling: Subsampling, side: int, seed: int, device: torch.device) -> Tensor:
    """[N, C, side, side] uint8: the photographs, each shifted cyclically by a random offset; gray is one channel."""
    generator, base = torch.Generator().manual_seed(seed), photographs(side)
    shifts = torch.randint(side, (images, 2), generator=generator).tolist()
    channels = [1] if sampling is Subsampling.GRAY else [0, 1, 2]
    base = base[:, channels].to(device)
    return torch.stack([base[(seed + i) % len(base)].roll(shift, (1, 2)) for i, shift in enumerate(shifts)])


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Photographs for encode and roundtrip, decoded images with noise for project and project_exact."""
    by = ours()
    dtype, generator = DTYPES[case.dtype], torch.Generator(device).manual_seed(seed)
    exact = pictures(case.images, case.sampling, case.side, seed, device)
    tables = quality_to_tables(case.quality, case.sampling.components)
    tables = tables.expand(case.images, -1, -1, -1).contiguous().to(device)
    c = by.encode(exact.to(dtype), tables, case.sampling)
    x = exact.to(dtype)
    if case.operator.startswith("project"):
        x = by.decode(c)
        x = x.add_(torch.randn(x.shape, generator=generator, device=device), alpha=NOISE).clamp_(0, 255).to(dtype)
    gradient = None
    if case.backward:
        result = torch.float32 if case.operator.startswith("project") else dtype
        gradient = torch.randn(x.shape, generator=generator, device=device).to(result)
    return Inputs(x, c, gradient)


def run(operators: Operators, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """One call, as it is timed. Returns the operator's result and, with a backward pass, the gradient of the images."""
    x, c = inputs.x.detach().requires_grad_(case.backward), inputs.c
    name = case.operator.removesuffix("+backward")
    if name == "encode":
        return operators.encode(x, c.tables, case.sampling).planes
    if name == "decode":
        return (operators.decode(c),)
    if name == "project_exact":
        return operators.project_exact(x, c)
    y = operators.roundtrip(x, c.tables, case.sampling) if name == "roundtrip" else operators.project(x, c)
    return (y, *torch.autograd.grad(y, x, inputs.gradient)) if case.backward else (y,)


def all_cases(
    operators: Iterable[str],
    samplings: Iterable[Subsampling],
    dtypes: Iterable[str],
    megapixels: Iterable[int],
    quality: int,
) -> list[Case]:
    """4:2:0 first, then the others in the order given. `decode` reads no image: one case for all dtypes.
    `project_exact` has cases with edges, too."""
    ordered = sorted(samplings, key=lambda sampling: sampling is not Subsampling.S420)
    dtypes = list(dtypes)
    return [
        Case(operator, sampling, "float32" if operator == "decode" else dtype, images, quality, side)
        for sampling in ordered
        for dtype in dtypes
        for operator in operators
        for side in ((SIDE, EDGED_SIDE) if operator == "project_exact" else (SIDE,))
        for images in sorted(megapixels)
        if operator != "decode" or dtype == dtypes[0]
    ]
