"""`python -m train.main` without anything: it trains, says what that is worth, and its weights restore."""

import shlex
from pathlib import Path

import pytest
from jpegs import encode, photograph
from runs import python
from training import checkpoint, lines

from train.checks import ConfigError
from train.data.photographs import load_images
from train.demo import SECONDS, default_config

ROOT = Path(__file__).parents[2]
SMALL = ("data.crop=32", "data.batch=2", "model.features=8", "model.blocks=1")


def test_it_trains_in_an_empty_folder_goes_on_and_its_weights_restore(tmp_path):
    for steps in (2, 3):
        done = python(tmp_path, "-m", "train.main", f"optimiser.steps={steps}", *SMALL)
        assert done.returncode == 0, done.stderr
        assert "demonstration" in done.stdout
        assert "data.train=[" in done.stdout
        assert checkpoint(tmp_path / "runs" / "demo")["step"] == steps
    assert [line["step"] for line in lines(tmp_path / "runs" / "demo")] == [2, 3]
    assert "gain_10" in lines(tmp_path / "runs" / "demo")[-1]
    weights, usage = done.stdout.splitlines()[-2:]
    assert weights == "trained weights: runs/demo/generator.safetensors"
    (tmp_path / "PHOTOS").mkdir()
    (tmp_path / "PHOTOS" / "one.jpg").write_bytes(encode(photograph(48, 64), "4:2:0", 50))
    restored = python(tmp_path, *shlex.split(usage.removeprefix("to use them: python ")))
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "restored" / "one.png").exists()


def test_it_lasts_two_minutes_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for overrides, seconds in (([], SECONDS), (["run.seconds=5"], 5), (["optimiser.steps=7"], 0)):
        config, notice = default_config(overrides)
        assert (config.run.output, config.run.seconds) == ("runs/demo", seconds)
        assert "demonstration" in notice
    config, _ = default_config(["run.output=mine"])
    photographs = load_images(config.data.train, config.data.crop)
    assert config.data.train == ["mine/photographs/train"]
    assert len(photographs) == 10
    assert all(min(image.shape[1:]) >= config.data.crop for image in photographs)
    assert len(load_images([config.data.validation], 128)) == 1


def test_with_data_it_is_the_default_recipe_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, notice = default_config(["data.train=[photos]"])
    assert not notice
    assert (config.optimiser.steps, config.optimiser.clip, config.data.batch, config.data.crop) == (60000, 0.05, 32, 96)
    assert (config.run.seconds, config.run.output) == (0, "runs/mmse")
    assert not list(tmp_path.iterdir())


def test_no_data_where_it_is_needed_is_an_error_that_says_how_to_give_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"data\.train=\[PATH"):
        default_config([])
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match=r"data\.train=\[PATH"):
        default_config(["data.train=[]"])
    given = python(tmp_path, "-m", "train.main", "--config", str(ROOT / "train" / "configs" / "mmse.yaml"))
    assert given.returncode == 2
    assert "data.train=[PATH" in given.stderr
    assert not list(tmp_path.iterdir())
