"""Configurations: YAML and overrides become dataclasses, and every mistake is named by its key."""

from pathlib import Path

import pytest
import yaml

from train.checks import ConfigError
from train.config import Config, as_tree, load_config
from train.notices import notices

SHIPPED = sorted((Path(__file__).parents[2] / "train" / "configs").glob("*.yaml"))
MINIMAL = "data:\n  train: [photos]\n"


@pytest.fixture
def written(tmp_path):
    def write(text, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, list(overrides))

    return write


def test_the_shipped_configurations_load_and_ask_for_data():
    assert SHIPPED
    for path in SHIPPED:
        assert load_config(path, ["run.device=cpu", "data.train=[photos]"]).run.bfloat16 == "auto"
        with pytest.raises(ConfigError, match=r"data\.train=\[PATH"):
            load_config(path, ["run.device=cpu"])


def test_bfloat16_is_a_choice_of_three(written):
    for value, wanted in (("auto", "auto"), ("true", True), ("false", False)):
        assert written(MINIMAL, f"run.bfloat16={value}").run.bfloat16 == wanted
    assert written(MINIMAL).run.bfloat16 == "auto"


def test_what_is_not_given_has_its_default(written):
    config, default = written(MINIMAL), Config()
    assert config.data.train == ["photos"]
    assert (config.model, config.degradation, config.run) == (default.model, default.degradation, default.run)
    assert written(MINIMAL + "model:\nrun:\n  # seed: 3\n") == config


def test_overrides_replace_single_values(written):
    config = written(
        MINIMAL + "optimiser: {steps: 5, clip: 2}\n",
        "optimiser.steps=7",
        "data.train=[a, b.tar]",
        "degradation.quality=[5, 60]",
        "degradation.samplings={gray: 1}",
        "run.bfloat16=false",
        "optimiser.learning_rate=1e-3",
        "run.output=runs/a=b",
    )
    assert (config.optimiser.steps, config.optimiser.clip, config.optimiser.learning_rate) == (7, 2.0, 1e-3)
    assert isinstance(config.optimiser.clip, float)
    assert config.data.train == ["a", "b.tar"]
    assert (config.degradation.quality, config.degradation.samplings) == ((5, 60), {"gray": 1.0})
    assert (config.run.bfloat16, config.run.output) == (False, "runs/a=b")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.sead", 1),
        ("modle.features", 8),
        ("model.features", 8.5),
        ("model.features", True),
        ("model.features", 0),
        ("model.blocks", -1),
        ("model.noise", 1),
        ("model.noise", True),
        ("model.trunk", "foo"),
        ("model.growth", 0),
        ("data.train", "photos"),
        ("data.train", [1]),
        ("data.train", []),
        ("data.train", ["s3://bucket/photos"]),
        ("data.crop", 100),
        ("data.batch", 0),
        ("data.late_crop", 100),
        ("data.late_crop", -16),
        ("data.loader", "disk"),
        ("data.orientations", 4),
        ("data.workers", 0),
        ("degradation.quality", [5]),
        ("degradation.quality", ["a", "b"]),
        ("degradation.quality", [60, 5]),
        ("degradation.quality", [0, 50]),
        ("degradation.quality_mean", 99),
        ("degradation.samplings", {"4:1:1": 1}),
        ("degradation.samplings", {"4:2:0": "much"}),
        ("degradation.samplings", {}),
        ("degradation.samplings", {"4:2:0": 1, "gray": -1}),
        ("regression.loss", "l3"),
        ("optimiser.learning_rate", "fast"),
        ("optimiser.learning_rate", float("nan")),
        ("optimiser.learning_rate", float("inf")),
        ("optimiser.learning_rate", 1e-7),  # below its end
        ("optimiser.betas", [0.9]),
        ("optimiser.betas", [0.9, 1]),
        ("optimiser.ema", 1),
        ("optimiser.warmup", -1),
        ("optimiser.accumulate", 0),
        ("optimiser.trunk_rate", 0),
        ("optimiser.trunk_clip", -1),
        ("critic.features", 0),
        ("critic.halvings", -1),
        ("run.bfloat16", "fast"),
        ("run.bfloat16", 1),
        ("run.deterministic", "auto"),
        ("run.seconds", -1),
        ("run.seconds", float("nan")),
        ("run.seed", -1),
        ("run.seed", 2**32),
        ("run.device", "abacus"),
        ("run.log_every", 0),
        ("run.save_every", None),
        ("run.grid_every", 10),  # there are no images to show
        ("run.keep_every", -1),
        ("run.timeout", 0),
    ],
)
def test_mistakes_are_named_by_their_key(written, key, value):
    section, _, name = key.partition(".")
    tree = {"data": {"train": ["photos"]}}
    tree.setdefault(section, {})[name] = value
    wanted = section if section == "modle" else key.replace(".", r"\.")
    with pytest.raises(ConfigError, match=wanted):
        written(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("game.adversarial=0", "game.adversarial"),
        ("objective=gaming", "objective"),
        ("game.consistency=[0, 1]", "game.consistency"),
        ("game.consistency=[1]", "game.consistency"),
        ("game.consistency=[-1, -1]", "game.consistency"),
        ("game.r1_every=0", "game.r1_every"),
        ("game.samples=1", "game.samples"),
        ("game.moment_images=33", "game.moment_images"),
        ("game.moment_images=0", "game.moment_images"),
        ("game.moments_every=0", "game.moments_every"),
        ("game.unbiased=2", "game.unbiased"),
        ("game.regression=0", "game.regression"),
        ("model.trunk=rrdb", "game.regression"),
        ("model.noise=false", "model.noise"),
        ("game.second_moment=.nan", "game.second_moment"),
    ],
)
def test_a_game_that_cannot_be_played_is_named_by_its_key(written, change, named):
    game = MINIMAL + "objective: game\nmodel: {noise: true}\noptimiser: {accumulate: 2}\ngame: {perceptual: 1e-4}\n"
    assert written(game).objective == "game"
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        written(game, change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.noise=false", "model.noise"),
        ("model.trunk=rrdb", "energy.spectra"),
        ("energy.regression=0", "energy.regression"),
        ("energy.samples=1", "energy.samples"),
        ("energy.pixels=-1", "energy.pixels"),
        ("energy.spectra_from=2", "energy.spectra_from"),
        ("energy.projected=false", "energy.commitment"),
    ],
)
def test_a_sampler_that_cannot_be_trained_is_named_by_its_key(written, change, named):
    energy = MINIMAL + "objective: energy\nmodel: {noise: true}\nenergy: {spectra: 0.1}\n"
    assert written(energy).energy.spectra == 0.1
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        written(energy, change)


