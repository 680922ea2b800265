"""What a configuration allows and its user probably did not mean: said at the start, on stderr."""

from __future__ import annotations

from pathlib import Path

from train.config import Config


def notices(config: Config) -> list[str]:
    """A line for each."""
    found, optimiser, data = [], config.optimiser, config.data
    if optimiser.warmup >= optimiser.steps:
        found.append(
            f"optimiser.warmup: {optimiser.warmup} steps are not fewer than the {optimiser.steps} of the run, so that "
            "the learning rate only rises"
        )
    if data.validation and (shared := _inside(data.validation, data.train)):
        found.append(f"data.validation: {data.validation} is in {shared}: the network is validated on what it learns")
    return found


def _inside(path: str, others: list[str]) -> str | None:
    """Which of the other paths is this one or a folder that it is in."""
    real = Path(path).resolve()
    return next((other for other in others if real.is_relative_to(Path(other).resolve())), None)
