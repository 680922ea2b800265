"""Helpers to check configuration values. Each configuration dataclass checks its own fields in __post_init__;
train/config.py checks conditions on several sections."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """An invalid configuration; the message names the key."""


def expect(config: Any, key: str, holds: bool, wanted: str) -> None:
    """Raises ConfigError unless `holds`. key: a field of `config`, or `section.field` of one of its sections. wanted:
    the expected value, for the message."""
    if not holds:
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        raise ConfigError(f"{key}: expected {wanted}, got {value!r}")


def expect_positive(config: Any, *keys: str) -> None:
    """Raises ConfigError unless all of these fields are above 0 (NaN is not)."""
    for key in keys:
        expect(config, key, getattr(config, key) > 0, "more than 0")


def expect_not_negative(config: Any, *keys: str) -> None:
    """Raises ConfigError unless all of these fields are 0 or more (NaN is not)."""
    for key in keys:
        expect(config, key, getattr(config, key) >= 0, "0 or more")
