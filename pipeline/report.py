"""What a run says of itself: its progress, and the closing lines."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn, get_args

from tqdm import tqdm

from pipeline.manifest import Status


def progress_bar(total: int | None, done: int, quiet: bool) -> tqdm[NoReturn]:
    """total: inputs; None where nobody knows. done: by earlier runs."""
    where = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" if total else "{n_fmt} images [{elapsed}"
    bar = where + ", {rate_noinv_fmt}{postfix}]"
    return tqdm(total=total, initial=done, unit=" images", disable=quiet, smoothing=0.1, bar_format=bar)


def summary(
    counts: Counter[str], done: int, manifest: str, *, megapixels: float, seconds: float, how: str, table: str
) -> str:
    """What became of the inputs, how fast and how, and where the time went. done: inputs in this run."""
    fates = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in get_args(Status))
    return (
        f"{counts.total()} inputs: {fates} ({done} in this run). Manifest: {manifest}\n"
        f"{megapixels:.2f} MP in {seconds:.1f} s, {megapixels / seconds:.2f} MP/s{how}\n{table}"
    )
