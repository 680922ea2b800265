"""What bench/kernels.py runs."""
