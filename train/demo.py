"""The demonstration that `python -m train.main` runs without data: two minutes on the photographs of the sample
shard."""

from __future__ import annotations

import os
from pathlib import Path

import pipeline
from model.atomic import write_atomically
from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.source import Item, read
from train.checks import ConfigError
from train.config import RECIPE, Config, from_tree, merge, read_tree, refuse_unused

SAMPLE = Path(pipeline.__file__).parent / "sample" / "sample.tar"

SETTINGS = (
    "data.crop=64",
    "data.batch=8",
    "degradation.quality=[5, 40]",  # the photographs are JPEGs themselves
    "degradation.quality_mean=15",
    "optimiser.warmup=20",
    "optimiser.final_learning_rate=1e-5",
    "optimiser.ema=0.98",
    "run.output=runs/demo",
    "run.log_every=10",
    "run.validate_every=50",
    "run.save_every=50",
)
"""Overrides of the default recipe, so that two minutes on a CPU show progress."""

SECONDS = 120.0
"""Length of the demonstration."""

NOTICE = """\
No data.train was given: this is a demonstration, {length} on the small photographs of the sample shard. It only shows
that training works; its weights are not usable. Another run in the same folder resumes it. To train on your own
photographs, in tar shards or folders:

    python -m train.main 'data.train=[PATH]' run.output=runs/mine
"""


def default_config(overrides: list[str]) -> tuple[Config, str]:
    """The default recipe with these overrides, and an empty notice. Without data it is the demonstration, with a notice
    for the user, and its photographs are written into `run.output`. Raises ConfigError, SourceError, OSError."""
    tree = merge(read_tree(RECIPE), overrides)
    if "train" in tree.get("data", {}):
        config = from_tree(tree)
        refuse_unused(config, overrides)
        return config, ""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("data.train: expected clean images, data.train=[PATH, ...]: the demonstration is one process")
    tree = merge(read_tree(RECIPE), [*SETTINGS, *overrides])
    if not any(override.startswith("optimiser.steps=") for override in overrides):
        tree["run"].setdefault("seconds", SECONDS)
    folder = Path(str(tree["run"]["output"])) / "photographs"
    train, held_out = folder / "train", folder / "held_out"
    tree["data"]["train"] = [str(train)]
    tree["data"].setdefault("validation", str(held_out))
    config = from_tree(tree)
    write_photographs(train, held_out)
    run = config.run
    length = f"{run.seconds:.0f} seconds" if run.seconds else f"{config.optimiser.steps} steps"
    return config, NOTICE.format(length=length)


def write_photographs(train: Path, held_out: Path) -> None:
    """Writes the photographs of the sample shard into two folders. The last one, the least compressed, is held out;
    other versions of it are left out. Raises OSError, SourceError."""
    items = [item for item in read(list_sources(SAMPLE)) if isinstance(item, Item) and item.data is not None]
    if not items:
        raise SourceError(f"{SAMPLE}: no photographs in it; reinstall the package")
    for item in items:
        scene = _scene(item) == _scene(items[-1])
        if scene and item is not items[-1]:
            continue
        path = (held_out if scene else train) / f"{item.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert item.data is not None
        write_atomically(path, item.data)


def _scene(item: Item) -> str:
    """The photograph's name: `stream` of stream-q75-420."""
    return Path(item.key).name.partition("-")[0]
