"""Reads YAML files of options, for the command lines of restoration and of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file or value that cannot be used; the message names it."""


def read_mapping(path: Path) -> dict[Any, Any]:
    """Reads a YAML file that contains a mapping or nothing. Raises YamlError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise YamlError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(tree, dict | None):
        raise YamlError(f"configuration {path}: expected lines like `key: value`, got {tree!r}")
    return tree or {}


def parse_value(text: str) -> Any:
    """Parses one YAML value. Raises YamlError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise YamlError(f"{text!r} is not YAML: {error}") from error
