"""Noise on CUDA: what model.noise.gaussian computes, all layers in one launch, and model.noise.uniform.

N images, L layers, P = h·w positions of a layer in row-major order. A program computes `POSITIONS` positions of one
image for one Philox call: up to `WORDS` layers of Gaussian noise, or the 2 · `WORDS` channels of uniform noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.launch import Configuration, configured, on_device_of

WORDS = tl.constexpr(4)

POSITIONS = 512
"""Of a program: four a thread."""

CONSTANTS = {"POSITIONS": POSITIONS}


@triton.jit
def random_words(seeds, origins, image, call, y, x):
    """Philox-4x32-10 of the counter (x, y, call, 0), in absolute coordinates modulo 2^32, under the key of the image's
    seed: four uint32 words; and the sign of its noise, -1.0 for a negative seed."""
    seed = tl.load(seeds + image)
    complement = seed >> 63  # -1 for a negative seed, else 0
    c0 = tl.load(origins + 2 * image + 1).to(tl.uint32) + x.to(tl.uint32)
    c1 = tl.load(origins + 2 * image).to(tl.uint32) + y.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed ^ complement, c0, c1, call.to(tl.uint32), tl.zeros_like(c0))
    return w0, w1, w2, w3, 1.0 + 2.0 * complement.to(tl.float32)


@triton.jit
def fraction(word):
    """uint32 → float32 in (0, 1], from the upper 24 bits."""
    return ((word >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def cosine_sine(angle):
    """Of 0..2π, in float32 to about one unit in the last place: reduced to ±π/4 by π/2 in three parts (Cody and Waite),
    then Cephes' polynomials. The library functions take any angle, for which they keep an array on the stack."""
    quadrant = (angle * 0.6366197723675814 + 0.5).to(tl.int32)
    quarters = quadrant.to(tl.float32)
    r = angle - quarters * 1.5703125 - quarters * 4.837512969970703125e-4 - quarters * 7.54978995489188216e-8
    z = r * r
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    odd = quadrant % 2 == 1
    c, s = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quadrant + 1) & 2 != 0, -c, c), tl.where(quadrant & 2 != 0, -s, s)


@triton.jit
def box_muller(radius_word, angle_word, sign):
    """Two words → two standard normal values."""
    radius = tl.sqrt_rn(tl.log(fraction(radius_word)) * -2.0) * sign
    cosine, sine = cosine_sine(fraction(angle_word) * 6.283185307179586)
    return radius * cosine, radius * sine


@triton.jit
def grid_positions(start, width, POSITIONS: tl.constexpr):
    """(y, x) of `POSITIONS` positions from `start` (int64) on. Only the start itself needs a 64-bit division."""
    column = (start % width).to(tl.int32) + tl.arange(0, POSITIONS)
    return (start // width).to(tl.int32) + column // width, column % width


@configured(Configuration(0, 4))
@triton.jit(do_not_specialize=["seeds", "origins", "amplitude", "first", "count", "calls", "tiles", "height", "width"])
def noise_kernel(
    seeds, origins, amplitude, out32, limit, first, count, calls, tiles, height, width, POSITIONS: tl.constexpr
):
    """out[n, l] = amplitude[n] · clamp(gaussian(seed n, layer first + l), -limit, limit)."""
    program = tl.program_id(0)
    image, call = (program // tiles // calls).to(tl.int64), first // WORDS + program // tiles % calls
    positions, start = height.to(tl.int64) * width, (program % tiles).to(tl.int64) * POSITIONS
    y, x = grid_positions(start, width, POSITIONS)
    w0, w1, w2, w3, sign = random_words(seeds, origins, image, call, y, x)
    normals = box_muller(w0, w1, sign) + box_muller(w2, w3, sign)
    scale = tl.load(amplitude + image)
    step = tl.arange(0, POSITIONS)
    for word in tl.static_range(WORDS):
        layer = call * WORDS + word - first
        if (layer >= 0) & (layer < count):
            where = out32 + ((image * count + layer) * positions + start) + step
            tl.store(where, tl.clamp(normals[word], -limit, limit) * scale, mask=step < positions - start)


@triton.jit
def centred(half):
    """An integer from 0 to 65535 → uniform noise: an exact odd integer times √3 / 65536 in float32."""
    return (2 * half - 65535).to(tl.float32) * 2.6428997443872504e-05


@configured(Configuration(0, 4))
@triton.jit(do_not_specialize=["seeds", "origins", "tiles", "height", "width"])
def uniform_kernel(seeds, origins, out32, tiles, height, width, POSITIONS: tl.constexpr):
    """out[n, y, x, 2k] and [2k + 1] = centred(lower and upper half of word k): channels are innermost."""
    program = tl.program_id(0)
    image, start = (program // tiles).to(tl.int64), (program % tiles).to(tl.int64) * POSITIONS
    positions, step = height.to(tl.int64) * width, tl.arange(0, POSITIONS)
    y, x = grid_positions(start, width, POSITIONS)
    w0, w1, w2, w3, sign = random_words(seeds, origins, image, tl.zeros((), tl.int32), y, x)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(POSITIONS, WORDS)  # in order; join's axis is the last
    halves = tl.join(words & 0xFFFF, words >> 16).reshape(POSITIONS, 2 * WORDS).to(tl.int32)
    where = out32 + ((image * positions + start) + step[:, None]) * (2 * WORDS) + tl.arange(0, 2 * WORDS)
    tl.store(where, centred(halves) * sign, mask=(step < positions - start)[:, None])


def uniform(seeds: Tensor, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """See model.noise.uniform, whose operator calls this."""
    out = seeds.new_empty((len(seeds), *size, 2 * WORDS.value), dtype=torch.float32)
    tiles = triton.cdiv(size[0] * size[1], POSITIONS)
    if out.numel():
        with on_device_of(out):
            chosen = uniform_kernel.configuration.options
            inputs = (seeds.contiguous(), origins.contiguous())
            uniform_kernel[(len(seeds) * tiles,)](*inputs, out, tiles, *size, **CONSTANTS, **chosen)
    return out.permute(0, 3, 1, 2)


@torch.library.custom_op("jpeg_posterior::gaussian", mutates_args=())
def _gaussian(
    seeds: Tensor, origins: Tensor, amplitude: Tensor, first: int, shape: Sequence[int], *, limit: float
) -> Tensor:
    out: Tensor = _empty(seeds, origins, amplitude, first, shape, limit=limit)
    count, height, width = shape
    calls = (first + count - 1) // WORDS.value - first // WORDS.value + 1
    tiles = triton.cdiv(height * width, POSITIONS)
    inputs = (seeds.contiguous(), origins.contiguous(), amplitude.contiguous())
    numbers = (limit, first, count, calls, tiles, height, width)
    if out.numel():
        with on_device_of(out):
            grid = (len(seeds) * calls * tiles,)
            noise_kernel[grid](*inputs, out, *numbers, **CONSTANTS, **noise_kernel.configuration.options)
    return out


@_gaussian.register_fake
def _empty(
    seeds: Tensor, origins: Tensor, amplitude: Tensor, first: int, shape: Sequence[int], *, limit: float
) -> Tensor:
    return seeds.new_empty((len(seeds), *shape), dtype=torch.float32)


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
    """See model.noise.gaussian."""
    if amplitude is None:
        amplitude = torch.ones(len(seeds), device=seeds.device)
    noise: Tensor = _gaussian(seeds, origins, amplitude, first, (count, *size), limit=limit)
    return noise
