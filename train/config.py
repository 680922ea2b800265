"""The configuration of a training run: dataclasses filled from YAML, with `section.key=value` overrides.

Each section is defined, documented and checked in the file of what it configures: `model` in model/generator.py,
`critic` in model/critic.py, `data` in train/data/sources.py, `degradation` in train/degradation.py, `optimiser` in
train/state.py, `regression`, `energy` and `game` in train/objectives/, `run` here.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from model.critic import CriticConfig
from model.generator import GeneratorConfig
from pipeline.yaml_file import YamlError, parse_value, read_mapping
from train.checks import ConfigError, expect, expect_not_negative, expect_positive
from train.data.sources import DataConfig
from train.degradation import DegradationConfig
from train.numerics import AUTO, device_of
from train.objectives.energy import EnergyConfig, check_energy
from train.objectives.game import GameConfig, check_game
from train.objectives.regression import RegressionConfig, check_regression
from train.state import OptimiserConfig

OBJECTIVES = {"regression": check_regression, "energy": check_energy, "game": check_game}
"""Values of `objective`, which are also names of sections, with the checks of these sections against the others."""

RECIPE = Path(__file__).parent / "configs" / "mmse.yaml"
"""The recipe of `python -m train.main` without --config."""


@dataclass(frozen=True)
class RunConfig:
    """Output, hardware and intervals."""

    output: str = "runs/mmse"  # folder for checkpoint, weights, metrics and grids
    start: str = ""  # initial weights, by name or path; empty: random
    seed: int = 0
    seconds: float = 0.0  # time limit of this process, at which the schedules end, too; 0: none
    device: str = AUTO  # a GPU for each rank, if PyTorch sees one; or cpu, cuda
    bfloat16: bool | str = AUTO  # autocast; auto: on GPUs from Ampere on and CPUs with AMX or AVX512-BF16. In float32,
    # CUDA's convolutions use TF32 and its matrix products do not (train/numerics.py)
    deterministic: bool = False  # on CUDA: the same weights every time; slower, and not yet run on a GPU
    compile: bool = False  # torch.compile for all networks' passes but R1
    threads: int = 0  # CPU threads of PyTorch; 0: its default
    log_every: int = 50  # steps between lines of metrics.jsonl and checks for non-finite losses
    validate_every: int = 1000  # steps between validations on data.validation
    save_every: int = 500  # steps between checkpoints
    grid_every: int = 0  # steps between image grids of data.validation; 0: none
    keep_every: int = 0  # steps between weights that are kept, as weights/STEP.safetensors; 0: only the last
    tensorboard: bool = False  # write to TensorBoard, too
    timeout: float = 600.0  # seconds that a rank waits for the others

    def __post_init__(self) -> None:
        expect_positive(self, "log_every", "validate_every", "save_every", "timeout")
        expect_not_negative(self, "seconds", "threads", "grid_every", "keep_every")
        expect(self, "seed", 0 <= self.seed < 2**32, "0..2^32 - 1")
        expect(self, "bfloat16", self.bfloat16 in (True, False, AUTO), "auto, true or false")


@dataclass(frozen=True)
class Config:
    """A whole configuration. Of the sections `regression`, `energy` and `game` only that of the objective is used, and
    `game.mmse` to validate a sampler without a regression output."""

    objective: str = "regression"  # or energy, game
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    game: GameConfig = field(default_factory=GameConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        best, finest = self.degradation.quality[1], self.model.finest_quality
        if best > finest:
            raise ConfigError(
                f"degradation.quality goes up to {best}, but the network takes tables finer than those of "
                f"model.finest_quality ({finest}) for these: set model.finest_quality={best}"
            )


def load_config(path: str | Path, overrides: list[str]) -> Config:
    """Reads a YAML file and applies `section.key=value` overrides, whose values are YAML. Raises ConfigError for
    unknown keys, values of the wrong type, invalid values, and overrides without effect. path: a file, or the name of
    a recipe that ships."""
    config = from_tree(merge(read_tree(path), overrides))
    refuse_unused(config, overrides)
    return config


def refuse_unused(config: Config, overrides: list[str]) -> None:
    """Raises ConfigError for an override in a section that the objective does not use."""
    used = {config.objective, "critic" if config.objective == "game" else ""}
    for override in overrides:
        section = override.partition(".")[0]
        validates = config.objective == "energy" and override.startswith("game.mmse=")  # see Config
        if section in {*OBJECTIVES, "critic"} - used and not validates:
            raise ConfigError(
                f"override {override!r}: objective={config.objective} does not use the section {section}; "
                f"for another objective give its recipe, --config FILE.yaml (of {', '.join(recipes())})"
            )


def read_tree(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file, or of a recipe that ships by its name. Raises ConfigError."""
    if str(path) in recipes() and not Path(path).is_file():
        path = RECIPE.with_name(f"{path}.yaml")
    try:
        return read_mapping(Path(path))
    except YamlError as error:
        raise ConfigError(str(error)) from error


