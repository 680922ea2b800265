"""Verifies the certificates of a whole run in several processes; one thread reads the files (outputs/certificates.py).

for verdict in verify_certificates(output, inputs, max_pixels, workers=8):
    verdict.is_true, verdict.found, verdict.problem"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from pipeline.engine.memory import SharedMemory
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.stage import item_stage
from pipeline.engine.worker import WorkerLauncher
from pipeline.inputs.remote import Address
from pipeline.outputs.certificates import Check, Verdict, judge, read_checks, verdicts

IMAGES_PER_WORKER = 2
"""Images that have been read for each worker and not yet been judged."""


def verify_certificates(
    output: Address, inputs: Sequence[Address], max_pixels: int, workers: int = 1
) -> Generator[Verdict, None, None]:
    """A verdict for each line with a certificate about the file's own coefficients, in the manifest's order. inputs:
    where they are now. max_pixels: of an input. workers: processes; 1: none but this one. Raises OSError and
    RemoteError for a manifest that cannot be read."""
    stage, prepare = item_stage(partial(judge, max_pixels=max_pixels), lambda check: True), _use_one_thread
    with ExitStack() as stack:
        processes = None
        if workers > 1:
            processes = stack.enter_context(WorkerLauncher([stage.do], SharedMemory(1), prepare))
        scheduler = Scheduler(
            [stage], _failed, workers=workers, max_items=IMAGES_PER_WORKER * workers, processes=processes
        )
        yield from verdicts(stack.enter_context(scheduler).run(read_checks(output, inputs)))


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _failed(check: Check, error: Exception) -> Check:
    return check.judged(problem=str(error) or repr(error))
