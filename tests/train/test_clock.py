"""run.seconds: a run ends with its time, its schedules end with it, and it can go on. Time is simulated, a second for
each step, unless a test says otherwise."""

import itertools
import time
from math import cos, pi

import pytest
from training import assert_equal, assert_same_run, checkpoint, config_of, game_of, in_ranks, lines

import train.clock as clock_module
import train.trainer as trainer_module
from model.weights import load
from train.checkpoint import WEIGHTS
from train.trainer import train

FIRST, LAST = 3e-3, 1e-6
MANY = 100_000


@pytest.fixture
def ticking(monkeypatch):
    """A clock that each step moves on by a second, and steps that fail from a given one on."""
    now, sound = {"time": 0.0, "fail": MANY}, trainer_module.train_step

    def step(state, run):
        if state.step >= now["fail"]:
            raise KeyboardInterrupt
        now["time"] += 1
        return sound(state, run)

    monkeypatch.setattr(clock_module, "monotonic", lambda: now["time"])
    monkeypatch.setattr(trainer_module, "train_step", step)
    return now


def timed(photos, folder, seconds, steps=MANY, **run):
    return config_of(
        photos,
        folder,
        optimiser={"steps": steps, "warmup": 0},
        run={"seconds": float(seconds), "log_every": 1, "save_every": 3, **run},
    )


def cosine(progress):
    return pytest.approx(LAST + (FIRST - LAST) * (1 + cos(pi * progress)) / 2, rel=1e-3, abs=1e-7)


def rates(folder):
    return {line["step"]: line["lr"] for line in lines(folder)}


def interrupted(config, ticking, step):
    ticking["fail"] = step
    with pytest.raises(KeyboardInterrupt):
        train(config)
    ticking["fail"] = MANY


def test_schedules_follow_the_time_and_end_with_it(photos, tmp_path, ticking):
    train(timed(photos, tmp_path, 10))
    assert checkpoint(tmp_path)["step"] == 10
    assert rates(tmp_path) == {step: cosine(step / 10) for step in range(1, 11)}
    assert rates(tmp_path)[10] == LAST


def test_consistencys_weight_follows_it_too(photos, tmp_path, ticking):
    changes = {"consistency": (0.1, 10.0), "second_moment": 0.0, "perceptual": 0.0}
    config = game_of(photos, tmp_path, game=changes, optimiser={"steps": MANY}, run={"seconds": 4.0, "log_every": 1})
    train(config)
    assert [line["consistency_weight"] for line in lines(tmp_path)] == pytest.approx([0.1 * 10**0.5, 1, 10**0.5, 10])


def test_a_stopped_run_goes_on_from_where_its_schedules_were(photos, tmp_path, ticking):
    """After 6 of 10 seconds, from the checkpoint of that time: with 4 seconds more, or with 10 steps more."""
    interrupted(timed(photos, tmp_path, 10), ticking, 8)
    assert checkpoint(tmp_path)["mark"] == {"step": 6, "progress": pytest.approx(0.6), "seconds": 6.0}
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(timed(photos, tmp_path, 4))
    assert rates(tmp_path) == {step: cosine(step / 10) for step in range(1, 11)}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    train(timed(photos, tmp_path, 0, steps=16))
    assert {step: rate for step, rate in rates(tmp_path).items() if step > 6} == {
        step: cosine(0.6 + 0.4 * (step - 6) / 10) for step in range(7, 17)
    }


def test_from_then_on_without_a_clock_a_run_is_repeatable(photos, tmp_path, ticking):
    for name in ("straight", "killed"):
        train(timed(photos, tmp_path / name, 4))
    interrupted(timed(photos, tmp_path / "killed", 0, steps=14), ticking, 11)
    for name in ("straight", "killed"):
        train(timed(photos, tmp_path / name, 0, steps=14))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_finished_run_that_gets_more_is_stretched(photos, tmp_path, ticking):
    train(timed(photos, tmp_path, 6))
    train(timed(photos, tmp_path, 2))
    assert [rates(tmp_path)[step] for step in (6, 7, 8)] == [LAST, cosine(7 / 8), LAST]
    train(timed(photos, tmp_path, 0, steps=10))
    assert [rates(tmp_path)[step] for step in (9, 10)] == [cosine(9 / 10), LAST]


def test_steps_that_are_done_first_end_the_run_and_the_schedules(photos, tmp_path, ticking):
    train(timed(photos, tmp_path, 1e6, steps=5))
    assert rates(tmp_path)[5] == LAST
    assert checkpoint(tmp_path)["step"] == 5


def test_a_run_by_steps_can_go_on_by_the_clock(photos, tmp_path, ticking):
    interrupted(timed(photos, tmp_path, 0, steps=12), ticking, 6)
    train(timed(photos, tmp_path, 3, steps=12))
    assert rates(tmp_path) == {step: cosine(min(step / 12, 0.5) + max(0, step - 6) / 6) for step in range(1, 10)}


def test_warm_up_stays_in_steps(photos, tmp_path, ticking):
    config = config_of(photos, tmp_path, optimiser={"steps": MANY, "warmup": 5}, run={"seconds": 50.0, "log_every": 1})
    interrupted(config, ticking, 8)
    assert [rates(tmp_path)[step] for step in range(1, 5)] == pytest.approx(
        [FIRST * k / 5 for k in range(2, 6)], rel=0.02
    )
    assert rates(tmp_path)[7] == cosine(7 / 50)


def test_a_run_stops_in_time_and_leaves_checkpoint_and_weights(photos, tmp_path):
    """By the real clock."""
    config = timed(photos, tmp_path, 3, log_every=MANY, save_every=MANY)
    began = time.monotonic()
    weights = train(config)
    content = checkpoint(tmp_path)
    assert time.monotonic() - began > 3
    assert lines(tmp_path)[-1]["step"] == content["step"] > 1
    assert lines(tmp_path)[-1]["lr"] == LAST
    assert content["optimiser"]["param_groups"][0]["lr"] < 0.3 * FIRST
    assert_equal(dict(load(str(weights)).generator.state_dict()), dict(content["average"]))


def test_ranks_stop_at_the_same_step(photos, tmp_path):
    """By the real clock, of which the second rank's is a minute fast."""
    config, sound = timed(photos, tmp_path / "run", 3), trainer_module._loop

    def work(rank):
        def loop(state, run):
            sound(state, run)
            (tmp_path / f"rank{rank}").write_text(f"{state.step} {state.anchor}")

        trainer_module._loop = loop
        if rank == 1:
            readings = itertools.count()
            clock_module.monotonic = lambda: time.monotonic() + (60 if next(readings) else 0)
        train(config)

    for code, said in in_ranks(work, tmp_path):
        assert code == 0, said
    ended = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert ended[0] == ended[1]
    assert int(ended[0].split()[0]) == checkpoint(tmp_path / "run")["step"] > 1
    assert (tmp_path / "run" / WEIGHTS).exists()
    assert checkpoint(tmp_path / "run")["mark"]["seconds"] < 60
