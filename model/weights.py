"""Weights on disk: safetensors, with the generator's configuration in the file's own metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from model.generator import Generator, GeneratorConfig

FORMAT = "jpeg-posterior generator 1"
SHIPPED = Path(__file__).parent / "weights"


class WeightsError(ValueError):
    """Weights that cannot be found or used; the message says what was expected."""


@dataclass(frozen=True)
class Loaded:
    """A generator in evaluation mode, and the first 16 hexadecimal digits of its file's SHA-256."""

    generator: Generator
    digest: str
    name: str


def save(generator: Generator, path: Path, note: str = "", dtype: torch.dtype = torch.float32) -> None:
    """Writes the weights in `dtype`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(generator.config)), "note": note}
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(serialise(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def resolve(name: str) -> Path:
    """A shipped name ("mmse") or a path → the path. Raises WeightsError."""
    shipped = SHIPPED / f"{name}.safetensors"
    if "/" not in name and shipped.exists():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))
    raise WeightsError(f"no weights {name!r}: give a .safetensors file, or one of those shipped: {names}")


def load(name: str) -> Loaded:
    """Loads shipped weights by name, or any by path, in float32. Raises WeightsError."""
    path = resolve(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata.get("format") != FORMAT:
            raise WeightsError(f"{path} does not hold a generator of this program (format {metadata.get('format')!r})")
        generator = Generator(GeneratorConfig(**json.loads(metadata["config"])))
        generator.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise WeightsError(f"cannot load weights from {path}: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Loaded(generator.eval().requires_grad_(False), digest, path.stem)
