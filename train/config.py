"""What a training run is made of: dataclasses filled from YAML; the command line overrides with `section.key=value`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
import yaml

from kernels import Subsampling
from model.critic import CriticConfig
from model.generator import ALIGNMENT, GeneratorConfig
from train.losses import LOSSES

GAME = "game"
"""The `optimiser.loss` that trains a sampler against a critic; all others are regressions."""

LOADERS = ("memory", "dali")

LITE0 = "lite0"
"""The `game.features` that come with a package; all others are a path to VGG-19's."""

AUTO = "auto"
"""`run.bfloat16` where the hardware decides."""

RECIPE = Path(__file__).parent / "configs" / "mmse.yaml"
"""What `python -m train.main` trains without --config."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True)
class DataConfig:
    """Clean images and how they are cut."""

    train: list[str] = field(default_factory=list)  # tar shards, folders or files of clean images
    validation: str = ""  # the same for the figures printed on the way; never trained on
    crop: int = 96  # pixels, a multiple of 16
    late_crop: int = 0  # the same in the second half of `optimiser.steps`; 0: as before
    batch: int = 32  # crops a step, of all ranks together
    loader: str = "memory"  # memory: JPEGs alone, all decoded and kept; dali: crops decoded as they are needed
    orientations: int = 8  # of a crop, all as likely: 8, 2 (mirrored or not: for what has an upper side), or 1
    workers: int = 4  # threads of dali that decode, and as many that read


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
    """Adam with warm-up and cosine decay, for each network."""

    loss: str = "log_mse"  # a name in train/losses.py's LOSSES, or game: a sampler against a critic
    steps: int = 20_000
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 200  # steps
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest norm of the gradient; .inf: any
    trunk_rate: float = 0.2  # of a generator with a noise head: the others' learning rate, as a share of the head's
    trunk_clip: float = 0.05  # and the largest norm of their gradient; `clip` is then the head's
    accumulate: int = 1  # parts of a rank's batch that go through the networks one after another: less memory
    ema: float = 0.999  # decay of the averaged weights, which are what is shipped


MOMENTS = ("first_moment", "second_moment", "energy", "feature_energy", "spectral", "astray")
"""The terms of the game that take several samples of an image, by the names of their weights."""


@dataclass(frozen=True)
class GameConfig:
    """The terms of equations 8 to 10: their weights, for images in 0..1 and means over all elements, and how often they
    are taken. A weight of 0 leaves a term out, and what only it needs. For `optimiser.loss: game` alone."""

    adversarial: float = 1e-3  # V; 0: no critic
    r1: float = 1.0  # gamma
    r1_every: int = 1  # steps; the penalty is multiplied by as many
    consistency: tuple[float, float] = (0.1, 10.0)  # C: from the first to the last step, its logarithm linear in time
    first_moment: float = 1.0  # FM
    unbiased: bool = True  # FM without the Var / K that K samples add to it
    second_moment: float = 0.0  # SM
    mmse: str = "mmse"  # SM's frozen X̄, and validation's measure of texture for a sampler without a regression's
    # output: weights by name or path
    moment_images: int = 8  # images for FM, SM and E, of all ranks together
    samples: int = 8  # of each, K
    moments_every: int = 8  # steps; FM, SM and E keep their weights
    energy: float = 0.0  # E, the energy score of K samples, of pixels and bands
    feature_energy: float = 0.0  # the same of `features`
    spectral: float = 0.0  # the same of the shape of spectra in flat areas
    spectral_from: float = 0.0  # from this share of the schedule on, 0..1
    projected: bool = False  # all terms are about samples projected onto their file's intervals, as users get them
    astray: float = 0.0  # mean square between a sample before projection and after, which hides how far it strays
    perceptual: float = 0.0  # P
    regression: float = 0.2  # log_mse of the regression's output of a generator with a noise head; of others 0
    features: str = LITE0  # P's and E's: lite0, or the path of torchvision's VGG-19 file


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


@dataclass(frozen=True)
class Config:
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    game: GameConfig = field(default_factory=GameConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path, overrides: list[str]) -> Config:
    """Reads YAML and applies `section.key=value` overrides (values are YAML too). Raises ConfigError for unknown keys,
    values of the wrong type, and values with which no run is possible."""
    return from_tree(merge(read_tree(path), overrides))


def read_tree(path: str | Path) -> Any:
    """The content of a YAML file. Raises ConfigError."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error


