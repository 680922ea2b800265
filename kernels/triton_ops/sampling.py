"""Chroma subsampling by averaging and upsampling by repetition, with the transposes that gradients need.

Shapes as in blocks.py: pixels of luma blocks [8, V G H, 8], samples of chroma blocks [8, G, 8].
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_ops.blocks import places


@triton.jit
def sum_under_samples(x, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Pixels of luma's blocks [8, V G H, 8] → sums of the V x H values under each chroma sample, [8, G, 8]."""
    if H == 2:
        left, right = tl.split(tl.reshape(x, [8, V * G, 8, 2]))
        x = left + right
    if V == 2:
        upper, lower = tl.split(tl.permute(tl.reshape(x, [4, 2, V, G, 8]), (2, 0, 3, 4, 1)))
        x = tl.reshape(upper + lower, [8, G, 8])
    return x


@triton.jit
def repeat_chroma(x, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """Chroma's [8, G, 8] → each sample repeated over its V x H pixels, pixels of luma's blocks [8, V G H, 8]."""
    if V == 2:
        x = tl.permute(tl.reshape(x, [2, 4, G, 8]), (1, 0, 2, 3))
        x = tl.reshape(tl.permute(tl.join(x, x), (0, 4, 1, 2, 3)), [8, V * G, 8])
    if H == 2:
        x = tl.reshape(tl.join(x, x), [8, V * G * H, 8])
    return x


@triton.jit
def averaging_adjoint(x, blocks, size, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """The gradient of samples [8, G, 8] → of the pixels [8, V G H, 8] that each averages. The last row of an odd height
    counts twice in its samples, the last column of an odd width likewise."""
    height, width = size
    y, place = places(blocks)
    across = tl.where(place == width - 1, H - (width - 1) % H, 1).to(tl.float32) * (1 / (V * H))
    down = tl.where(y == height - 1, V - (height - 1) % V, 1).to(tl.float32)
    return repeat_chroma(x, V, G, H) * (across[None, :, :] * down[:, :, None])
