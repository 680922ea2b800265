"""JPEG bytes in, certified images out. In Python:

    from pipeline import Restorer

    Restorer.from_pretrained().restore("photo.jpg").to_pil().save("photo.png")

On the command line: python -m pipeline.restore --help.
"""

import os

# OpenMP threads that spin while they wait take CPU time from single-threaded stages and other processes; threads that
# sleep immediately slow the network down. This spin count, some tens of microseconds, is a compromise. GNU's OpenMP,
# PyTorch's on Linux, reads it once, when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from pipeline.engine.results import Failure, Restored

__all__ = ["Failure", "Options", "Restored", "Restorer"]
