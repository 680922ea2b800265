"""What bench/restore.py runs."""
