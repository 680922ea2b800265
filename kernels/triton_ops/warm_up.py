"""Compiles kernels before they are needed, in several processes at once, into Triton's cache on disk.

project_exact's kernels take up to a minute each, and without this they would be compiled one after another, where
they are first used.

python -m kernels.triton_ops.warm_up            every kernel, for this machine's GPU (into TRITON_CACHE_DIR)

`python -m pipeline.restore` compiles what it needs by itself; this is for images of machines, and for measuring.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import multiprocessing
import signal
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
from kernels.cores import available_cores
from kernels.triton_ops.launch import INTERPRETED
from kernels.triton_ops.noise import gaussian, uniform

EDGES = "project_exact_edges"
"""The part of project_exact that takes longest to compile: the search on MCUs over an image's edge."""

OPERATORS = (
    EDGES,
    "project_exact",
    "roundtrip",
    "roundtrip+backward",
    "project",
    "project+backward",
    "encode",
    "decode",
)
"""Those that take longest to compile first."""

NEEDED = (EDGES, "project_exact", "decode")
"""The operators that a restoration uses; the others are for training."""

DTYPES = (torch.float32, torch.bfloat16)

ONE_DTYPE = (EDGES, "decode")
"""Operators that are compiled for the first dtype only: decode takes no images, and a restoration's are float32."""

SOURCES = Path(__file__).parents[1]
"""The folder whose files decide what is compiled: kernels/, whose constants go into those of triton_ops."""

Task = Callable[[], object]
"""Launches kernels once. It is pickled for another process."""


def launch_once(operator: str, sampling: Subsampling, dtype: torch.dtype, device: torch.device) -> None:
    """Compiles and launches the kernels of one operator, on an image of a whole MCU and one over the edge, or in the
    two parts of project_exact only one of them."""
    height, width = sampling.mcu[0], sampling.mcu[1] + 1
    if operator == "project_exact":
        width -= 1
    elif operator == EDGES:
        height -= 1
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
        EDGES: lambda: triton_ops.project_exact(x, c),
    }
    launch[operator]()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw_noise(device: torch.device) -> None:
    """Compiles and launches the noise's kernels."""
    zeros = torch.zeros(1, 3, dtype=torch.int64, device=device)
    gaussian(zeros[:, 0], 0, 4, zeros[:, 1:], (8, 8))
    uniform(zeros[:, 0], zeros[:, 1:], (8, 8))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operator_tasks(
    operators: Iterable[str], samplings: Iterable[Subsampling], dtypes: Iterable[torch.dtype], device: torch.device
) -> dict[str, Task]:
    """A task for each operator, sampling and dtype of the images, by its name, in the order of OPERATORS. A backward
    pass compiles the forward kernel, too; those of ONE_DTYPE have the first dtype."""
    chosen, dtypes = set(operators), list(dtypes)
    chosen -= {operator.removesuffix("+backward") for operator in chosen if operator.endswith("+backward")}
    return {
        f"{operator} {sampling.label} {str(dtype).removeprefix('torch.')}": partial(
            launch_once, operator, sampling, dtype, device
        )
        for operator, sampling, dtype in product(OPERATORS, samplings, dtypes)
        if operator in chosen and (operator not in ONE_DTYPE or dtype == dtypes[0])
    }


def warm_up(
    tasks: Mapping[str, Task],
    *,
    processes: int = 0,
    seconds: float | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Runs the tasks in so many processes (0: one for each core but one) and returns what failed, by name, with the
    reason. Tasks that have succeeded before with the same cache, versions and SOURCES are left out.

    seconds: what is not done by then is left to its first use. Images in channels_last and views that start elsewhere
    than at 16 bytes may need other kernels, but for project_exact's. The processes are spawned, so the calling script
    needs the usual `if __name__ == "__main__":`; raises RuntimeError in those of a script without it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # it would wait for its parent's lock
        raise RuntimeError(
            f"{sys.argv[0]}: compiles kernels in processes that import it again: put what it does into "
            'an `if __name__ == "__main__":`'
        )
    record = Path(triton.knobs.cache.dir) / f"jpeg-posterior-{_digest()}"
    with _locked(record):
        done = record.read_text().splitlines() if record.exists() else []
        missing = {name: task for name, task in tasks.items() if name not in done}
        if not missing:
            return {}
        failed = _run(missing, processes or max(1, available_cores() - 1), seconds, progress)
        with record.open("a") as names:
            names.writelines(f"{name}\n" for name in missing if name not in failed)
    return failed


def _run(tasks: Mapping[str, Task], processes: int, seconds: float | None, progress: bool) -> dict[str, str]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=spawn, initializer=_end_with_parent)
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


def _end_with_parent() -> None:
    """Lets the kernel of Linux kill this process when its parent is killed, which it would not notice."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _digest() -> str:
    """Of all that decides what a task compiles."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    known = hashlib.blake2b(f"{triton.__version__} {device}".encode(), digest_size=8)
    for path in sorted(SOURCES.rglob("*.py")):
        known.update(path.read_bytes())
    return known.hexdigest()


@contextmanager
def _locked(record: Path) -> Iterator[None]:
    """One process of this machine at a time; the others find the record when their turn comes."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_kernels(
    device: torch.device,
    processes: int = 0,
    progress: bool = True,
    *,
    operators: Iterable[str] = NEEDED,
    samplings: Iterable[Subsampling] = tuple(Subsampling),
    dtypes: Iterable[torch.dtype] = DTYPES[:1],
) -> dict[str, str]:
    """`warm_up_or_retry` for the kernels of these operators and the noise's."""
    tasks = operator_tasks(operators, samplings, dtypes, device) | {"noise": partial(draw_noise, device)}
    return warm_up_or_retry(tasks, processes, progress)


def warm_up_or_retry(tasks: Mapping[str, Task], processes: int, progress: bool) -> dict[str, str]:
    """`warm_up`; what failed in other processes is tried again in this one. Returns what fails here, too, by name, with
    the reason, and prints it."""
    failed = {}
    for name in warm_up(tasks, processes=processes, progress=progress):
        try:
            tasks[name]()
        except Exception as error:  # Triton and its compilers raise many types
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"kernels of {name} cannot be compiled: {failed[name]}", file=sys.stderr)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when something could not be compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [sampling.label for sampling in Subsampling]
    parser.add_argument("--operator", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="[all]")
    parser.add_argument("--sampling", nargs="+", choices=labels, default=labels, help="[all]")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="0: one for each core but one [0]")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or INTERPRETED):
        parser.error("PyTorch sees no GPU; `python -m kernels.triton_ops.aot` compiles for GPUs that are not here")
    device = torch.device("cpu" if INTERPRETED else "cuda")
    samplings = [Subsampling.from_label(label) for label in options.sampling]
    failed = compile_kernels(device, options.processes, operators=options.operator, samplings=samplings, dtypes=DTYPES)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
