"""What a run tells: means over steps and ranks, each step's line once, pictures, TensorBoard where it is asked for."""

import sys

import pytest
import torch
from training import changed, game_of, lines, write_photos

from train.checks import ConfigError
from train.distributed import Ranks
from train.logger import METRICS, MeanMeter, keep_lines_up_to
from train.trainer import train


def test_means_are_over_the_steps_in_which_a_term_occurs():
    meter, ranks = MeanMeter(), Ranks()
    for step in range(4):
        terms = {"critic": torch.tensor(float(step))}
        meter.add(terms | ({"r1": torch.tensor(8.0 + step)} if step % 2 else {}))
        terms["critic"] += 100  # a term belongs to its step alone
    means = meter.means(ranks)
    assert (means["critic"], means["r1"]) == (1.5, 10.0)
    assert means["seconds_per_step"] > 0
    meter.add({"critic": torch.tensor(7.0)})
    assert {name: value for name, value in meter.means(ranks).items() if name != "seconds_per_step"} == {"critic": 7.0}


def test_lines_after_the_checkpoint_and_cut_ones_are_dropped(tmp_path):
    path = tmp_path / METRICS
    kept = "".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in (2, 4))
    path.write_text(kept + '{"step": 6, "loss": 0.5}\n{"step": 8, "lo')
    keep_lines_up_to(path, 4)
    assert path.read_text() == kept


def test_tensorboard_shows_the_lines_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    photos = write_photos(tmp_path)
    config = game_of(photos, tmp_path / "run", data={"validation": str(photos / "held_out.tar")})
    config = changed(config, {"run": {"tensorboard": True, "grid_every": 4}, "optimiser": {"steps": 4}})
    train(config)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for line in lines(tmp_path / "run"):
        told = {name: one.value for name in line for one in _scalars(events, name) if one.step == line["step"]}
        assert told == pytest.approx({name: value for name, value in line.items() if name != "step"})
    assert [image.step for image in events.Images("grid")] == [4]


def _scalars(events, name):
    return events.Scalars(name) if name != "step" else []


def test_tensorboard_that_is_missing_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"run\.tensorboard.*pip install"):
        train(game_of(write_photos(tmp_path), tmp_path / "run", run={"tensorboard": True}))
