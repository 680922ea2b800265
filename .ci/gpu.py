"""Checks and measures everything on a GPU, step by step, within a time limit; `--rehearse` does the same without one.

  .ci/gpu --out DIR                            all steps, in 8 minutes at most
  .ci/gpu --out DIR --minutes 3 --steps environment compile train --data SHARD
  .ci/gpu --out DIR --rehearse                 tiny sizes on the CPU, kernels interpreted; under five minutes

Steps, in order: {steps}.

After each step DIR/summary.json and summary.txt say what is known by then: status, seconds, figures and the log's last
lines. A failed step does not stop the others, but without `smoke` nothing that follows means much: it stops there. Time
that runs short is missing at the end. DIR holds eight files at most, none above 16 MiB: those two, log.txt,
kernels.json, restore.json, and of training generator.safetensors, checkpoint.pt and metrics.jsonl.

Wheels that the machine lacks are taken from the folder --wheels, which `.ci/wheels.py` fills, and installed beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOG_BYTES, FILE_BYTES, TAIL_LINES = 12 << 20, 16 << 20, 15
PR_SET_PDEATHSIG = 1
SAVING = 15.0
"""Seconds before the end at which no step goes on: what it leaves has to be written down."""

OK, FAILED, TIMED_OUT, NO_TIME = "ok", "failed", "timed out", "no time left"
NOT_REHEARSED, NOT_INSTALLED = "not rehearsed", "not installed"
SMOKE_TESTS = [f"tests/kernels/test_{name}.py" for name in ("noise_triton", "triton_encode", "triton_decode")]
KERNEL_TESTS = ("exact", "cuda", "project", "roundtrip", "decode", "encode")
SAMPLINGS = ("4:2:0", "4:4:4", "4:2:2", "4:4:0", "gray")
TRAINED = ("generator.safetensors", "checkpoint.pt", "metrics.jsonl")
PYTHON = sys.executable
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    out: Path
    rehearse: bool
    wheels: Path
    data: list[str]
    scratch: Path

    @property
    def training(self) -> Path:
        return self.scratch / "run"

    @property
    def site(self) -> Path:
        """Where the wheels are installed."""
        return self.wheels.with_name(f"{self.wheels.name}-site")

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.site), str(ROOT), str(ROOT / ".ci"), os.environ.get("PYTHONPATH", "")]
        chosen = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
        if self.rehearse:
            chosen |= {"CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **chosen}


@dataclass(frozen=True)
class Command:
    """arguments: of a process. environment: what is added to it."""

    arguments: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """commands: run at the same time. seconds: its limit. figures: what is read from the log, also of a failed step.
    essential: nothing goes on when it fails. reason: why it cannot be rehearsed, or a part of it. program: what it
    needs that Python packages do not bring."""

    name: str
    commands: list[Command]
    seconds: float
    figures: Callable[[str], dict[str, Any]] = lambda log: {}
    essential: bool = False
    reason: str = ""
    program: str = ""


@dataclass
class Outcome:
    step: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)


def steps(settings: Settings, seconds: float) -> list[Step]:
    """All of them, in order. seconds: until the end."""
    small = settings.rehearse
    interpreted = {"TRITON_INTERPRET": "1"} if small else {}
    device = "cpu" if small else "cuda"
    out, sample = settings.out, ROOT / "pipeline" / "sample"

    def python(*arguments: str | Path, **environment: str) -> Command:
        return Command([PYTHON, *arguments], {**interpreted, **environment})

    def pytest(*arguments: str, processes: int = CORES) -> Command:
        count = str(max(1, min(processes, CORES - 1)))
        options = ["--numprocesses", count, "--maxprocesses", count, "-p", "no:cacheprovider", "-p", "report_failures"]
        return python("-m", "pytest", *options, *arguments)

    target = [".ci/sanitizer_target.py", "--device", device]

    def sanitized(tool: str) -> Command:
        sanitizer: list[str | Path] = [] if small else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        return Command([*sanitizer, PYTHON, *target], {**interpreted, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    restore: list[str | Path] = ["--input-dir", sample, "--device", device, "--verify"]
    restore += ["--weights", "mmse"] if small else []
    every_kernel = [f"tests/kernels/test_triton_{name}.py" for name in KERNEL_TESTS]
    every_kernel += ["tests/kernels/test_noise_triton.py", "tests/pipeline/engine/test_restore_cuda.py"]
    train = [f"run.output={settings.training}", f"run.device={device}", f"run.seconds={max(10, seconds):.0f}"]
    train += [] if small else ["run.save_every=1000", "run.validate_every=1000"]
    train += [f"data.train=[{','.join(settings.data)}]"] if settings.data else []
    return [
        Step("environment", [python(".ci/describe.py", device)], 120, described, essential=True),
        Step(
            "compile",
            [
                python("-m", "kernels.triton_ops.warm_up", *(["--sampling", "gray"] if small else [])),
                python("-c", "from kernels.numba_ops import compile_kernels; compile_kernels()"),
            ],
            240,
        ),
        Step(
            "smoke",
            [pytest(*SMOKE_TESTS, "-k", "words or (size0 and not gray)", processes=8)],
            120,
            tested,
            essential=True,
        ),
        Step("repeat", [python(".ci/restore_twice.py", *restore)], 120),
        Step(
            "kernels",
            [
                python(
                    *("-m", "bench.kernels", "--quick", "--minutes", "1.2", "--device", device),
                    *("--json", out / "kernels.json"),
                    *(["--operator", "encode", "--sampling", "gray"] if small else []),
                    **{"TRITON_INTERPRET": "0"},
                )
            ],
            130,
            lambda log: kernel_figures(out / "kernels.json"),
        ),
        Step(
            "restore",
            [
                python(
                    *("-m", "bench.restore", "--quick", "--device", device, "--json", out / "restore.json"),
                    *(["--megapixels", "0.3", "--seconds", "0.1", "--weights", "mmse"] if small else []),
                    **{"TRITON_INTERPRET": "0"},
                )
            ],
            120,
            lambda log: restore_figures(out / "restore.json"),
        ),
        Step("tests", [pytest(*(["tests/kernels/test_triton_encode.py"] if small else every_kernel))], 200, tested),
        Step(
            "sanitizer-kernels",
            [python(*target, *([] if small else ["--sampling", label])) for label in SAMPLINGS[: 1 if small else None]],
            150,
        ),
        Step(
            "sanitizer",
            [sanitized("memcheck")] if small else [sanitized("memcheck"), sanitized("racecheck")],
            150,
            reason="compute-sanitizer needs a GPU: its target ran without it",
            program="" if small else "compute-sanitizer",
        ),
        Step("train", [python("-m", "train.main", *train)], max(60, seconds + 60)),
    ]


def described(log: str) -> dict[str, Any]:
    line = next((line for line in reversed(log.splitlines()) if line.startswith("{")), "{}")
    found: dict[str, Any] = json.loads(line)
    return found


def tested(log: str) -> dict[str, Any]:
    """Sums over all of pytest's closing lines."""
    counts: dict[str, int] = {}
    closing = "\n".join(line for line in log.splitlines() if re.search(r" in [\d.]+s\b", line))
    for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", closing):
        counts[what] = counts.get(what, 0) + int(number)
    return counts


