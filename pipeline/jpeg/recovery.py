"""Recovers quantised coefficients from the pixels of a decoded image, by inverting the decoder's steps.

A decoder rounds its planes to 8 bits, clips them to 0..255, and crops padding. Rounding moves a coefficient by 0.29
(root mean square), so coefficients with steps of 3 and more are recovered almost surely. Clipped and cropped samples
are recovered as far as the coefficients, multiples of their steps, determine them.

The colour conversion loses nothing: where no channel is clipped, RGB of 8-bit Y, Cb, Cr (JFIF) determines them
exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.coefficients import Subsampling
from kernels.torch_ops.blocks import empty_planes
from kernels.torch_ops.colour import BLUE, BLUE_RANGE, GREEN, RED, RED_RANGE
from kernels.torch_ops.dct import block_dct, round_half_away

BLUE_IN_GREEN, RED_IN_GREEN = BLUE * BLUE_RANGE / GREEN, RED * RED_RANGE / GREEN
"""G = Y - BLUE_IN_GREEN (Cb - 128) - RED_IN_GREEN (Cr - 128)."""

SHARPEN_STEPS = 8
"""Each step reduces the error, at most 128 gray levels, to a third."""

CLAMP_STEPS = 3
"""More steps change next to nothing."""


def recover(
    luma: Tensor, rgb: Tensor | None, tables: Tensor, sampling: Subsampling, size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Recovers the coefficient planes of one image.

    luma: [H, W] uint8, of `size` or with padding to more of the last MCUs.
    rgb: [H, W, 3] uint8, full range; None for gray. Its chroma may be repeated or upsampled by libjpeg's triangle
        filter, which is detected.
    tables: [components, 8, 8] int32.
    size: (height, width) in pixels.

    Returns [1, rows, columns, 8, 8] int16 for each component, in whole MCUs, on the pixels' device."""
    first = luma.float()[None] - 128
    found = [*quantise(first, tables[:1], first == -128, first == 127)]
    if rgb is not None:
        channels = torch.stack((rgb[..., 2], rgb[..., 0])).float()
        samples = chroma_samples(differences(luma.float(), rgb[..., 1].float(), channels), sampling.factors)
        lower, higher = samples == -128, samples == 127
        if sampling.factors == (1, 1):  # with subsampling, a sample has more pixels than the clipped one
            lower, higher = lower | (channels == 0), higher | (channels == 255)
        found += quantise(samples, tables[1:], lower, higher)
    result = empty_planes(sampling, size, 1, luma.device)
    for component, blocks in enumerate(found):
        rows, columns = sampling.true_blocks(component, size)
        result[component][0, :rows, :columns] = blocks[:rows, :columns]
    return result


def differences(luma: Tensor, green: Tensor, channels: Tensor) -> Tensor:
    """Luma and green [H, W], blue and red [2, H, W], gray levels 0..255 → Cb and Cr less 128 [2, H, W], whole
    numbers. Blue and red determine them exactly; where one is clipped it gives a bound, and green the value, to two
    gray levels."""
    ranges = torch.tensor((BLUE_RANGE, RED_RANGE), device=luma.device)[:, None, None]
    in_green = torch.tensor((BLUE_IN_GREEN, RED_IN_GREEN), device=luma.device)[:, None, None]
    bounds = (channels - luma) / ranges
    estimates = ((luma - green) - (in_green * bounds).flip(0)) / in_green
    usable = _inside(channels).flip(0) & _inside(green)
    higher = usable & (channels == 255) & (estimates > bounds)
    lower = usable & (channels == 0) & (estimates < bounds)
    return torch.where(higher | lower, estimates, bounds).round_().clamp_(-128, 127)


def _inside(channel: Tensor) -> Tensor:
    """Where a channel is not clipped."""
    return (channel > 0) & (channel < 255)


def chroma_samples(planes: Tensor, factors: tuple[int, int]) -> Tensor:
    """Upsampled chroma planes [N, H, W] of one image, less 128 → their samples [N, h, w], whole numbers. factors:
    (vertical, horizontal)."""
    dims = [dim for dim, factor in enumerate(factors, start=1) if factor == 2]
    samples = planes
    for dim in dims:
        samples = _pair_means(samples, dim)
    if not is_repeated(planes, factors):
        for dim in dims:
            samples = _sharpen(samples, dim, odd=planes.shape[dim] % 2 == 1)
    return samples.round().clamp(-128, 127)


