"""Determines which rank of a distributed run this process is, from the options, torchrun or SLURM's srun.

share = choose_share(None, None, os.environ)
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.inputs.rank_share import SINGLE_RANK, Share


def choose_share(rank: int | None, world_size: int | None, environment: Mapping[str, str]) -> Share:
    """This process's share, from the numbers if they are given, else from the environment. Raises ValueError.

    A SLURM batch script is a single process; only the processes of a job step are ranks."""
    origin = "--rank and --world-size"
    if rank is None and world_size is None:
        for rank_name, ranks_name, starter in _STARTERS:
            if rank_name in environment and ranks_name in environment:
                origin = f"{starter}'s {rank_name} and {ranks_name}"
                rank, world_size = _number(environment, rank_name), _number(environment, ranks_name)
                break
        else:
            return SINGLE_RANK
    if rank is None or world_size is None:
        raise ValueError("--rank and --world-size: give both or neither")
    if not 0 <= rank < world_size:
        raise ValueError(f"{origin}: rank {rank} of {world_size}: expected 0 to {world_size - 1}")
    local_rank = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment), None)
    return Share(
        rank,
        world_size,
        local_rank=None if local_rank is None else _number(environment, local_rank),
        local_world_size=max(1, _number(environment, "LOCAL_WORLD_SIZE")) if "LOCAL_WORLD_SIZE" in environment else 1,
        origin=origin,
    )


_STARTERS = (("RANK", "WORLD_SIZE", "torchrun"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM"))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ValueError(f"{name}={environment[name]!r}: expected a number") from error
