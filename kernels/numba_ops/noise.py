"""Uniform noise for the CPU: what model.noise.uniform draws, compiled by numba.

N images, h by w pixels, 8 channels, innermost: a pixel's values are the 16-bit halves of one Philox call's four words.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import float32, int64, uint32, uint64
from numpy.typing import NDArray
from torch import Tensor

from kernels.numba_ops.compiler import compiling, inlined, kernel

CHANNELS = 8

SCALE = float(np.float32(3**0.5)) * 2.0**-16
"""Makes the odd integers from -65535 to 65535 a variable of mean 0 and variance 1. One product of an integer that
float32 holds and of this float32: the same on all devices, whether or not they fuse products and sums."""

LANES = 16
"""Pixels that are computed together: a few of a CPU's registers."""


@inlined
def multiplied(a: int, b: int) -> tuple[int, int]:
    """The high and the low 32 bits of a product."""
    product = uint64(a) * uint64(b)
    return uint32(product >> uint64(32)), uint32(product)


@kernel
def draw(seeds: NDArray[np.int64], origins: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """seeds [N], origins [N, 2] (y, x), out [N, h, w, 8]. Philox-4x32-10 of the counter (x, y, 0, 0)."""
    images, height, width, _ = out.shape
    words = np.empty((4, LANES), np.uint32)
    for n in range(images):
        turned = seeds[n] >> 63  # -1 of a negative seed, whose noise is its complement's with the sign turned
        seed = uint64(seeds[n] ^ turned)
        flip = uint32(uint64(turned) & uint64(0xFFFFFFFF))
        for y in range(height):
            row = uint32(uint64(origins[n, 0] + y) & uint64(0xFFFFFFFF))
            for start in range(0, width, LANES):
                for lane in range(LANES):
                    c0 = uint32(uint64(origins[n, 1] + start + lane) & uint64(0xFFFFFFFF))
                    c1, c2, c3 = row, uint32(0), uint32(0)
                    k0, k1 = uint32(seed & uint64(0xFFFFFFFF)), uint32(seed >> uint64(32))
                    for _ in range(10):
                        high0, low0 = multiplied(c0, uint32(0xD2511F53))
                        high1, low1 = multiplied(c2, uint32(0xCD9E8D57))
                        c0, c1, c2, c3 = uint32(high1 ^ c1 ^ k0), low1, uint32(high0 ^ c3 ^ k1), low0
                        k0, k1 = uint32(k0 + uint32(0x9E3779B9)), uint32(k1 + uint32(0xBB67AE85))
                    words[0, lane], words[1, lane], words[2, lane], words[3, lane] = c0, c1, c2, c3
                for lane in range(min(LANES, width - start)):
                    for number in range(4):
                        word = int64(words[number, lane] ^ flip)
                        out[n, y, start + lane, 2 * number] = float32(2 * (word & 0xFFFF) - 65535) * float32(SCALE)
                        out[n, y, start + lane, 2 * number + 1] = float32(2 * (word >> 16) - 65535) * float32(SCALE)


@cache
def compile_kernel() -> None:
    """Compiles `draw`, which takes two seconds, or loads what has been compiled before."""
    with compiling(draw.__name__, quiet=True):
        draw(np.zeros(1, np.int64), np.zeros((1, 2), np.int64), np.empty((1, 1, 1, CHANNELS), np.float32))


def uniform(seeds: Tensor, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """See model.noise.uniform."""
    compile_kernel()
    out = np.empty((len(seeds), *size, CHANNELS), np.float32)
    draw(seeds.contiguous().numpy(), origins.contiguous().numpy(), out)
    return torch.from_numpy(out).permute(0, 3, 1, 2)
