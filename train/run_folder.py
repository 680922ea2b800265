"""A run's folder: one process writes to it at a time, and it keeps the whole configuration beside the results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from model.atomic import write_atomically
from model.locks import lock_file
from train.config import Config, as_tree
from train.distributed import Ranks
from train.state import TrainingError

CONFIG = "config.yaml"
LOCK = ".lock"


@contextmanager
def run_folder(config: Config, ranks: Ranks) -> Iterator[None]:
    """Creates `run.output`, which the first rank locks inside the `with` block, and writes the configuration with all
    overrides and defaults into it as config.yaml. Raises TrainingError if another process has locked it, OSError."""
    folder = Path(config.run.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not ranks.is_first:
        yield
        return
    try:
        lock = lock_file(folder / LOCK)
    except BlockingIOError as error:
        raise TrainingError(
            f"{folder}: another training writes to this folder: wait for its end, or give another run.output"
        ) from error
    try:
        write_atomically(folder / CONFIG, as_yaml(config).encode())
        yield
    finally:
        os.close(lock)


def as_yaml(config: Config) -> str:
    """The whole configuration, as --config takes it."""
    return yaml.safe_dump(as_tree(config), sort_keys=False)