def kernel_figures(path: Path) -> dict[str, Any]:
    figures = json.loads(path.read_text())
    rows = [row for row in figures.get("rows", []) if row["milliseconds"]]
    names = [f"{row['operator']} {row['sampling']}" for row in rows]
    return {
        name: f"{row['milliseconds']:.3f} ms, {100 * row['share_of_copy']:.0f} % of copy; {row['goal']}"
        for name, row in zip(names, rows, strict=True)
    } | {f"{pair['what']} beside {pair['other']}": f"{pair['ratio']:.2f}x" for pair in figures.get("pairs", [])}


def restore_figures(path: Path) -> dict[str, Any]:
    return {
        f"{size['workload']['size']['width']}x{size['workload']['size']['height']}": f"{size['rate']:.2f} MP/s"
        for size in json.loads(path.read_text())["sizes"]
    }


def install(settings: Settings, log: Any) -> None:
    """The carried wheels, once, into a folder of their own. Raises CalledProcessError."""
    wheels = sorted(settings.wheels.glob("*.whl"))
    if wheels and not settings.site.exists():
        part = settings.site.with_suffix(".part")
        pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        pip += ["--upgrade", "--target", part]
        subprocess.run([*pip, *wheels], check=True, stdout=log, stderr=subprocess.STDOUT)
        part.replace(settings.site)


def die_with_parent() -> None:
    """In a step's process: it is not to go on when this program is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(step: Step, settings: Settings, limit: float) -> tuple[str, list[str]]:
    """(status, logs) of a step's commands, all of which are killed at the limit; those that failed come last."""
    logs = [settings.scratch / f"{step.name}-{number}.log" for number in range(len(step.commands))]
    running: list[subprocess.Popen[bytes] | None] = []
    end = time.monotonic() + limit
    for command, path in zip(step.commands, logs, strict=True):
        with path.open("w") as log:
            log.write(f"$ {' '.join(map(str, command.arguments))}\n")
            log.flush()
            environment = settings.environment | command.environment
            try:
                running.append(
                    subprocess.Popen(
                        command.arguments,
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=die_with_parent,  # noqa: PLW1509  # there are no threads here
                    )
                )
            except OSError as error:
                log.write(f"{error}\n")
                running.append(None)
    try:
        found = [FAILED if process is None else wait(process, end) for process in running]
    finally:
        for process in running:
            kill(process)
    status = next((status for status in (TIMED_OUT, FAILED) if status in found), OK)
    texts = [re.sub(r"[^\n]*\r", "", path.read_bytes().decode(errors="replace")) for path in logs]
    return status, [text for _, text in sorted(zip(found, texts, strict=True), key=lambda pair: pair[0] != OK)]


