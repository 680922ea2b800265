"""Counter-based noise: a pure function of (seed, channel, y, x), so that an image gets the same noise whatever the
tile, batch or device. The counter is Philox-4x32-10 (Salmon et al., SC11). Uniform noise is the bits of its words, the
same on all devices; Gaussian noise has the shape of Box and Muller.

The complement ~s of a seed s has its noise with the sign turned, so that the two make an antithetic pair (Hammersley
and Morton, "A new Monte Carlo technique: antithetic variates", 1956)."""

from __future__ import annotations

import hashlib
from math import inf, pi
from types import ModuleType

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF

WORDS = 4
"""That a counter gives, of 32 bits each."""

UNIFORM = 2 * WORDS
"""Channels of uniform noise: the 16-bit halves of the words of one counter."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit counter words and two key words (int64 tensors that broadcast, 0..2^32 - 1) → four random words.

    Integer arithmetic only, so that every device gives the same words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32-bit product: it may wrap to a negative 64-bit integer, whose bits are right."""
    product = a * b
    return (product >> 32) & _LOW, product & _LOW


def uniform(seeds: Tensor, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 8, h, w] float32, channels last: noise of mean 0 and variance 1, uniform over 65,536 values.

    seeds: [N] int64, any value. origins: [N, 2] int64, the (y, x) of each first pixel. With w the 16-bit halves of the
    words of the counter (x, y, 0, 0), the lower first, the values are (2w - 65535) · (√3 / 65536): an integer times a
    float32, so that the CPU's (numba) and CUDA's (Triton) are equal. Raises RuntimeError where Triton is missing."""
    noise: Tensor = torch.ops.jpeg_posterior.uniform(seeds, origins, *size)
    return noise


def _uniform_on_cpu(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    from kernels.numba_ops import noise  # noqa: PLC0415  # where it is used: a GPU needs no numba

    return noise.uniform(seeds, origins, (height, width))


def _uniform_on_cuda(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    drawn: Tensor = _triton(seeds.device).uniform(seeds, origins, (height, width))
    return drawn


def _uniform_of_no_values(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    return seeds.new_empty((len(seeds), height, width, UNIFORM), dtype=torch.float32).permute(0, 3, 1, 2)


# Not torch.library.custom_op: at its first call that imports TorchDynamo, which takes each process seconds.
_OPERATORS = torch.library.Library("jpeg_posterior", "FRAGMENT")
_OPERATORS.define("uniform(Tensor seeds, Tensor origins, SymInt height, SymInt width) -> Tensor")
_OPERATORS.impl("uniform", _uniform_on_cpu, "CPU")
_OPERATORS.impl("uniform", _uniform_on_cuda, "CUDA")
torch.library.register_fake("jpeg_posterior::uniform", _uniform_of_no_values, lib=_OPERATORS)


def gaussian(
    seeds: Tensor,
    first: int,
    count: int,
    origins: Tensor,
    size: tuple[int, int],
    *,
    limit: float = inf,
    amplitude: Tensor | None = None,
) -> Tensor:
    """[N, count, h, w] float32: the standard normal noise of layers `first` and on, clipped at ±limit, then times the
    amplitude. Four layers share the words of one counter.

    seeds: [N] int64, any value. origins: [N, 2] int64, the (y, x) of each first sample in the layers' own grid.
    amplitude: [N, 1, 1, 1] float32; 1 when None.

    On CUDA one Triton kernel, whose words are the CPU's and whose values differ in the last bits. Raises RuntimeError
    there when Triton is missing.
    """
    if seeds.device.type == "cuda":
        drawn = _triton(seeds.device).gaussian
        noise: Tensor = drawn(seeds, first, count, origins, size, limit=limit, amplitude=amplitude)
        return noise
    z = _gaussian(seeds, first, count, origins, size).clamp_(-limit, limit)
    return z if amplitude is None else z * amplitude


def _triton(device: torch.device) -> ModuleType:
    try:
        from kernels.triton_ops import noise  # noqa: PLC0415  # where it is used: the CPU needs no Triton
    except ImportError as error:
        raise RuntimeError(f"tensors on {device} need Triton: pip install 'triton>=3.6' ({error})") from error
    return noise


def _gaussian(seeds: Tensor, first: int, count: int, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """`gaussian` in PyTorch, neither clipped nor scaled."""
    calls = torch.arange(first // WORDS, (first + count - 1) // WORDS + 1, device=seeds.device).reshape(1, -1, 1, 1)
    y = origins[:, 0].reshape(-1, 1, 1, 1) + torch.arange(size[0], device=seeds.device).reshape(-1, 1)
    x = origins[:, 1].reshape(-1, 1, 1, 1) + torch.arange(size[1], device=seeds.device)
    seeds = seeds.reshape(-1, 1, 1, 1)
    turned = seeds >> 63  # -1 of a negative seed, or 0
    key = ((seeds ^ turned) & _LOW, ((seeds ^ turned) >> 32) & _LOW)
    words = philox((x & _LOW, y & _LOW, calls, torch.zeros_like(calls)), key)
    radii, turns = torch.stack(words[::2], 2), torch.stack(words[1::2], 2)
    radius = (_fraction(radii).log() * -2).sqrt() * (1 + 2 * turned).unsqueeze(2)
    angle = _fraction(turns) * (2 * pi)
    normals = torch.stack((radius * angle.cos(), radius * angle.sin()), 3).flatten(1, 3)
    return normals[:, first % WORDS : first % WORDS + count]


def _fraction(words: Tensor) -> Tensor:
    """32-bit words → float32 above 0 and at most 1, of their upper 24 bits: as many as it holds."""
    return ((words >> 8).float() + 0.5) * 2.0**-24


def derive_seed(seed: int, key: str, sample: int) -> int:
    """The noise seed, a signed 64-bit integer, of one sample of one file: a hash of the user's seed, the file's key and
    the sample's number, so that no file's noise depends on its neighbours. Keys need not be UTF-8."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def derive_pairs(seed: int, key: str, count: int) -> list[int]:
    """The seeds of so many samples in antithetic pairs: the mean of their images has far less noise left in it than
    that of as many independent ones."""
    pairs = ((drawn, ~drawn) for drawn in (derive_seed(seed, key, number) for number in range((count + 1) // 2)))
    return [drawn for pair in pairs for drawn in pair][:count]
