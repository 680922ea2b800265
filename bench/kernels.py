"""How fast the operators of kernels/ are, and beside whom: see --help.

The code is in operators/. This file has only the name, which is also that of the package that it measures: for the
scripts of this folder it would hide the package, so it puts the checkout first on the path, and gives way to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from operators.main import main

    sys.exit(main())

if __name__ == "kernels":
    # Another script of this folder has imported the package and found this file. Python hands on what is in sys.modules
    # when a module's code ends; type checkers, which see this file only, are told what the package exports.
    del sys.modules["kernels"]
    from kernels.coefficients import Coefficients, Subsampling
    from kernels.operators import decode, encode, excess, project, project_exact, roundtrip
    from kernels.tables import nearest_quality, quality_to_tables

    __all__ = [
        "Coefficients",
        "Subsampling",
        "decode",
        "encode",
        "excess",
        "nearest_quality",
        "project",
        "project_exact",
        "quality_to_tables",
        "roundtrip",
    ]