def test_settings_of_other_objectives_are_not_checked_against_this_one(written):
    other = "game: {regression: 0}\nenergy: {regression: 0}\n"
    assert written(MINIMAL + other).objective == "regression"


def test_an_override_without_effect_is_refused(written):
    for override in ("energy.samples=4", "game.r1=9", "critic.features=8", "game.mmse=mmse"):
        with pytest.raises(ConfigError, match=rf"{override}.*objective=regression.*posterior"):
            written(MINIMAL, override)
    energy = MINIMAL + "objective: energy\nmodel: {noise: true}\n"
    assert written(energy, "energy.samples=4", "game.mmse=other").energy.samples == 4
    with pytest.raises(ConfigError, match=r"critic\.features"):
        written(energy, "critic.features=8")
    assert written(energy, "objective=game", "critic.features=8").critic.features == 8


def test_nothing_is_an_empty_string(written):
    assert written(MINIMAL + "run: {start: mmse}\n", "run.start=").run.start == ""


def test_recipes_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "posterior").mkdir()
    needed = ["run.device=cpu", "data.train=[photos]"]
    for path in SHIPPED:
        assert load_config(path.stem, needed) == load_config(path, needed)
    (tmp_path / "game").write_text(MINIMAL)
    assert load_config("game", []).objective == "regression"


def test_an_output_with_pictures_is_not_in_the_training_images(written):
    inside = ["run.output=photos/run", "data.validation=other.tar"]
    assert written(MINIMAL, *inside).run.output == "photos/run"
    with pytest.raises(ConfigError, match=r"run\.output.*outside data\.train"):
        written(MINIMAL, *inside, "run.grid_every=5")


def test_what_is_probably_not_meant_is_said(written):
    assert notices(written(MINIMAL, "data.validation=photos.tar")) == []
    (leak,) = notices(written(MINIMAL, "data.validation=photos/held_out.tar"))
    assert leak.startswith("data.validation: photos/held_out.tar is in photos")
    (rise,) = notices(written(MINIMAL, "optimiser.steps=200"))
    assert rise.startswith("optimiser.warmup: 200")


def test_a_game_may_be_played_without_noise_or_with_one_sample(written):
    game = MINIMAL + "objective: game\nmodel: {noise: true}\n"
    assert not written(game, "model.noise=false", "game.first_moment=0", "game.regression=0").model.noise
    assert written(game, "game.samples=1", "game.unbiased=false").game.samples == 1


def test_qualities_beyond_the_finest_that_the_network_tells_apart_are_refused(written):
    beyond = ["degradation.quality=[5, 100]"]
    with pytest.raises(ConfigError, match=r"model\.finest_quality=100"):
        written(MINIMAL, *beyond)
    assert written(MINIMAL, *beyond, "model.finest_quality=100").degradation.quality == (5, 100)


@pytest.mark.parametrize("override", ["steps=5", "optimiser.steps", "optimiser=5", "run.output=[a", "data.nothing=1"])
def test_overrides_that_cannot_be_used_are_quoted(written, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        written(MINIMAL, override)


def test_files_that_hold_no_configuration_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    for content in (b"[1, 2]", b"text", b"a: [", b"\xff\xfe\xff", b"model: 3", b"1: {2: 3}", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            load_config(path, [])
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml", [])


def test_the_tree_of_a_configuration_gives_it_again(written):
    config = written(MINIMAL, "optimiser.betas=[0.5, 0.75]", "data.crop=64")
    assert written(yaml.safe_dump(as_tree(config))) == config
