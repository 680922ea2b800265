"""How to restore: the options, and whether weights can serve them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from model.generator import Generator

Mode = Literal["sample", "mean", "mmse"]
MODES: tuple[str, ...] = get_args(Mode)
Frontend = Literal["libjpeg", "dali"]
FRONTENDS: tuple[str, ...] = get_args(Frontend)
SAMPLER, REGRESSION = "posterior", "mmse"
"""The weights that ship."""


class ModeError(ValueError):
    """A mode that the weights cannot serve; the message says which they can."""


@dataclass(frozen=True)
class Options:
    """How to restore.

    mode: `sample` draws, `mean` averages `samples` draws, in antithetic pairs, `mmse` regresses, with a regression's
        weights or a sampler's; None: draw if the weights can, or regress.
    tile: pixels a side, halo included, a multiple of 16. batch: tiles that go through the network together on a GPU,
    and more of small ones (on the CPU they take turns: a core is busy with one, and no result can depend on how many
    there are). strength: of mode `sample`, how far the output lies on the straight line from the regression (0) to the
    sample (1); between them the error grows and the texture with it, as in the optimal trade of distortion for
    perceptual quality (Freirich, Michaeli and Meir, 2021, arXiv 2107.02555). bits: of a channel; 8 with a certificate,
    16 without (sixteen_bits.py). max_pixels: larger images are refused before memory is taken for them. frontend:
    `libjpeg` reads the coefficients, `dali` recovers them from the pixels that NVIDIA DALI decodes, not every one of
    them exactly. compile: the network, on a GPU."""

    mode: Mode | None = None
    samples: int = 1
    tile: int = 1536
    batch: int = 8
    max_pixels: int = 1 << 28
    frontend: Frontend = "libjpeg"
    compile: bool = False
    strength: float = 1.0
    bits: Literal[8, 16] = 8

    @property
    def pixel(self) -> torch.dtype:
        """The results' dtype."""
        return torch.uint8 if self.bits == 8 else torch.uint16


def check_mode(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights can serve the mode."""
    if options.mode is not None and options.mode not in MODES:
        raise ModeError(f"mode {options.mode!r}: expected {', '.join(MODES)}")
    if options.bits not in (8, 16):
        raise ModeError(f"bits {options.bits}: expected 8 or 16")
    if options.samples < 1:
        raise ModeError(f"samples {options.samples}: expected at least 1")
    if options.mode == "mmse" and not generator.config.has_regression:
        raise ModeError(f"weights {name!r} only draw samples: mode mmse wants others, such as {REGRESSION!r}")
    if options.mode in ("sample", "mean") and not generator.config.noise:
        raise ModeError(
            f"weights {name!r} are deterministic, trained with MSE: mode {options.mode} has nothing to draw. "
            "Use mode mmse, or weights that take noise"
        )
    if (options.mode == "mmse" or not generator.config.noise) and options.samples > 1:
        raise ModeError("mode mmse gives one image a file: samples must be 1")
    check_strength(generator, name, options)


def check_strength(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights can serve the strength."""
    if not 0 <= options.strength <= 1:
        raise ModeError(f"strength {options.strength}: expected 0 (regression) to 1 (sample)")
    if options.strength == 1:
        return
    if options.mode in ("mean", "mmse") or not generator.config.noise:
        raise ModeError(f"strength {options.strength}: only samples have one; use mode sample and weights that draw")
    if not generator.config.has_noise_head:
        raise ModeError(
            f"strength {options.strength}: weights {name!r} have no regression beside their samples; "
            f"use weights with a noise head, such as {SAMPLER!r}"
        )
