"""bench/kernels.py on a GPU: every case is checked, timed, and compared with torch_ops and kornia."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from bench.operators import kornia_jpeg
from bench.operators.cases import (
    DTYPES,
    Case,
    Operators,
    Settings,
    all_cases,
    bytes_needed,
    in_torch,
    make_inputs,
    ours,
    run,
)
from bench.operators.check import disagreement
from bench.operators.table import SECOND, Row, cuda_line, cuda_table, device_line
from bench.operators.timing import copy_bandwidth, time_cuda
from kernels import torch_ops
from kernels.torch_ops import blocks

NO_TIME = "no time left"
COMPILED_MEGAPIXELS = 16
"""The largest size for torch.compile, which compiles for each size again."""


@contextmanager
def whole_images() -> Iterator[None]:
    """torch_ops works in bands that fit a CPU's cache. On a GPU they only add launches and code to compile, so here
    it takes whole images."""
    before = blocks.BAND_PIXELS
    blocks.BAND_PIXELS = 1 << 62
    try:
        yield
    finally:
        blocks.BAND_PIXELS = before


def compile_ahead(cases: list[Case], device: torch.device, seconds: float) -> None:
    """Compiles in several processes; this one reads the cache. What is not done after `seconds`, or fails, is
    compiled, and reported, at its first use."""
    from kernels.triton_ops.warm_up import EDGES, operator_tasks, warm_up  # noqa: PLC0415  # needs Triton

    operators = {case.operator for case in cases} | {"encode", "decode"}  # they make the inputs of the others
    operators |= {EDGES} if any(case.edges for case in cases) else set()
    samplings, dtypes = dict.fromkeys(case.sampling for case in cases), dict.fromkeys(case.dtype for case in cases)
    warm_up(operator_tasks(operators, samplings, [DTYPES[name] for name in dtypes], device), seconds=seconds)


def reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:100] if text else ''}"


def attempt(row: Row, name: str, measure: Callable[[], float]) -> None:
    """Records a time, or why there is none."""
    try:
        row.seconds[name] = measure()
    except torch.OutOfMemoryError:
        row.notes[name] = "out of memory"
    except Exception as error:
        row.notes[name] = reason(error)
    torch.cuda.empty_cache()


def sets_of(case: Case) -> int:
    """How many sets of inputs and results fill three times the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(64, -(-3 * cache // bytes_needed(case))))


def check(case: Case, device: torch.device) -> str:
    """How one operator, sampling and dtype is wrong on small images; empty if it is right."""
    try:
        wrong = disagreement(case, ours(), device)
    except Exception as error:
        wrong = reason(error)
    torch.cuda.empty_cache()
    return wrong


def has_second_configuration(case: Case) -> bool:
    from kernels.triton_ops import KERNELS  # noqa: PLC0415

    return case.operator in KERNELS and len(KERNELS[case.operator].configurations) > 1


@contextmanager
def second_configuration(case: Case) -> Iterator[None]:
    """Inside, the operator's kernel is launched with its second configuration."""
    from kernels.triton_ops import KERNELS  # noqa: PLC0415

    kernel = KERNELS[case.operator]
    kernel.choice = 1
    try:
        yield
    finally:
        kernel.choice = 0


def time_row(row: Row, settings: Settings, codec: Any, device: torch.device) -> None:
    case, sets = row.case, sets_of(row.case)
    inputs = [make_inputs(case, device, seed) for seed in range(sets)]

    def timed(call: Callable[[int], object]) -> Callable[[], float]:
        return lambda: time_cuda(call, sets, settings.seconds, settings.repetitions)

    attempt(row, "kernel", timed(lambda k: run(ours(), case, inputs[k])))
    if has_second_configuration(case):
        with second_configuration(case):
            attempt(row, SECOND, timed(lambda k: run(ours(), case, inputs[k])))
    if "torch_ops" in settings.against and case.operator == "project_exact":
        row.notes["torch_ops"] = "not in PyTorch"
    elif "torch_ops" in settings.against:
        attempt(row, "torch_ops", timed(lambda k: run(in_torch(), case, inputs[k])))
    if codec is not None and kornia_jpeg.applies(case):
        calls = [kornia_jpeg.prepare(codec, case, one) for one in inputs]
        attempt(row, "kornia", timed(lambda k: calls[k]()))


def time_compiled(row: Row, settings: Settings, device: torch.device) -> None:
    """torch_ops under torch.compile, which makes its constants, such as the DCT's matrices, anew in each call."""
    torch._dynamo.reset()
    operators = Operators(
        torch.compile(torch_ops.encode, dynamic=False),
        torch.compile(torch_ops.decode, dynamic=False),
        torch.compile(torch_ops.roundtrip, dynamic=False),
        torch.compile(torch_ops.project, dynamic=False),
        in_torch().project_exact,
    )
    sets = sets_of(row.case)
    inputs = [make_inputs(row.case, device, seed) for seed in range(sets)]
    attempt(
        row,
        "compiled",
        lambda: time_cuda(lambda k: run(operators, row.case, inputs[k]), sets, settings.seconds, settings.repetitions),
    )


def kinds_of(rows: list[Row]) -> list[list[Row]]:
    """Groups of rows that differ only in their size."""
    return [list(group) for _, group in groupby(rows, key=lambda row: replace(row.case, images=0))]


def to_compile(rows: list[Row]) -> list[Row]:
    """Of each kind the row of 16 megapixels, or the nearest below; `decode`, the slowest to compile, last."""
    chosen = []
    for kind in kinds_of(rows):
        fitting = [row for row in kind if row.case.images <= COMPILED_MEGAPIXELS]
        chosen += [row for row in fitting[-1:] if row.case.operator != "project_exact" and row.kernel]
    return sorted(chosen, key=lambda row: row.case.operator == "decode")


def measure_kinds(rows: list[Row], settings: Settings, codec: Any, device: torch.device, end: float) -> Iterator[Row]:
    """Fills in everything except `compiled`, until the time `end`; yields each row when it is done."""
    for kind in kinds_of(rows):
        wrong = check(kind[0].case, device) if time.monotonic() < end else NO_TIME
        for row in kind:
            if not wrong and time.monotonic() < end:
                try:
                    time_row(row, settings, codec, device)
                except Exception as error:  # from making the inputs
                    row.notes["kernel"] = reason(error)
            else:
                row.notes["kernel"] = wrong or NO_TIME
            yield row


def measure_compiled(rows: list[Row], settings: Settings, device: torch.device, end: float) -> None:
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # they are constants
    for row in tqdm(to_compile(rows), desc="torch.compile", unit="case", leave=False):
        if time.monotonic() < end:
            time_compiled(row, settings, device)
        else:
            row.notes["compiled"] = NO_TIME


def kornia_codec(settings: Settings, device: torch.device) -> Any:
    """None where it is not wanted, not installed, or wrong."""
    codec, wrong = kornia_jpeg.checked(device) if "kornia" in settings.against else (None, "")
    if wrong:
        print(f"WRONG, not timed: {wrong}")
    return codec


def report(rows: list[Row], copy: float) -> bool:
    """Prints the table and what is missing from it. Returns whether every kernel was right."""
    print(cuda_table(rows, copy))
    print("Goals are for an H100. Columns of other implementations: how many times as long they take.")
    late = sum(NO_TIME in row.notes.values() for row in rows)
    if late:
        print(f"{late} of {len(rows)} cases lack a figure, as time ran out: give more --minutes, or fewer cases")
    failed = [row for row in rows if row.notes.get("kernel", NO_TIME) != NO_TIME]
    for row in failed:
        print(f"FAILED: {row.case.name} {row.case.sampling.label} {row.case.dtype}: {row.notes['kernel']}")
    return not failed


def measure(settings: Settings, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Prints the table, and on stderr each row when it is measured. Returns (figures for --json, whether every kernel
    was right)."""
    end = time.monotonic() + 60 * settings.minutes
    cases = all_cases(settings.operators, settings.samplings, settings.dtypes, settings.megapixels, settings.quality)
    rows, copy = [Row(case) for case in cases], copy_bandwidth()
    print(f"{device_line(device)}; quality {settings.quality}; copy {copy / 1e9:.0f} GB/s, read and written")
    with whole_images():
        codec = kornia_codec(settings, device)
        compile_ahead(cases, device, 30 * settings.minutes)
        measured = measure_kinds(rows, settings, codec, device, end)
        for row in tqdm(measured, total=len(rows), desc="kernels", unit="case", leave=False):
            tqdm.write(cuda_line(row, copy), file=sys.stderr)
        if "compiled" in settings.against:
            measure_compiled(rows, settings, device, end)
    right, figures = report(rows, copy), [row.figures(copy) for row in rows]
    return {"device": device_line(device), "copy_gigabytes_a_second": copy / 1e9, "rows": figures}, right
