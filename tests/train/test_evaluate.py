"""Table 1's figures against independent computations, and the command line that prints them."""

import json
import math
import sys
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS
from PIL import Image
from runs import weights
from scenes import image
from shards import clean_shard

from kernels import Subsampling
from model.features import FeaturesError
from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from train.data.photographs import Photographs
from train.evaluate import (
    EvaluationError,
    EvaluationSettings,
    evaluate,
    load_networks,
    main,
    modes_of,
)
from train.frechet import load_extractors, load_inception
from train.grid import grid
from train.measures import compress, consistency, psnr
from train.restorations import MODES, FileSampler, Networks, restorations, white_noise
from train.texture import FlatTexture
from train.wasserstein import PatchSet

__all__ = ["weights"]
S420 = Subsampling.S420
ALL = frozenset(MODES)
C4_OF_3 = math.pi**0.5 / 2
"""The expected sample deviation of three standard normal values."""


@pytest.fixture(scope="module")
def networks(weights):
    return load_networks(weights[1], weights[0], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Three clean images, two of them large enough for crops."""
    return clean_shard(tmp_path_factory.mktemp("data"), [(141, 203), (205, 133), (60, 70)])


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
def test_consistency_of_originals_and_of_certified_outputs_is_exact(networks, sampling):
    compressed = compress("a", image(), 10, Subsampling.from_label(sampling))
    assert vars(consistency(compressed.truth, compressed)) == {"rmse": 0, "mismatches": 0}
    restored = networks.regression.restore(compressed.data)
    assert restored.mismatches == 0
    assert not torch.equal(restored.image, compressed.truth)
    assert vars(consistency(restored.image, compressed)) == {"rmse": 0, "mismatches": 0}


@pytest.mark.parametrize(("sampling", "size"), [("4:2:0", (70, 90)), ("gray", (40, 40)), ("4:2:2", (40, 300))])
def test_restorations_are_the_pipelines(weights, sampling, size):
    """The same bits as a user's file gets, in several tiles too; the deviation is torch's, over the pipeline's images;
    before projection, over the draws that the mean is of."""
    modes = [(weights[0], "mmse", 1), (weights[1], "sample", 3), (weights[1], "mean", 3)]
    tiled = [Restorer.from_pretrained(w, "cpu", "float32", Options(mode, k, tile=208)) for w, mode, k in modes]
    compressed = compress("key", image(*size), 10, Subsampling.from_label(sampling))
    with torch.inference_mode():
        found = restorations(compressed, Networks(tiled[0], tiled[1]), ALL, samples=3, seed=7)
    assert list(found) == list(MODES)
    mmse, samples, mean = (restorer.restore(compressed.data, seed=7, key="key") for restorer in tiled)
    assert torch.equal(found["mmse"].image, mmse.image)
    assert torch.equal(found["projected"].image, samples.image)
    assert torch.equal(torch.stack(found["projected"].samples), samples.images)
    assert torch.equal(found["mean"].image, mean.image)
    assert torch.allclose(found["projected"].deviation, samples.images.float().std(0) / C4_OF_3, atol=1e-4)
    assert found["projected"].deviation.mean() > 0.1
    average, before = found["independent"].image.float(), samples.images.float().mean(0)
    ratio = (average - before).square().mean() / (mean.image.float() - before).square().mean()
    assert ratio < 0.5, ratio
    for mode in ("mmse", "projected", "independent", "mean", "noise"):
        assert consistency(found[mode].image, compressed).mismatches == 0, mode


def test_samples_before_projection(networks):
    compressed = compress("key", image(), 50, S420)
    found = restorations(compressed, networks, ALL, samples=3, seed=0)["sample"]
    pictures = torch.stack(found.samples).float()
    assert len(pictures) == 3
    assert found.deviation.mean() > 0.1
    assert torch.allclose(found.deviation, pictures.std(0) / C4_OF_3, atol=1)  # the pictures are rounded
    assert consistency(found.image, compressed).mismatches > 0


def test_a_sampler_is_compared_with_its_own_regression_or_another(weights):
    regression, sampler = weights
    own, other, alone = load_networks(sampler), load_networks(sampler, regression), load_networks(regression)
    assert own.regression.digest == own.sampler.digest == other.sampler.digest
    assert other.regression.digest == alone.regression.digest != own.regression.digest
    assert alone.sampler is None
    assert own.regression.mode == "mmse"


def test_noise_is_as_strong_as_the_samples_vary(networks):
    compressed = compress("key", image(128, 128), 10, S420)
    found = restorations(compressed, networks, ALL, samples=3, seed=0)
    drawer = FileSampler(networks.regression, compressed.bitstream.coefficients)
    expected = drawer.draw()[0]
    added = torch.zeros_like(expected)
    noise = white_noise(3, added)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, white_noise(4, added))
    without, strength = found["mmse"].image, found["sample"].deviation.mean()
    assert torch.equal(drawer.project(expected)[0], without)
    change = (found["noise"].image.float() - without.float()).std()
    assert 0.3 * strength < change < 1.5 * strength  # projection takes a part of it


def report_of(shard, networks, **changes):
    return evaluate(Photographs(shard), networks, EvaluationSettings(qualities=(40,), samples=3, **changes), {})


def test_rows_are_means_over_the_images(shard, networks):
    report = report_of(shard, networks)
    rows = {row.mode: row for row in report.rows}
    assert list(rows) == list(MODES)
    pictures = [compress(key, clean, 40, S420) for key, clean in Photographs(shard)]
    found = [restorations(picture, networks, ALL, 3, 0) for picture in pictures]
    assert report.images == len(pictures) == 3
    for mode, row in rows.items():
        values = [psnr(f[mode].image, p.truth) for f, p in zip(found, pictures, strict=True)]
        plain = [psnr(p.decoded, p.truth) for p in pictures]
        assert row.psnr == pytest.approx(np.mean(values), abs=0.01)  # decibels
        assert row.gain == pytest.approx(np.mean(values) - np.mean(plain), abs=0.01)
        assert (row.mismatches == 0) == (mode not in ("plain", "sample"))
        assert (row.consistency == 0) == (row.mismatches == 0)
        assert row.disputed == (None if mode in ("plain", "sample") else 0)
        assert (row.std is None) == (row.correlation is None) == (mode not in ("sample", "projected"))
    deviations = [f["projected"].deviation for f in found]
    assert rows["projected"].std == pytest.approx(np.mean([float(d.mean()) for d in deviations]) / 255, rel=1e-3)
    errors = [(p.truth.float() - f["mmse"].image.float()).abs() for f, p in zip(found, pictures, strict=True)]
    pairs = torch.stack([torch.cat([x.flatten() for x in tensors]) for tensors in (deviations, errors)])
    assert rows["projected"].correlation == pytest.approx(float(torch.corrcoef(pairs)[0, 1]), abs=1e-3)


def test_texture_and_patches_are_those_of_the_images_that_rows_show(networks):
    random = np.random.default_rng(0)
    grainy = torch.from_numpy(random.normal(128, 3, (3, 80, 96)).round().astype(np.uint8))
    photographs = [("grainy", grainy), ("photo", image()), ("small", image(24, 24))]
    modes = ("plain", "mmse", "projected")
    rows = evaluate(photographs, networks, EvaluationSettings((20,), modes=modes, samples=1), {}).rows
    assert [row.mode for row in rows] == list(modes)
    pictures = [compress(key, clean, 20, S420) for key, clean in photographs]
    found = [restorations(picture, networks, frozenset(modes), 1, 0) for picture in pictures]
    truth, originals = FlatTexture(), PatchSet()
    for place, (picture, one) in enumerate(zip(pictures, found, strict=True)):
        truth.add(picture.truth, one["mmse"].image)
        originals.add(place, picture.truth)
    assert truth.windows >= 4 * 5
    for row in rows:
        residual, patches = FlatTexture(), PatchSet()
        for place, one in enumerate(found):
            residual.add(one[row.mode].image, one["mmse"].image)
            patches.add(place, one[row.mode].image)
        assert row.swd == originals.distance(patches) > 0
        assert (row.lattice, row.lattice_worst) == (residual.lattice, residual.lattice_worst)
        assert row.flat_deviation == residual.deviation
        assert row.original_lattice == truth.lattice
        assert row.original_lattice_worst == truth.lattice_worst
        assert row.original_flat_deviation == truth.deviation > 1
        assert row.flat_windows == truth.windows
        assert (row.lattice is None) == (row.flat_deviation == 0) == (row.mode == "mmse")


def test_figures_come_again_and_follow_the_seed(shard, networks):
    first, again, other = (report_of(shard, networks, seed=seed, modes=("sample",)).rows for seed in (1, 1, 2))
    assert first == again != other


def test_modes_follow_the_networks(networks):
    regression = Networks(networks.regression)
    assert modes_of(EvaluationSettings(), networks) == ALL
    assert modes_of(EvaluationSettings(), regression) == {"plain", "mmse"}
    assert modes_of(EvaluationSettings(samples=1), networks) == ALL - {"noise"}
    for settings, which, message in (
        (EvaluationSettings(modes=("sample", "plain")), regression, "sample: these are weights of a deterministic"),
        (EvaluationSettings(modes=("noise",), samples=1), networks, "2 samples or more"),
        (EvaluationSettings(modes=("best",)), networks, "best: expected some of plain"),
        (EvaluationSettings(qualities=(10, 0)), networks, "quality 0: expected 1..100"),
        (EvaluationSettings(samples=0), networks, "at least 1"),
    ):
        with pytest.raises(EvaluationError, match=message):
            modes_of(settings, which)


def test_command_line(tmp_path, shard, weights, capsys):
    arguments = ["--weights", weights[1], "--mmse", weights[0], "--data", str(shard), "--samples", "2"]
    arguments += ["--quality", "10", "40", "--json", str(tmp_path / "all.json"), "--grid", str(tmp_path / "all.png")]
    assert main(arguments) == 0
    output = capsys.readouterr()
    table = [line for line in output.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * len(MODES)
    assert {line.count("|") for line in table} == {11}
    assert "3 images, 4:2:0; Fréchet distances over 4 crops of 128x128" in output.out
    assert "2000 are recommended" in output.err
    report = json.loads((tmp_path / "all.json").read_text())
    assert [(row["quality"], row["mode"]) for row in report["rows"]] == [(q, mode) for q in (10, 40) for mode in MODES]
    assert report["weights"] == weights[1]
    assert report["crops"] == 4
    for row in report["rows"]:
        assert min(row["frechet"], row["frechet_halves"], report["floor"]) > 0
        assert row["fid"] is None
        assert (row["std"] is not None) == (row["mode"] in ("sample", "projected"))
    picture = Image.open(tmp_path / "all.png")
    assert picture.width > 7 * 192
    assert picture.height > 6 * 192


def test_command_line_with_deterministic_weights(tmp_path, shard, weights, capsys):
    arguments = ["--weights", weights[0], "--data", str(shard), "--quality", "20", "--limit", "1", "--sampling", "gray"]
    assert main([*arguments, "--grid", str(tmp_path / "grid.png")]) == 0
    output = capsys.readouterr()
    assert "which draws no samples" in output.err
    assert "STD" not in output.out
    assert [line.split(" | ")[1] for line in output.out.splitlines() if line.startswith("| 20")] == ["plain", "mmse"]
    assert "1 images, gray" in output.out
    assert Image.open(tmp_path / "grid.png").width > 3 * 192


def test_errors_name_the_file_and_the_way_out(tmp_path, shard, weights, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    (tmp_path / "inception.pth").write_bytes(b"no weights")
    regression, _ = weights
    for arguments, *messages in (
        (["--weights", "nothing", "--data", shard], "'nothing'", "those shipped"),
        (["--weights", regression, "--mmse", "mmse", "--data", shard], "tiny.safetensors", "omit --mmse"),
        (["--weights", regression, "--data", tmp_path / "none.tar"], "none.tar", "expected a folder"),
        (["--weights", regression, "--data", tmp_path / "broken"], "bad.jpg", "remove it from the set"),
        (["--weights", regression, "--data", tmp_path / "empty.tar"], "empty.tar", "give a tar"),
        (["--weights", regression, "--data", shard, "--modes", "mean"], "mean", "give a sampler's weights"),
        (["--weights", regression, "--data", shard, "--sampling", "4:1:1"], "4:1:1", "4:2:0"),
        (["--weights", regression, "--data", shard, "--limit", "0"], "limit 0", "at least 1"),
        (["--weights", regression, "--data", shard, "--device", "tpu"], "tpu", "cuda:N"),
        (["--weights", regression, "--data", shard, "--json", tmp_path / "no" / "a.json"], "a.json", "no folder"),
        (["--weights", regression, "--data", shard, "--inception", tmp_path / "inception.pth"], "pytorch-fid"),
    ):
        assert main([*map(str, arguments), "--quality", "10"]) == 2
        error = capsys.readouterr().err
        assert all(message in error for message in messages), error


class Inception(torch.nn.Module):
    """Stands for pytorch-fid's class, which asks its module for the weights and knows only how to download them."""

    BLOCK_INDEX_BY_DIM = MappingProxyType({2048: 3})

    def __init__(self, blocks):
        super().__init__()
        assert blocks == [3]
        self.layer = torch.nn.Conv2d(3, 5, 1)
        self.load_state_dict(sys.modules["pytorch_fid.inception"].load_state_dict_from_url("address", progress=True))

    def forward(self, images):
        return [self.layer(images).mean((2, 3), keepdim=True)]


def test_inception_comes_from_the_file(tmp_path, monkeypatch, shard, networks):
    def download(url, progress):
        raise AssertionError("downloads")

    package = SimpleNamespace(InceptionV3=Inception, load_state_dict_from_url=download)
    monkeypatch.setitem(sys.modules, "pytorch_fid", SimpleNamespace(inception=package))
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", package)
    path = tmp_path / "weights.pth"
    layer = torch.nn.Conv2d(3, 5, 1)
    torch.save({"layer.weight": layer.weight, "layer.bias": layer.bias}, path)
    crop = torch.rand(2, 3, 8, 8)
    assert torch.allclose(load_inception(path)(crop)[0], layer(crop).mean((2, 3), keepdim=True), atol=1e-6)
    extractors = load_extractors(path, torch.device("cpu"))
    assert extractors["fid"](torch.zeros(2, 3, 128, 128, dtype=torch.uint8)).shape == (2, 5)
    report = evaluate(
        Photographs(shard), networks, EvaluationSettings((10,), modes=("plain",)), {"fid": extractors["fid"]}
    )
    assert report.rows[0].fid > 0
    torch.save({"other": layer.bias}, path)
    with pytest.raises(FeaturesError, match=r"weights\.pth"):
        load_inception(path)


def test_fid_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    with pytest.raises(FeaturesError, match="pip install pytorch-fid"):
        load_inception(tmp_path / "weights.pth")


def test_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no pictures"):
        grid([])
