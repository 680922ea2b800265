"""Weights on disk: safetensors, with the generator's configuration in the file's own metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from model.generator import Generator, GeneratorConfig

FORMAT = "jpeg-posterior generator 1"
SHIPPED = Path(__file__).parent / "weights"


class WeightsError(ValueError):
    """Weights that cannot be found or used; the message says what was expected."""


@dataclass(frozen=True)
class Loaded:
    """A generator in evaluation mode, the first 16 hexadecimal digits of its file's SHA-256, and the file's name."""

    generator: Generator
    digest: str
    name: str


def save(generator: Generator, path: Path, note: str = "", dtype: torch.dtype = torch.float32) -> None:
    """Writes the weights in `dtype`, whole or not at all. The same weights and note make the same file."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(generator.config)), "note": note}
    header, rest = _parts(serialise(tensors, metadata))
    header["__metadata__"] = metadata  # safetensors shuffles it
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path, len(text).to_bytes(8, "little") + text + rest)


def write_whole(path: Path, data: bytes) -> None:
    """Replaces the file at once: whoever is killed, or finds the disk full, leaves the old one."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def resolve(name: str) -> Path:
    """A shipped name ("mmse") or a path → the path. Raises WeightsError."""
    shipped = SHIPPED / f"{name}.safetensors"
    if "/" not in name and shipped.exists():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.safetensors"))) or "none"
    raise WeightsError(f"no weights {name!r}: give a .safetensors file, or one of those shipped: {names}")


def load(name: str) -> Loaded:
    """Loads shipped weights by name, or any by path, in float32. Raises WeightsError."""
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
            f"{path} holds a sampler of before noise version 3, with noise in its residual blocks; a noise head at "
            "full resolution has replaced that (model/noise_head.py): use the sampler that ships, or train one by "
            "train/configs/posterior.yaml"
        )
    try:
        with torch.device("meta"):  # no random numbers are drawn, and no memory taken, for what is loaded anyway
            generator = Generator(GeneratorConfig(**json.loads(metadata["config"])))
        generator.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"the weights in {path} do not fit their configuration: {error}") from error
    digest = hashlib.sha256(data).hexdigest()[:16]
    return Loaded(generator.eval().requires_grad_(False), digest, path.stem)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a sound safetensors file, and what follows it. Its length is in the first eight bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]
