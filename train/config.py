"""What a training run is made of: dataclasses filled from YAML, overridable on the command line as `section.key=value`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from model.generator import GeneratorConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True)
class DataConfig:
    """Clean images and how they are cut."""

    train: list[str] = field(default_factory=list)  # tar shards, folders or files of clean images
    validation: str = ""  # the same for the figures printed on the way; never trained on
    crop: int = 96  # pixels, a multiple of 16
    batch: int = 32  # crops a step


@dataclass(frozen=True)
class DegradationConfig:
    """Which JPEGs the crops become."""

    quality: tuple[int, int] = (5, 95)  # libjpeg's scale, both ends included
    quality_mean: float = 30.0  # the scale of the draw: half of all crops lie below it
    perturbed: float = 0.25  # share of crops whose tables are not Annex K's
    samplings: dict[str, float] = field(  # weights
        default_factory=lambda: {"4:2:0": 0.7, "4:4:4": 0.15, "4:2:2": 0.06, "gray": 0.06, "4:4:0": 0.03}
    )


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with warm-up and cosine decay."""

    loss: str = "log_mse"  # a name in train/losses.py
    steps: int = 20_000
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 200  # steps
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, which are what is shipped


@dataclass(frozen=True)
class RunConfig:
    """Where and how."""

    output: str = "runs/mmse"
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = True  # autocast
    threads: int = 0  # 0: as torch chooses
    log_every: int = 50  # steps between lines of metrics.jsonl
    validate_every: int = 1000
    save_every: int = 500


@dataclass(frozen=True)
class Config:
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path, overrides: list[str]) -> Config:
    """Reads YAML and applies `section.key=value` overrides (values are YAML too). Raises ConfigError for unknown keys
    and values of the wrong type."""
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot):
            raise ConfigError(f"override {override!r}: expected section.key=value")
        tree.setdefault(section, {})[key] = yaml.safe_load(value)
    return build(Config, tree, "")


def build(kind: type, tree: Any, where: str) -> Any:
    """A dataclass from a mapping, checked key by key."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where or 'configuration'}: expected a mapping, got {tree!r}")
    hints = get_type_hints(kind)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ConfigError(f"{where}{unknown[0]}: no such key; {kind.__name__} has {', '.join(hints)}")
    values = {}
    for key, value in tree.items():
        hint = hints[key]
        values[key] = (
            build(hint, value, f"{where}{key}.")
            if dataclasses.is_dataclass(hint)
            else _check(value, hint, f"{where}{key}")
        )
    return kind(**values)


def _check(value: Any, hint: Any, where: str) -> Any:
    origin = getattr(hint, "__origin__", hint)
    if origin is tuple and isinstance(value, list):
        value = tuple(value)
    if origin is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError:
            pass
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {origin.__name__}, got {value!r}")
    return value


def as_tree(config: Config) -> dict[str, Any]:
    """Plain dictionaries and lists, for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    tree: dict[str, Any] = plain(dataclasses.asdict(config))
    return tree
