"""Weights files: safetensors with the generator's configuration in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from model.atomic import write_atomically
from model.generator import Generator, GeneratorConfig
from model.noise_head import KERNEL, dense_filters

FORMAT = "jpeg-posterior generator 1"
"""Metadata value that identifies the files of this program."""

FILTERS = "noise_head.filters.weight"

SHIPPED = Path(__file__).parent / "weights"


class WeightsError(ValueError):
    """Weights that cannot be found or loaded; the message says what was expected."""


@dataclass(frozen=True)
class LoadedGenerator:
    """The content of a weights file."""

    generator: Generator  # in evaluation mode, frozen, float32
    digest: str  # the first 16 hexadecimal digits of the file's SHA-256
    name: str  # the file's name without its extension


def save(generator: Generator, path: Path, note: str = "") -> None:
    """Writes the weights in float32, atomically. The file is a function of the weights and the note. Raises OSError."""
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(generator.config)), "note": note}
    header, rest = _parts(serialise(tensors, metadata))
    header["__metadata__"] = metadata  # safetensors does not keep its order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + rest)


def resolve(name: str) -> Path:
    """The path of weights given by a shipped name ("mmse") or a path. Raises WeightsError."""
    shipped = SHIPPED / f"{name}.safetensors"
    if "/" not in name and shipped.exists():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.safetensors"))) or "none"
    raise WeightsError(f"no weights {name!r}: give a .safetensors file, or one of those shipped: {names}")


def load(name: str) -> LoadedGenerator:
    """Loads shipped weights by name, or any weights by path. Raises WeightsError."""
    path = resolve(name)
    try:
        data = path.read_bytes()
        tensors = {key: tensor.float() for key, tensor in deserialise(data).items()}
        metadata = _parts(data)[0].get("__metadata__", {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read weights from {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} does not hold a generator of this program (format {metadata.get('format')!r})")
    if "before.0.noise_weight" in tensors or "after.0.noise_weight" in tensors:
        raise WeightsError(
            f"{path} holds a sampler of noise version 2 or older, with noise in its residual blocks. A noise head at "
            "full resolution has replaced that (model/noise_head.py): use the shipped sampler, or train one with "
            "train/configs/posterior.yaml"
        )
    if (filters := tensors.get(FILTERS)) is not None and filters.shape[1:] == (1, KERNEL, KERNEL):
        tensors[FILTERS] = dense_filters(filters)
    try:
        with torch.device("meta"):  # without memory and random numbers for initial values that are replaced
            generator = Generator(GeneratorConfig(**json.loads(metadata["config"])))
        generator.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"the weights in {path} do not fit their configuration: {error}") from error
    digest = hashlib.sha256(data).hexdigest()[:16]
    return LoadedGenerator(generator.eval().requires_grad_(False), digest, path.stem)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file, whose length is in the first 8 bytes, and the bytes after it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]
