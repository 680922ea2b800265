"""The command line of training: `python -m train.main --config train/configs/mmse.yaml [section.key=value ...]`, or
`torchrun --nproc-per-node 8 -m train.main ...` for one process on each of eight GPUs."""

from __future__ import annotations

import argparse
import sys

from pipeline.loader import LoaderError
from pipeline.source import SourceError
from train.config import ConfigError, load_config
from train.state import TrainingError
from train.trainer import train


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m train.main",
        description="Train a generator on tar shards or folders of clean images. A run that was stopped goes on from "
        "its last checkpoint when the same command is given again, on any number of devices.",
        epilog="example: python -m train.main --config train/configs/mmse.yaml data.train=[photos] run.output=runs/a; "
        "on eight GPUs: torchrun --nproc-per-node 8 -m train.main --config train/configs/posterior.yaml ...",
    )
    result.add_argument("--config", required=True, metavar="FILE.yaml", help="see train/configs and train/config.py")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace single values, as YAML")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with a message when the run cannot start or go on."""
    options = parser().parse_args(arguments)
    try:
        weights = train(load_config(options.config, options.overrides))
    except (ConfigError, SourceError, LoaderError, TrainingError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(f"trained weights: {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
