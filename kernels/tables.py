"""The DCT basis (T.81, A.3.3) and quantisation tables: Annex K's, scaled by quality as libjpeg scales them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from math import cos, pi, sqrt
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")


@contextmanager
def usual_tensors() -> Iterator[None]:
    """Makes tensors that are cached the same whatever the modes of the first call: ordinary ones under
    `torch.inference_mode`, for a later call may need them for a gradient; on the CPU unless they name a device; of full
    precision under autocast."""
    with torch.inference_mode(False), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        yield


def constant(make: Callable[P, T], kept: int | None = None) -> Callable[P, T]:
    """Caches what a function makes, the last `kept` of them. Dynamo, which traces through caches but not through these
    modes, gets a new one, and so does FakeTensorMode, whose tensors have no values."""

    @lru_cache(maxsize=kept)
    @usual_tensors()
    def made(*arguments: P.args, **options: P.kwargs) -> T:
        return _computed(make(*arguments, **options))

    @wraps(make)
    def get(*arguments: P.args, **options: P.kwargs) -> T:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return make(*arguments, **options)
        return made(*arguments, **options)  # type: ignore[arg-type]  # hashable, as every cache's

    return get


def _computed(value: T) -> T:
    """Waits for the GPU to have computed it: the streams that will read it do not wait for the one that makes it."""
    for tensor in value if isinstance(value, tuple) else (value,):
        if isinstance(tensor, Tensor) and tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()
    return value


# fmt: off
ANNEX_K_LUMA = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]], dtype=torch.int32)
"""[8, 8] int32, T.81's table K.1, in natural order."""

ANNEX_K_CHROMA = torch.tensor([
    [17, 18, 24, 47, 99, 99, 99, 99], [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99], [47, 66, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99], [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99], [99, 99, 99, 99, 99, 99, 99, 99]], dtype=torch.int32)
"""[8, 8] int32, T.81's table K.2, in natural order."""
# fmt: on


@constant
def dct_basis(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """[8, 8]: the orthonormal DCT-II, row k the k-th frequency; `basis @ block @ basis.T` is the forward transform."""
    rows = [[sqrt((1 if k == 0 else 2) / 8) * cos((2 * n + 1) * k * pi / 16) for n in range(8)] for k in range(8)]
    return torch.tensor(rows, dtype=torch.float64).to(device=device, dtype=dtype)


@constant
def zigzag() -> Tensor:
    """[64] int64: position k of the zigzag scan holds the coefficient at natural index `zigzag()[k]` (T.81, A.3.6)."""
    order = sorted(
        ((row, column) for row in range(8) for column in range(8)),
        key=lambda rc: (rc[0] + rc[1], rc[0] if (rc[0] + rc[1]) % 2 else rc[1]),
    )
    return torch.tensor([8 * row + column for row, column in order])


def quality_to_tables(quality: int, components: int) -> Tensor:
    """[components, 8, 8] int32: Annex K's tables at libjpeg's `quality`, 1..100, limited to 1..255 (baseline).

    Raises ValueError for another quality, and for no components."""
    if quality not in range(1, 101) or components < 1:
        raise ValueError(f"expected a quality of 1..100 and components, got {quality!r} and {components}")
    return scale_tables(torch.stack([ANNEX_K_LUMA] + [ANNEX_K_CHROMA] * (components - 1)), int(quality))


def scale_tables(tables: Tensor, quality: int) -> Tensor:
    """int32 tables of quality 50, of any shape, at libjpeg's `quality`, 1..100, limited to 1..255."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((tables * scale + 50) // 100).clamp(1, 255)


@constant
def tables_by_quality() -> Tensor:
    """[100, 2, 8, 8] int32: luma's and chroma's tables at libjpeg's qualities 1 to 100."""
    return torch.stack([quality_to_tables(quality, 2) for quality in range(1, 101)])


@constant
def _luma_logs() -> Tensor:
    return tables_by_quality()[:, 0].double().log()


def nearest_quality(tables: Tensor) -> int:
    """The libjpeg quality, 1..100, whose luma table is nearest to `tables[0]` ([components, 8, 8]) in mean squared
    difference of logarithms; exact for libjpeg's own tables. Raises ValueError for other shapes."""
    if tables.dim() != 3:
        raise ValueError(f"tables: expected one image's, [components, 8, 8], got {list(tables.shape)}")
    distance = (_luma_logs() - tables[0].cpu().double().log()).square().mean(dim=(1, 2))
    return int(distance.flip(0).argmin().neg().add(100))