def from_tree(tree: Any) -> Config:
    """A configuration from a mapping of sections, checked. Raises ConfigError."""
    config: Config = build(Config, tree, "")
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
    values = {key: _value(value, hints[key], f"{where}{key}") for key, value in tree.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
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


Rule = tuple[str, bool, str]
"""(key, whether it holds, what is expected)"""


def check(config: Config) -> None:
    """Raises ConfigError, naming the key, for a value with which no run is possible."""
    rules = [*_signs(config), *_data_rules(config), *_training_rules(config)]
    if config.optimiser.loss == GAME:
        rules += _game_rules(config)
    for name, holds, wanted in rules:
        section, _, key = name.partition(".")
        if not holds:
            raise ConfigError(f"{name}: expected {wanted}, got {getattr(getattr(config, section), key)!r}")


def _signs(config: Config) -> Iterator[Rule]:
    positive = {
        "model": ("features", "inner_features", "embedding", "growth"),
        "data": ("batch", "workers"),
        "optimiser": ("steps", "learning_rate", "clip", "trunk_rate", "trunk_clip", "accumulate"),
        "critic": ("features", "most_features"),
        "game": ("r1_every", "moments_every", "samples"),
        "run": ("log_every", "validate_every", "save_every", "timeout"),
    }
    not_negative = {
        "model": ("blocks", "inner_blocks"),
        "optimiser": ("final_learning_rate", "warmup"),
        "critic": ("halvings",),
        "game": (
            "adversarial",
            "r1",
            "first_moment",
            "second_moment",
            "energy",
            "feature_energy",
            "spectral",
            "astray",
            "perceptual",
            "regression",
        ),
        "run": ("seconds", "threads", "grid_every"),
    }
    for section, keys in positive.items():
        for key in keys:
            yield f"{section}.{key}", getattr(getattr(config, section), key) > 0, "more than 0"
    for section, keys in not_negative.items():
        for key in keys:
            yield f"{section}.{key}", getattr(getattr(config, section), key) >= 0, "0 or more"


def _data_rules(config: Config) -> list[Rule]:
    data, degradation = config.data, config.degradation
    low, high = degradation.quality
    labels, shares = [sampling.label for sampling in Subsampling], degradation.samplings
    return [
        ("data.train", bool(data.train), "clean images: data.train=[PATH, ...], tar shards, folders or files of JPEGs"),
        ("data.crop", data.crop > 0 and data.crop % ALIGNMENT == 0, f"a multiple of {ALIGNMENT} pixels"),
        ("data.late_crop", data.late_crop >= 0 and data.late_crop % ALIGNMENT == 0, f"0, or a multiple of {ALIGNMENT}"),
        ("data.loader", data.loader in LOADERS, " or ".join(LOADERS)),
        ("data.orientations", data.orientations in (1, 2, 8), "1, 2 or 8"),
        ("degradation.quality", 1 <= low <= high <= 100, "two numbers in 1..100, the lower one first"),
        ("degradation.quality_mean", low <= degradation.quality_mean <= high, f"{low} to {high}, as the quality"),
        ("degradation.perturbed", 0 <= degradation.perturbed <= 1, "a share, 0..1"),
        ("degradation.samplings", set(shares) <= set(labels), f"weights of {', '.join(labels)}"),
        ("degradation.samplings", min(shares.values(), default=0) >= 0 < sum(shares.values()), "a positive weight"),
    ]


def _training_rules(config: Config) -> list[Rule]:
    optimiser, run = config.optimiser, config.run
    parts = optimiser.accumulate
    return [
        ("optimiser.loss", optimiser.loss in (*LOSSES, GAME), " or ".join((*LOSSES, GAME))),
        (
            "model.noise",
            not (config.model.noise and optimiser.loss in LOSSES),
            f"false: {', '.join(LOSSES)} train a deterministic generator, {GAME} one with noise",
        ),
        ("data.batch", config.data.batch % max(parts, 1) == 0, f"a multiple of optimiser.accumulate, {parts}"),
        ("optimiser.ema", 0 <= optimiser.ema < 1, "a decay, 0..1"),
        ("optimiser.betas", all(0 <= beta < 1 for beta in optimiser.betas), "two decays, 0..1"),
        ("run.seed", 0 <= run.seed < 2**32, "0..2^32 - 1"),
        ("run.device", _is_usable(run.device), "cpu, or a GPU that PyTorch sees"),
        ("run.bfloat16", run.bfloat16 in (True, False, AUTO), "auto, true or false"),
        (
            "run.grid_every",
            not run.grid_every or bool(config.data.validation),
            "0: there is no data.validation to show",
        ),
    ]


def _game_rules(config: Config) -> list[Rule]:
    game = config.game
    weights = game.consistency
    moments = has_moments(game)
    enough = 2 if game.second_moment or game.energy or game.feature_energy or game.spectral else 1
    if game.first_moment and game.unbiased:
        enough = 2
    in_each_step = game.moments_every == 1 and game.moment_images == config.data.batch
    return [
        ("game.consistency", min(weights) > 0 or max(weights) == 0, "two positive weights, or two of 0"),
        (
            "game.adversarial",
            has_single_samples(game) or (moments and in_each_step),
            "more than 0 where game.consistency and game.perceptual are 0, unless the terms of several samples are "
            "taken of all crops (game.moment_images, data.batch) in each step (game.moments_every 1)",
        ),
        (
            "model.noise",
            config.model.noise or not moments,
            "true: game.first_moment, second_moment, energy, feature_energy, spectral and astray are about samples",
        ),
        (
            "game.spectral",
            config.model.has_head or not game.spectral,
            "0 for a generator without a noise head, whose regression says what is flat",
        ),
        ("game.spectral_from", 0 <= game.spectral_from <= 1, "a share, 0..1"),
        ("game.astray", game.projected or not game.astray, "0 without game.projected"),
        (
            "game.regression",
            (game.regression > 0) == config.model.has_head,
            "more than 0 for a generator with a noise head, whose regression nothing else trains, and 0 for others",
        ),
        ("game.samples", not moments or game.samples >= enough, "2 or more: the terms compare samples"),
        (
            "game.moment_images",
            not moments or 1 <= game.moment_images <= config.data.batch,
            f"1 to data.batch, {config.data.batch}",
        ),
    ]


def has_moments(game: GameConfig) -> bool:
    """Whether there are terms of several samples of an image: FM, SM, E, and how far they stray."""
    return any(getattr(game, name) > 0 for name in MOMENTS)


def has_single_samples(game: GameConfig) -> bool:
    """Whether there are terms of one sample of each image: V, C, P."""
    return max(game.adversarial, *game.consistency, game.perceptual) > 0


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
