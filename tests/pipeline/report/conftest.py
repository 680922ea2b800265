"""Fixtures of the report's tests."""

from places import memory
from runs import weights

__all__ = ["memory", "weights"]
