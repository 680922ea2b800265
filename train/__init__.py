"""Training: see main.py for the command line, trainer.py for the loop."""

import pipeline  # noqa: F401  # before PyTorch: it says how the threads are to wait
