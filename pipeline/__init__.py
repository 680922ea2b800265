"""Bytes in, images out: see restorer.py for Python, restore.py for the command line."""

import os

# OpenMP threads that wait by spinning take the core from the single-threaded stages and from other processes; ones that
# sleep at once slow the network. This many turns, some tens of microseconds, serve both. GNU's runtime, PyTorch's on
# Linux, reads it once, when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
