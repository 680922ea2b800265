"""What a training run is made of: dataclasses filled from YAML; the command line overrides with `section.key=value`."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
import yaml

from kernels import Subsampling
from model.generator import ALIGNMENT, GeneratorConfig
from train.losses import LOSSES


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
    quality_mean: float = 30.0  # inside `quality`; half of all crops lie below it
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
    """Reads YAML and applies `section.key=value` overrides (values are YAML too). Raises ConfigError for unknown keys,
    values of the wrong type, and values with which no run is possible."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    config: Config = build(Config, merge(tree, overrides), "")
    check(config)
    return config


def merge(tree: Any, overrides: list[str]) -> Any:
    """The tree of a YAML file with single values replaced; sections that hold nothing are left out."""
    if not isinstance(tree, dict | None):
        raise ConfigError(f"configuration: expected a mapping of sections, got {tree!r}")
    tree = {section: values for section, values in (tree or {}).items() if values is not None}
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and isinstance(tree.setdefault(section, {}), dict)):
            raise ConfigError(f"override {override!r}: expected section.key=value")
        try:
            tree[section][key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    return tree


def build(kind: type[Any], tree: Any, where: str) -> Any:
    """A dataclass from a mapping, checked key by key."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where.rstrip('.')}: expected a mapping, got {tree!r}")
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"{where}{key}: no such key; {kind.__name__} has {', '.join(hints)}")
    return kind(**{key: _value(value, hints[key], f"{where}{key}") for key, value in tree.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names, its elements included."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
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
    """Raises ConfigError, naming the key, for a value with which no run is possible."""
    model, data, degradation, optimiser, run = (getattr(config, part.name) for part in dataclasses.fields(config))
    low, high = degradation.quality
    labels = [sampling.label for sampling in Subsampling]
    shares = degradation.samplings
    positive = {
        "model": ("features", "inner_features", "embedding"),
        "data": ("batch",),
        "optimiser": ("steps", "learning_rate", "clip"),
        "run": ("log_every", "validate_every", "save_every"),
    }
    rules = [
        (f"{section}.{key}", getattr(getattr(config, section), key) > 0, "more than 0")
        for section, keys in positive.items()
        for key in keys
    ]
    rules += [
        ("model.blocks", min(model.blocks, model.inner_blocks) >= 0, "0 or more"),
        ("model.noise", not model.noise, f"false: {', '.join(LOSSES)} train a deterministic generator"),
        ("data.train", bool(data.train), "tar shards, folders or files"),
        ("data.crop", data.crop > 0 and data.crop % ALIGNMENT == 0, f"a multiple of {ALIGNMENT} pixels"),
        ("degradation.quality", 1 <= low <= high <= 100, "two numbers in 1..100, the lower one first"),
        ("degradation.quality_mean", low <= degradation.quality_mean <= high, f"{low} to {high}, as the quality"),
        ("degradation.perturbed", 0 <= degradation.perturbed <= 1, "a share, 0..1"),
        ("degradation.samplings", set(shares) <= set(labels), f"weights of {', '.join(labels)}"),
        ("degradation.samplings", min(shares.values(), default=0) >= 0 < sum(shares.values()), "a positive weight"),
        ("optimiser.loss", optimiser.loss in LOSSES, " or ".join(LOSSES)),
        ("optimiser.ema", 0 <= optimiser.ema < 1, "a decay, 0..1"),
        ("optimiser.betas", all(0 <= beta < 1 for beta in optimiser.betas), "two decays, 0..1"),
        ("run.seed", 0 <= run.seed < 2**32, "0..2^32 - 1"),
        ("run.device", _is_usable(run.device), "cpu, or a GPU that PyTorch sees"),
        ("run.threads", run.threads >= 0, "0 or more"),
    ]
    for name, holds, wanted in rules:
        section, _, key = name.partition(".")
        if not holds:
            raise ConfigError(f"{name}: expected {wanted}, got {getattr(getattr(config, section), key)!r}")


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
