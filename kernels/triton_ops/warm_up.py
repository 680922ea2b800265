"""Compiles kernels before they are needed, in several processes at once, into Triton's cache on disk.

project_exact's two kernels take 20 seconds each, and without this they would be compiled one after another, where they
are first used.
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
    "project_exact",
    "roundtrip",
    "roundtrip+backward",
    "project",
    "project+backward",
    "encode",
    "decode",
)
"""Those that take longest to compile first."""

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
        "roundtrip+backward": lambda: triton_ops.roundtrip(x, tables, sampling).backward(torch.ones_like(x)),
        "project": lambda: triton_ops.project(x, c, 0.0),
        "project+backward": lambda: triton_ops.project(x, c, 0.0).backward(torch.ones_like(x, dtype=torch.float32)),
        "project_exact": lambda: triton_ops.project_exact(x, c),
    }
    launch[operator]()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operator_tasks(
    operators: Iterable[str], samplings: Iterable[Subsampling], dtypes: Iterable[torch.dtype], device: torch.device
) -> dict[str, Task]:
    """A task for each operator, sampling and dtype of the images, by its name. A backward pass compiles the forward
    kernel, too, and decode, which takes no images, has one dtype."""
    operators, dtypes = list(operators), list(dtypes)
    return {
        f"{operator} {sampling.label} {str(dtype).removeprefix('torch.')}": partial(
            launch_once, operator, sampling, dtype, device
        )
        for operator, sampling, dtype in product(operators, samplings, dtypes)
        if f"{operator}+backward" not in operators and (operator != "decode" or dtype == dtypes[0])
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
    reason. Tasks that have succeeded before with the same cache, versions and sources are left out.

    sources: files of the tasks' kernels besides kernels/triton_ops. seconds: what is not done by then is left to its
    first use. The processes are spawned, so the calling script needs the usual `if __name__ == "__main__":`."""
    record = Path(triton.knobs.cache.dir) / f"jpeg-posterior-{_digest(sources)}"
    with _locked(record):
        done = record.read_text().splitlines() if record.exists() else []
        missing = {name: task for name, task in tasks.items() if name not in done}
        if not missing:
            return {}
        failed = _run(missing, processes or max(1, len(os.sched_getaffinity(0)) - 1), seconds, progress)
        with record.open("a") as names:
            names.writelines(f"{name}\n" for name in missing if name not in failed)
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


def _digest(sources: Iterable[Path]) -> str:
    """Of all that decides what a task compiles."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    known = hashlib.blake2b(f"{triton.__version__} {device}".encode(), digest_size=8)
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *sources):
        known.update(path.read_bytes())
    return known.hexdigest()


@contextmanager
def _locked(record: Path) -> Iterator[None]:
    """One process of this machine at a time; the others find the record when their turn comes."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
