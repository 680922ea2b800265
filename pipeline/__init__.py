"""JPEG bytes in, certified images out. In Python:

    from pipeline import Restorer

    Restorer.from_pretrained().restore("photo.jpg").to_pil().save("photo.png")

On the command line: python -m pipeline.restore --help.
"""

import os

# OpenMP threads that wait by spinning take the core from the single-threaded stages and from other processes; ones that
# sleep at once slow the network. This many turns, some tens of microseconds, serve both. GNU's runtime, PyTorch's on
# Linux, reads it once, when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import Restored

__all__ = ["Options", "Restored", "Restorer"]
