"""Compiles kernels before they are needed, in several processes at once, into Triton's cache on disk.

One kernel takes 16 to 25 seconds, and without this they would be compiled one after another, where they are first used.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path

import torch
import triton
from tqdm import tqdm

from kernels import triton_ops
from kernels.coefficients import Coefficients, Subsampling

OPERATORS = (
    "encode",
    "decode",
    "roundtrip",
    "roundtrip+backward",
    "project",
    "project+backward",
    "project_exact",
)

Task = Callable[[], object]
"""Launches kernels once. It is pickled for another process."""


def launch_once(operator: str, sampling: Subsampling, dtype: torch.dtype, device: torch.device) -> None:
    """Compiles and launches the kernels of one operator, on an image of one MCU."""
    height, width = sampling.mcu
    x = torch.zeros(1, sampling.components, height, width, dtype=dtype, device=device)
    x.requires_grad_(operator.endswith("+backward"))
    tables = torch.ones(1, sampling.components, 8, 8, dtype=torch.int32, device=device)
    shapes = [sampling.plane_blocks(component, (height, width)) for component in range(sampling.components)]
    planes = tuple(torch.zeros(1, *shape, 8, 8, dtype=torch.int16, device=device) for shape in shapes)
    c = Coefficients(planes, tables, sampling, (height, width))
    launch: dict[str, Callable[[], object]] = {
        "encode": lambda: triton_ops.encode(x, tables, sampling),
        "decode": lambda: triton_ops.decode(c),
        "roundtrip": lambda: triton_ops.roundtrip(x, tables, sampling),
        "roundtrip+backward": lambda: triton_ops.roundtrip(x, tables, sampling).sum().backward(),
        "project": lambda: triton_ops.project(x, c, 0.0),
        "project+backward": lambda: triton_ops.project(x, c, 0.0).sum().backward(),
        "project_exact": lambda: triton_ops.project_exact(x, c),
    }
    launch[operator]()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operator_tasks(
    operators: Iterable[str], samplings: Iterable[Subsampling], dtypes: Iterable[torch.dtype], device: torch.device
) -> dict[str, Task]:
    """A task for each operator, sampling and dtype of the images, by its name."""
    return {
        f"{operator} {sampling.label} {str(dtype).removeprefix('torch.')}": partial(
            launch_once, operator, sampling, dtype, device
        )
        for operator, sampling, dtype in product(operators, samplings, dtypes)
    }


def warm_up(
    tasks: Mapping[str, Task],
    sources: Iterable[Path] = (),
    *,
    processes: int = 0,
    seconds: float | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Runs the tasks in so many processes (0: one for each core but one) and returns what failed, by name, with the
    reason. Nothing is done when the same tasks have succeeded before with the same cache, versions and sources.

    sources: files of the tasks' kernels besides kernels/triton_ops. seconds: what is not done by then is left to its
    first use. The processes are spawned, so the calling script needs the usual `if __name__ == "__main__":`."""
    stamp = Path(triton.knobs.cache.dir) / f"jpeg-posterior-{_digest(tasks, sources)}"
    with _locked(stamp):
        if stamp.exists():
            return {}
        failed = _run(tasks, processes or max(1, len(os.sched_getaffinity(0)) - 1), seconds, progress)
        if not failed:
            stamp.touch()
    return failed


def _run(tasks: Mapping[str, Task], processes: int, seconds: float | None, progress: bool) -> dict[str, str]:
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    futures = {pool.submit(task): name for name, task in tasks.items()}
    failed = dict.fromkeys(tasks, "no time left")
    bar = tqdm(
        total=len(tasks), desc="compiling kernels", unit="kernel", leave=False, disable=not progress, file=sys.stderr
    )
    with bar, suppress(TimeoutError):
        for future in as_completed(futures, seconds):
            error = future.exception()
            failed.pop(futures[future])
            if error is not None:
                failed[futures[future]] = f"{type(error).__name__}: {error}"
            bar.update()
    pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _digest(tasks: Iterable[str], sources: Iterable[Path]) -> str:
    """Of all that decides what is compiled."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    known = hashlib.blake2b("\0".join([triton.__version__, device, *sorted(tasks)]).encode(), digest_size=8)
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *sources):
        known.update(path.read_bytes())
    return known.hexdigest()


@contextmanager
def _locked(stamp: Path) -> Iterator[None]:
    """One process of this machine at a time; the others find the stamp when their turn comes."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with stamp.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
