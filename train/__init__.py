"""Training: main.py is the command line, trainer.py the loop, objectives/ the training steps."""

import pipeline  # noqa: F401  # before PyTorch: it configures how OpenMP threads wait