def recipes() -> list[str]:
    """The names of the recipes that ship."""
    return sorted(path.stem for path in RECIPE.parent.glob("*.yaml"))


def from_tree(tree: Any) -> Config:
    """Builds and checks a configuration from a mapping of sections. Raises ConfigError."""
    config: Config = build(Config, tree, "")
    check(config)
    return config


def merge(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Applies overrides to the content of a YAML file; empty sections are dropped. Raises ConfigError."""
    tree = {section: values for section, values in tree.items() if values is not None}
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.partition(".")
        try:
            value = parse_value(text)
        except YamlError as error:
            raise ConfigError(f"override {override!r}: {error}") from error
        if equals and name == "objective":
            tree[name] = value
        elif equals and dot and isinstance(tree.setdefault(section, {}), dict):
            tree[section][key] = value
        else:
            raise ConfigError(f"override {override!r}: expected section.key=value, or objective=name")
    return tree


def build(kind: type[Any], tree: Any, where: str) -> Any:
    """Builds a dataclass from a mapping, with checked keys and types. where: prefix of the keys in error messages.
    Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where.rstrip('.')}: expected a mapping, got {tree!r}")
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"{where}{key}: no such key; {kind.__name__} has {', '.join(hints)}")
    values = {key: _value(value, hints[key], f"{where}{key}") for key, value in tree.items()}
    try:
        return kind(**values)
    except ValueError as error:  # from __post_init__; begins with the field's name
        raise ConfigError(f"{where}{error}") from error


def _value(value: Any, hint: Any, where: str) -> Any:
    """Converts `value` to the type `hint`, recursively. Raises ConfigError."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    kind = hint if kind is UnionType else kind
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, f"{where}.")
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML parses 1e-3 as a string
            value = float(value)
    if kind is str and value is None:  # YAML's value of nothing
        value = ""
    if kind is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_value(item, argument, where) for item, argument in zip(value, arguments, strict=True))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        example = f", such as [{value}]" if kind is list and isinstance(value, str) else ""
        raise ConfigError(f"{where}: expected {_name(hint)}{example}, got {value!r}")
    if kind is list:
        return [_value(item, arguments[0], where) for item in value]
    if kind is dict:
        return {_value(k, arguments[0], where): _value(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    return value


def _name(hint: Any) -> str:
    return str(hint) if get_args(hint) else str(hint.__name__)


def check(config: Config) -> None:
    """Checks conditions on several sections and on the machine. Raises ConfigError."""
    expect(config, "objective", config.objective in OBJECTIVES, " or ".join(OBJECTIVES))
    data = config.data
    clean = "clean images: data.train=[PATH, ...], tar shards, folders or files, JPEG or PNG"
    expect(config, "data.train", bool(data.train), clean)
    expect(config, "data.train", not any("://" in path for path in data.train), "paths of this machine: copy them here")
    expect(config, "run.device", _is_usable(config.run), "auto, cpu, or a GPU that PyTorch sees")
    shown = not config.run.grid_every or bool(data.validation)
    expect(config, "run.grid_every", shown, "0 without data.validation")
    apart = not any(Path(config.run.output).resolve().is_relative_to(Path(path).resolve()) for path in data.train)
    expect(config, "run.output", apart or not config.run.grid_every, "a folder outside data.train, as it gets images")
    OBJECTIVES[config.objective](config)


def _is_usable(run: RunConfig) -> bool:
    try:
        torch.empty(0, device=device_of(run))
    except (RuntimeError, AssertionError):  # the latter where PyTorch was built without CUDA
        return False
    return True


def as_tree(config: Config) -> dict[str, Any]:
    """The configuration as dictionaries and lists, for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    tree: dict[str, Any] = plain(dataclasses.asdict(config))
    return tree
