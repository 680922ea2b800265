"""Command line of training: `python -m train.main [--config FILE.yaml] [section.key=value ...]`, or
`torchrun --nproc-per-node 8 -m train.main ...` for one process on each of eight GPUs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from pipeline.inputs.listing import SourceError
from train.checks import ConfigError
from train.config import RECIPE, Config, build, load_config, merge, read_tree, recipes
from train.data.plan import LoaderError
from train.demo import default_config
from train.interruption import InterruptionError
from train.run_folder import as_yaml
from train.state import TrainingError
from train.trainer import train

DESCRIPTION = f"""\
Train a generator on clean photographs: JPEGs or PNGs in folders or tar shards.

Without --config it trains the regression network `mmse`, by the recipe
{RECIPE}.
Without data it runs a demonstration of two minutes on the sample photographs.

Ctrl-C and SIGTERM end a run after the step at hand, with a checkpoint; a second
Ctrl-C ends it at once, without. An interrupted run resumes from its last
checkpoint when the same command is given again, on any number of devices."""

EXAMPLES = f"""\
examples:
  a demonstration of two minutes     python -m train.main
  your own photographs               python -m train.main 'data.train=[photos,more.tar]' run.output=runs/mine
  with validation                    ... data.validation=held_out.tar
  ten minutes, schedules included    ... run.seconds=600
  the sampler                        ... --config posterior
  all keys and their values          python -m train.main --config posterior --print-config
  on eight GPUs                      torchrun --nproc-per-node 8 -m train.main ...

The recipes are in {RECIPE.parent}:
{", ".join(recipes())}.
The keys of each section are documented where it is defined:
  model model/generator.py · critic model/critic.py · data train/data/sources.py
  degradation train/degradation.py · optimiser train/state.py · run train/config.py
  regression, energy, game: train/objectives/"""


def parser(prog: str = "python -m train.main") -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--config", metavar="FILE.yaml", help="a recipe, also by its name [the default one]; requires data.train"
    )
    result.add_argument("--print-config", action="store_true", help="print the whole configuration, and do no more")
    result.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override a value of the recipe, in YAML"
    )
    return result


def main(arguments: list[str] | None = None, prog: str = "python -m train.main") -> int:
    """Returns the exit code: 0; 2 with a message if the run cannot start or continue; 130 or 143 after Ctrl-C or
    SIGTERM."""
    options = parser(prog).parse_args(arguments)
    try:
        if options.print_config:
            print(as_yaml(build(Config, merge(read_tree(options.config or RECIPE), options.overrides), "")), end="")
            return 0
        if options.config is None:
            config, notice = default_config(options.overrides)
            print(notice, end="\n" if notice else "", flush=True)
        else:
            config = load_config(options.config, options.overrides)
        weights = train(config)
    except (ConfigError, SourceError, LoaderError, TrainingError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except InterruptionError as interruption:
        print(f"train: {interruption}", file=sys.stderr)
        return 128 + interruption.number
    print(f"trained weights: {weights}")
    print(f"to use them: {usage(config, weights)}")
    return 0


def usage(config: Config, weights: Path) -> str:
    """The command that restores images with these weights."""
    mode = "sample" if config.model.noise else "mmse"
    name = shlex.quote(str(weights))
    return f"python -m pipeline.restore --weights {name} --mode {mode} --input-dir PHOTOS --output-dir restored"


if __name__ == "__main__":
    sys.exit(main())
