"""Which rank of a distributed run this process is: as the options, torchrun or SLURM's srun say.

share = choose(None, None, os.environ)
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.inputs.rank_share import ALL, Share


def choose(rank: int | None, ranks: int | None, environment: Mapping[str, str]) -> Share:
    """By the numbers given, or else as torchrun or SLURM's srun started this process. Raises ValueError.

    A batch script of SLURM's is one process, whatever it may start later; only a step's processes are ranks."""
    said_by = "--rank and --world-size"
    if rank is None and ranks is None:
        for rank_name, ranks_name, starter in _STARTERS:
            if rank_name in environment and ranks_name in environment:
                said_by = f"{starter}'s {rank_name} and {ranks_name}"
                rank, ranks = _number(environment, rank_name), _number(environment, ranks_name)
                break
        else:
            return ALL
    if rank is None or ranks is None:
        raise ValueError("--rank and --world-size: give both or none")
    if not 0 <= rank < ranks:
        raise ValueError(f"{said_by}: rank {rank} of {ranks}: expected 0 to {ranks - 1}")
    local = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment), None)
    return Share(
        rank,
        ranks,
        local=None if local is None else _number(environment, local),
        neighbours=max(1, _number(environment, "LOCAL_WORLD_SIZE")) if "LOCAL_WORLD_SIZE" in environment else 1,
        said_by=said_by,
    )


_STARTERS = (("RANK", "WORLD_SIZE", "torchrun"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM"))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ValueError(f"{name}={environment[name]!r}: expected a number") from error
