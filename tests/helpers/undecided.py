"""Where the last bits of float32 decide: there two correct implementations may differ by a whole rounding step.

A coefficient within NEAR of a tie, or of the end of its interval, and a decoded value within NEAR of a limit, are found
by the formulas in float64 (reference.py). Everywhere else any difference is an error.
"""

from __future__ import annotations

import reference
import torch
from torch import Tensor

from kernels import Coefficients, Subsampling

NEAR = 1e-3


def spread(flags: Tensor, size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Flags of blocks or samples [N, r, c] → of the pixels under each, rows x columns of them, [N, 1, *size]."""
    wide = flags.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    return wide[:, None, : size[0], : size[1]]


def near_ends(x: Tensor, c: Coefficients, margin: float) -> Tensor:
    """[N, 1, H, W] bool: pixels whose blocks have a coefficient at an end of its interval."""
    near = torch.zeros(len(c), 1, *c.size, dtype=torch.bool)
    for component, unit in enumerate(reference.units(x, c.tables, c.sampling)):
        vertical, horizontal = c.sampling.factors if component else (1, 1)
        distance = ((unit - c.planes[component]).abs() - (0.5 - margin)).abs() * c.tables[:, component, None, None]
        near |= spread((distance < NEAR).any(-1).any(-1), c.size, 8 * vertical, 8 * horizontal)
    return near


def near_ties_or_limits(x: Tensor, tables: Tensor, sampling: Subsampling) -> Tensor:
    """[N, 1, H, W] bool: pixels whose blocks have a coefficient at a tie, or a chroma sample shared with a pixel whose
    decoded plane or colour is at a limit."""
    size = (x.shape[2], x.shape[3])
    near, planes = torch.zeros(len(x), 1, *size, dtype=torch.bool), []
    for component, unit in enumerate(reference.units(x, tables, sampling)):
        vertical, horizontal = sampling.factors if component else (1, 1)
        steps = tables[:, component, None, None]
        distance = ((unit.abs() % 1) - 0.5).abs() * steps
        near |= spread((distance < NEAR).any(-1).any(-1), size, 8 * vertical, 8 * horizontal)
        plane = reference.backward(unit.sign() * (unit.abs() + 0.5).floor() * steps)
        near |= spread(((plane + 0.5).abs() - 127.5).abs() < NEAR, size, vertical, horizontal)
        planes.append(plane.clamp(-128, 127))
    colours = reference.to_rgb(planes, size)
    near |= (((colours - 127.5).abs() - 127.5).abs() < NEAR).any(1, keepdim=True)
    samples = torch.nn.functional.max_pool2d(near.float(), sampling.factors, ceil_mode=True)[:, 0] > 0
    return spread(samples, size, *sampling.factors)
