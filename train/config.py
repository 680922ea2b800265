"""What a training run is made of: dataclasses filled from YAML; the command line overrides with `section.key=value`.

Each section lies beside what it configures, and checks its own values: model/generator.py, model/critic.py,
train/data/batches.py, train/degradation.py, train/state.py (the optimiser), train/objectives/; that of the run is here.
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
from train.data.batches import DataConfig
from train.degradation import DegradationConfig
from train.numerics import AUTO
from train.objectives.energy import EnergyConfig, check_energy
from train.objectives.game import GameConfig, check_game
from train.objectives.regression import RegressionConfig, check_regression
from train.state import OptimiserConfig

OBJECTIVES = {"regression": check_regression, "energy": check_energy, "game": check_game}
"""What `objective` may be, each the name of its own section, with the check of its settings against the others."""

RECIPE = Path(__file__).parent / "configs" / "mmse.yaml"
"""What `python -m train.main` trains without --config."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how."""

    output: str = "runs/mmse"
    start: str = ""  # weights to start from, by name or path; empty: random ones
    seed: int = 0
    seconds: float = 0.0  # of training in this process, then it stops, its schedules at their end; 0: no limit
    device: str = "cpu"  # cuda: each rank its own
    bfloat16: bool | str = AUTO  # autocast; auto: on GPUs and on CPUs with AMX or AVX512-BF16. In float32, CUDA's
    # convolutions use TF32 and its matrix products do not (train/numerics.py)
    deterministic: bool = False  # on CUDA: the same weights every time; slower, and not yet run on a GPU
    compile: bool = False  # by torch.compile, all but R1
    threads: int = 0  # 0: as torch chooses
    log_every: int = 50  # steps between lines of metrics.jsonl, and looks whether all is finite
    validate_every: int = 1000
    save_every: int = 500
    grid_every: int = 0  # steps between pictures of the validation images; 0: none
    tensorboard: bool = False
    timeout: float = 600.0  # seconds that a rank waits for the others

    def __post_init__(self) -> None:
        expect_positive(self, "log_every", "validate_every", "save_every", "timeout")
        expect_not_negative(self, "seconds", "threads", "grid_every")
        expect(self, "seed", 0 <= self.seed < 2**32, "0..2^32 - 1")
        expect(self, "bfloat16", self.bfloat16 in (True, False, AUTO), "auto, true or false")


@dataclass(frozen=True)
class Config:
    """objective: regression, energy or game; the section of that name holds its settings, the other two are unused."""

    objective: str = "regression"
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    game: GameConfig = field(default_factory=GameConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path, overrides: list[str]) -> Config:
    """Reads YAML and applies `section.key=value` overrides (values are YAML too). Raises ConfigError for unknown keys,
    values of the wrong type, and values with which no run is possible."""
    return from_tree(merge(read_tree(path), overrides))


def read_tree(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file. Raises ConfigError."""
    try:
        return read_mapping(Path(path))
    except YamlError as error:
        raise ConfigError(str(error)) from error


def from_tree(tree: Any) -> Config:
    """A configuration from a mapping of sections, checked. Raises ConfigError."""
    config: Config = build(Config, tree, "")
    check(config)
    return config


def merge(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The tree of a YAML file with single values replaced; sections that hold nothing are left out."""
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
    """A dataclass from a mapping, checked key by key."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where.rstrip('.')}: expected a mapping, got {tree!r}")
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"{where}{key}: no such key; {kind.__name__} has {', '.join(hints)}")
    values = {key: _value(value, hints[key], f"{where}{key}") for key, value in tree.items()}
    try:
        return kind(**values)
    except ValueError as error:  # what the dataclass itself refuses, by the name of its field
        raise ConfigError(f"{where}{error}") from error


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names, its elements included."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    kind = hint if kind is UnionType else kind
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, f"{where}.")
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML takes 1e-3 for text
            value = float(value)
    if kind is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_value(item, argument, where) for item, argument in zip(value, arguments, strict=True))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {_name(hint)}, got {value!r}")
    if kind is list:
        return [_value(item, arguments[0], where) for item in value]
    if kind is dict:
        return {_value(k, arguments[0], where): _value(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    return value


def _name(hint: Any) -> str:
    return str(hint) if get_args(hint) else str(hint.__name__)


def check(config: Config) -> None:
    """Raises ConfigError, naming the key, for values of several sections with which no run is possible."""
    expect(config, "objective", config.objective in OBJECTIVES, " or ".join(OBJECTIVES))
    data, parts = config.data, config.optimiser.accumulate
    clean = "clean images: data.train=[PATH, ...], tar shards, folders or files of JPEGs"
    expect(config, "data.train", bool(data.train), clean)
    expect(config, "data.batch", data.batch % parts == 0, f"a multiple of optimiser.accumulate, {parts}")
    expect(config, "run.device", _is_usable(config.run.device), "cpu, or a GPU that PyTorch sees")
    shown = not config.run.grid_every or bool(data.validation)
    expect(config, "run.grid_every", shown, "0: there is no data.validation to show")
    OBJECTIVES[config.objective](config)


def _is_usable(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter where PyTorch was built without CUDA
        return False
    return True


def as_tree(config: Config) -> dict[str, Any]:
    """Plain dictionaries and lists, for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    tree: dict[str, Any] = plain(dataclasses.asdict(config))
    return tree
