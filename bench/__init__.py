"""Measurements of speed and quality, one question a module: `python -m bench.NAME --help`."""