def wait(process: subprocess.Popen[bytes], end: float) -> str:
    """The status of a process, which has until the clock says `end`."""
    try:
        return FAILED if process.wait(max(0.1, end - time.monotonic())) else OK
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def kill(process: subprocess.Popen[bytes] | None) -> None:
    """With all that it has started; nothing if it has ended."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def note(outcomes: list[Outcome], settings: Settings, minutes: float) -> None:
    """Writes the summaries, whole or not at all."""
    known = {"rehearsal": settings.rehearse, "minutes": minutes, "steps": [asdict(outcome) for outcome in outcomes]}
    lines = []
    for outcome in outcomes:
        lines.append(f"{outcome.step:<17} {outcome.status:<14} {outcome.seconds:6.1f} s  {outcome.reason}".rstrip())
        lines += [f"    {name}: {value}" for name, value in outcome.figures.items()]
        lines += [f"    | {line}" for line in outcome.tail]
    for name, text in (("summary.json", json.dumps(known, indent=1)), ("summary.txt", "\n".join(lines) + "\n")):
        part = settings.out / f".{name}"
        part.write_text(text)
        part.replace(settings.out / name)


def keep_log(text: str, settings: Settings) -> None:
    path = settings.out / "log.txt"
    with path.open("a") as log:
        log.write(text + "\n")
    if path.stat().st_size > LOG_BYTES:
        path.write_bytes(path.read_bytes()[-LOG_BYTES // 2 :])


def bring_home(settings: Settings) -> None:
    """Of what training wrote, the files that go home."""
    for name in TRAINED:
        path = settings.training / name
        if path.exists() and path.stat().st_size <= FILE_BYTES:
            shutil.copy(path, settings.out / name)


def check(settings: Settings, chosen: list[str], minutes: float) -> int:
    """The exit code of `main`. What training has saved comes home in any case."""
    try:
        return run_steps(settings, chosen, minutes)
    finally:
        bring_home(settings)


def run_steps(settings: Settings, chosen: list[str], minutes: float) -> int:
    """See `check`."""
    end, outcomes = time.monotonic() + 60 * minutes, list[Outcome]()
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with (settings.out / "log.txt").open("w") as log:
            install(settings, log)
    except subprocess.CalledProcessError as error:
        note([Outcome("install", FAILED, reason=str(error))], settings, minutes)
        return 1
    for name in chosen:
        left = end - time.monotonic() - SAVING
        step = next(step for step in steps(settings, 20.0 if settings.rehearse else left - 60) if step.name == name)
        if left < 10:
            outcomes.append(Outcome(name, NO_TIME))
            continue
        if step.program and shutil.which(step.program) is None:
            outcomes.append(Outcome(name, NOT_INSTALLED, reason=f"{step.program}, of the CUDA toolkit"))
            continue
        begun = time.monotonic()
        status, logs = run(step, settings, min(step.seconds, left))
        text, tail = "\n".join(logs), [line for log in logs for line in log.splitlines()[-TAIL_LINES // len(logs) :]]
        outcome = Outcome(name, status, time.monotonic() - begun, tail=tail)
        if settings.rehearse and step.reason and status == OK:
            outcome.status, outcome.reason = NOT_REHEARSED, step.reason
        try:
            outcome.figures = step.figures(text)
        except Exception as error:  # a log that was cut off
            outcome.figures = {"unreadable": f"{type(error).__name__}: {error}"}
        outcomes.append(outcome)
        keep_log(text, settings)
        note(outcomes, settings, minutes)
        print(f"{name}: {outcome.status} in {outcome.seconds:.0f} s {outcome.reason}", flush=True)
        if step.essential and status != OK:
            break
    note(outcomes, settings, minutes)
    print((settings.out / "summary.txt").read_text())
    return int(any(outcome.status in (FAILED, TIMED_OUT, NO_TIME) for outcome in outcomes))


def main() -> int:
    """Exit code 0 when every step is ok, could not be rehearsed, or needs a program that is not installed."""
    names = [step.name for step in steps(Settings(Path(), False, Path(".whl"), [], Path()), 0.0)]
    parser = argparse.ArgumentParser(
        prog=".ci/gpu",
        description=(__doc__ or "").format(steps=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, metavar="N", help="for all steps together [%(default)s]")
    add("--out", type=Path, default=Path("gpu-check"), metavar="DIR", help="made when missing [%(default)s]")
    add("--steps", nargs="+", choices=names, default=names, metavar="NAME", help="[all]")
    add("--rehearse", action="store_true", help="on a machine without a GPU, tiny")
    add("--wheels", type=Path, default=ROOT / ".whl", metavar="DIR", help="packages to install first [.whl]")
    add("--data", nargs="+", default=[], metavar="PATH", help="to train on [the sample shard's photographs]")
    options = parser.parse_args()
    data = [str(Path(path).resolve()) for path in options.data]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # runs what is to be done in the end
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(options.out.resolve(), options.rehearse, options.wheels.resolve(), data, Path(folder))
        return check(settings, [name for name in names if name in options.steps], options.minutes)


if __name__ == "__main__":
    sys.exit(main())
