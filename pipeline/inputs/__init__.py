"""Folders, tar shards and object stores → (key, bytes), in a fixed order."""
