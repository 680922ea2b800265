"""Runs distributed over ranks, or over a Ray cluster."""
