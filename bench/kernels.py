"""Speed of the operators of kernels/, compared with other implementations: `python -m bench.kernels --help`.

The code is in bench/operators/. Run as a file, `python bench/kernels.py`, it restarts itself as a module: otherwise
Python would search this folder first, and this file would hide the package that it measures.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not __package__:
        os.execv(sys.executable, [sys.executable, "-m", "bench.kernels", *sys.argv[1:]])
    from bench.operators.main import main

    sys.exit(main())
