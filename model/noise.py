"""Counter-based noise: a pure function of (seed, channel, y, x), so that the noise of an image does not depend on tile,
batch or device. The random bits are Philox-4x32-10's (Salmon et al., SC11). Uniform noise is computed from them
exactly, Gaussian noise by the Box-Muller transform, which differs in the last bits between devices.

The noise of the complement ~s is the negative of that of the seed s, so that the two form an antithetic pair
(Hammersley and Morton, "A new Monte Carlo technique: antithetic variates", 1956)."""

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
"""32-bit words per counter."""

UNIFORM_CHANNELS = 2 * WORDS
"""Channels of uniform noise: the 16-bit halves of the words of one counter."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four counter words and two key words → four random words. All are int64 tensors of values
    0..2^32 - 1 that broadcast. Integer arithmetic only, so that all devices give the same words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of two 32-bit words. The 64-bit product may wrap to a negative integer; its
    bits are still right."""
    product = a * b
    return (product >> 32) & _LOW, product & _LOW


def uniform(seeds: Tensor, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """Noise [N, 8, h, w] float32, channels last, with mean 0 and variance 1, uniform over 65,536 values.

    seeds: [N] int64, any value. origins: [N, 2] int64, the (y, x) of each first pixel. size: (h, w). With w the 16-bit
    halves of the words of the counter (x, y, 0, 0), the lower half first, the values are (2w - 65535) · (√3 / 65536):
    an integer times a float32, so that CPU (numba) and CUDA (Triton) give the same bits. Raises RuntimeError on CUDA if
    Triton is missing."""
    noise: Tensor = torch.ops.jpeg_posterior.uniform(seeds, origins, *size)
    return noise


def _uniform_on_cpu(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    from kernels.numba_ops import noise  # noqa: PLC0415  # not needed on a GPU

    return noise.uniform(seeds, origins, (height, width))


def _uniform_on_cuda(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    drawn: Tensor = _triton(seeds.device).uniform(seeds, origins, (height, width))
    return drawn


def _fake_uniform(seeds: Tensor, origins: Tensor, height: int, width: int) -> Tensor:
    return seeds.new_empty((len(seeds), height, width, UNIFORM_CHANNELS), dtype=torch.float32).permute(0, 3, 1, 2)


# Not torch.library.custom_op, whose first call imports TorchDynamo: that takes seconds in each process.
_OPERATORS = torch.library.Library("jpeg_posterior", "FRAGMENT")
_OPERATORS.define("uniform(Tensor seeds, Tensor origins, SymInt height, SymInt width) -> Tensor")
_OPERATORS.impl("uniform", _uniform_on_cpu, "CPU")
_OPERATORS.impl("uniform", _uniform_on_cuda, "CUDA")
torch.library.register_fake("jpeg_posterior::uniform", _fake_uniform, lib=_OPERATORS)


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
    """Standard normal noise [N, count, h, w] float32 of the channels from `first` on, clipped at ±limit, then
    multiplied by the amplitude. Four channels share the words of one counter.

    seeds: [N] int64, any value. origins: [N, 2] int64, the (y, x) of each first position in the grid of the noise.
    size: (h, w). amplitude: [N, 1, 1, 1] float32; None: 1.

    On CUDA a Triton kernel computes it, with the same words and values that differ in the last bits. Raises
    RuntimeError on CUDA if Triton is missing.
    """
    if seeds.device.type == "cuda":
        drawn = _triton(seeds.device).gaussian
        noise: Tensor = drawn(seeds, first, count, origins, size, limit=limit, amplitude=amplitude)
        return noise
    z = _gaussian(seeds, first, count, origins, size).clamp_(-limit, limit)
    return z if amplitude is None else z * amplitude


def _triton(device: torch.device) -> ModuleType:
    try:
        from kernels.triton_ops import noise  # noqa: PLC0415  # not needed on the CPU
    except ImportError as error:
        raise RuntimeError(f"tensors on {device} need Triton: pip install 'triton>=3.6' ({error})") from error
    return noise


def _gaussian(seeds: Tensor, first: int, count: int, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """`gaussian` in PyTorch, without clipping and amplitude."""
    counters = torch.arange(first // WORDS, (first + count - 1) // WORDS + 1, device=seeds.device).reshape(1, -1, 1, 1)
    y = origins[:, 0].reshape(-1, 1, 1, 1) + torch.arange(size[0], device=seeds.device).reshape(-1, 1)
    x = origins[:, 1].reshape(-1, 1, 1, 1) + torch.arange(size[1], device=seeds.device)
    seeds = seeds.reshape(-1, 1, 1, 1)
    sign = seeds >> 63  # -1 for negative seeds, else 0
    key = ((seeds ^ sign) & _LOW, ((seeds ^ sign) >> 32) & _LOW)
    words = philox((x & _LOW, y & _LOW, counters, torch.zeros_like(counters)), key)
    radii, angles = torch.stack(words[::2], 2), torch.stack(words[1::2], 2)
    radius = (_fraction(radii).log() * -2).sqrt() * (1 + 2 * sign).unsqueeze(2)
    angle = _fraction(angles) * (2 * pi)
    normals = torch.stack((radius * angle.cos(), radius * angle.sin()), 3).flatten(1, 3)
    return normals[:, first % WORDS : first % WORDS + count]


def _fraction(words: Tensor) -> Tensor:
    """32-bit words → float32 in (0, 1], from the upper 24 bits, the precision of float32."""
    return ((words >> 8).float() + 0.5) * 2.0**-24


def derive_seed(seed: int, key: str, sample: int) -> int:
    """The noise seed of one sample of one file, a signed 64-bit integer: a hash of the user's seed, the file's key and
    the sample's number, so that it does not depend on other files. Keys need not be UTF-8."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def derive_pairs(seed: int, key: str, count: int) -> list[int]:
    """Noise seeds of `count` samples in antithetic pairs, whose mean image contains far less noise than that of as many
    independent samples."""
    firsts = (derive_seed(seed, key, number) for number in range((count + 1) // 2))
    return [paired for first in firsts for paired in (first, ~first)][:count]
