"""How fast the operators of kernels/ are, and beside whom: `python -m bench.kernels --help`.

The code is in bench/operators/. Started as a file, `python bench/kernels.py`, it starts itself again as a module: for a
script this folder comes first in Python's search for modules, and this file would hide the package that it measures.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not __package__:
        os.execv(sys.executable, [sys.executable, "-m", "bench.kernels", *sys.argv[1:]])
    from bench.operators.main import main

    sys.exit(main())