def is_repeated(planes: Tensor, factors: tuple[int, int]) -> bool:
    """Whether chroma samples were repeated: then pixels of one sample are equal. After a triangle filter, pixels of one
    sample differ at least half as much as pixels of neighbouring samples."""
    within = between = torch.zeros((), device=planes.device)
    for dim, factor in enumerate(factors, start=1):
        if factor == 2:
            steps = planes.diff(dim=dim).abs().movedim(dim, 0)
            within, between = within + steps[::2].sum(), between + steps[1::2].sum()
    return bool(4 * within <= between)


def _pair_means(planes: Tensor, dim: int) -> Tensor:
    if planes.shape[dim] % 2:
        planes = torch.cat((planes, planes.narrow(dim, planes.shape[dim] - 1, 1)), dim)
    pairs: Tensor = planes.unflatten(dim, (-1, 2))
    return pairs.mean(dim + 1)


def _sharpen(means: Tensor, dim: int, odd: bool) -> Tensor:
    """Inverts upsampling by a triangle filter and averaging in pairs along one dimension, by Richardson's iteration.
    Together they weight a sample and its neighbours by 1/8, 6/8, 1/8. odd: the last mean is of a single pixel."""
    means = means.movedim(dim, 0)
    samples = means
    for _ in range(SHARPEN_STEPS):
        before, after = torch.cat((samples[:1], samples[:-1])), torch.cat((samples[1:], samples[-1:]))
        blurred = (6 * samples + before + after) / 8
        if odd and len(samples) > 1:
            blurred[-1] = (3 * samples[-1] + samples[-2]) / 4
        samples = samples + (means - blurred) * (4 / 3)  # eigenvalues of 1/2..1: the error shrinks to a third
    return samples.movedim(0, dim)


def quantise(planes: Tensor, tables: Tensor, lower: Tensor, higher: Tensor) -> Tensor:
    """Planes [N, h, w] less 128, decoded with the steps [N, 8, 8] → blocks [N, rows, columns, 8, 8] int16. lower,
    higher: [N, h, w] bool, samples that may have been clipped from below -128 or above 127."""
    steps, blocks = tables.reshape(-1, 1, 1, 64).float(), to_blocks(planes)
    lowest = torch.where(to_blocks(lower, fill=True), -torch.inf, blocks)
    highest = torch.where(to_blocks(higher, fill=True), torch.inf, blocks)
    quantised = round_half_away(blocks @ block_dct(planes.device) / steps)
    free = (lowest != highest).any(3)
    if free.any():
        all_steps = steps.expand_as(quantised)
        quantised[free] = _requantise_clamped(quantised[free], all_steps[free], lowest[free], highest[free])
    return quantised.clamp_(-32768, 32767).to(torch.int16).reshape(*quantised.shape[:3], 8, 8)


def to_blocks(planes: Tensor, fill: bool | None = None) -> Tensor:
    """[N, h, w] → [N, rows, columns, 64]. Padding repeats the last row and column, or is `fill`."""
    over = (0, -planes.shape[2] % 8, 0, -planes.shape[1] % 8)
    padded = F.pad(planes, over, mode="replicate") if fill is None else F.pad(planes, over, value=fill)
    n, rows, columns = len(planes), padded.shape[1] // 8, padded.shape[2] // 8
    return padded.reshape(n, rows, 8, columns, 8).transpose(2, 3).flatten(3)


def _requantise_clamped(quantised: Tensor, steps: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Coefficients [B, 64] of blocks with samples that are known only to lie between `lowest` and `highest`, [B, 64]:
    alternates between clamping the decoded samples and quantising again. steps: [B, 64]."""
    dct = block_dct(steps.device)
    for _ in range(CLAMP_STEPS):
        samples = (quantised * steps @ dct.T).clamp(lowest, highest)
        quantised = round_half_away(samples @ dct / steps)
    return quantised
