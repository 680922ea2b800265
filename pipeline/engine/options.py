"""The options of restoration, and the check that weights support them."""

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
"""Names of the shipped weights."""


class ModeError(ValueError):
    """A mode that the weights do not support; the message names those that they do."""


@dataclass(frozen=True)
class Options:
    """How to restore.

    mode: `sample` draws samples; `mean` averages `samples` draws, in antithetic pairs; `mmse` is the regression, with
        either kind of weights. None: `sample` if the weights have noise, else `mmse`.
    samples: images per file, or draws per average.
    tile: side of a tile in pixels, halo included; a multiple of 16.
    batch: tiles of full size per batch on a GPU; more of smaller ones. A CPU runs tile by tile, so that results do not
        depend on the batch.
    max_pixels: larger images are refused before memory is allocated for them.
    frontend: `libjpeg` reads the coefficients from the file; `dali` recovers them from the pixels that NVIDIA DALI
        decodes, not all of them exactly.
    compile: compiles the network, on a GPU.
    strength: in mode `sample`, the position on the straight line from the regression (0) to the sample (1). Distortion
        and texture grow along it, as in the optimal distortion-perception trade-off (Freirich, Michaeli and Meir, 2021,
        arXiv 2107.02555).
    bits: per channel; 8 with a certificate, 16 without (sixteen_bits.py)."""

    mode: Mode | None = None
    samples: int = 1
    tile: int = 1536
    batch: int = 2
    max_pixels: int = 1 << 28
    frontend: Frontend = "libjpeg"
    compile: bool = False
    strength: float = 1.0
    bits: Literal[8, 16] = 8

    @property
    def pixel(self) -> torch.dtype:
        """The images' dtype: uint8 or uint16."""
        return torch.uint8 if self.bits == 8 else torch.uint16


def check_mode(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights support mode, samples, bits and strength."""
    if options.mode is not None and options.mode not in MODES:
        raise ModeError(f"mode {options.mode!r}: expected {', '.join(MODES)}")
    if options.bits not in (8, 16):
        raise ModeError(f"bits {options.bits}: expected 8 or 16")
    if options.samples < 1:
        raise ModeError(f"samples {options.samples}: expected at least 1")
    if options.mode == "mmse" and not generator.config.has_regression:
        raise ModeError(f"weights {name!r} only draw samples: mode mmse needs others, such as {REGRESSION!r}")
    if options.mode in ("sample", "mean") and not generator.config.noise:
        raise ModeError(
            f"weights {name!r} are deterministic, so mode {options.mode} has no samples to draw: "
            "use mode mmse, or weights with noise"
        )
    if (options.mode == "mmse" or not generator.config.noise) and options.samples > 1:
        raise ModeError("mode mmse gives one image per file: samples must be 1")
    check_strength(generator, name, options)


def check_strength(generator: Generator, name: str, options: Options) -> None:
    """Raises ModeError unless the weights support the strength."""
    if not 0 <= options.strength <= 1:
        raise ModeError(f"strength {options.strength}: expected 0 (regression) to 1 (sample)")
    if options.strength == 1:
        return
    if options.mode in ("mean", "mmse") or not generator.config.noise:
        raise ModeError(f"strength {options.strength}: needs mode sample and weights with noise")
    if not generator.config.has_noise_head:
        raise ModeError(
            f"strength {options.strength}: weights {name!r} cannot compute the regression; "
            f"use weights with a noise head, such as {SAMPLER!r}"
        )
