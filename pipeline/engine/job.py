"""The description of a run: inputs, outputs and options."""

from __future__ import annotations

from dataclasses import dataclass

from model.generator import NOISE_VERSION
from pipeline.engine.restorer import Restorer
from pipeline.inputs.filters import ALL_FILES, Filters
from pipeline.inputs.listing import lasting_addresses
from pipeline.inputs.rank_share import SINGLE_RANK, Share
from pipeline.inputs.remote import Address
from pipeline.outputs.formats import Format
from pipeline.outputs.manifest import Manifest
from pipeline.outputs.record import Retry, RunIdentity


@dataclass(frozen=True)
class Job:
    """What `run` does. The fields are the command line's options.

    device, dtype: of the identity. On a cluster, where they are the workers', no device, and the option's text.
    limit: number of inputs, in the order of the listing, after which the run ends; None: all."""

    restorer: Restorer
    inputs: tuple[Address, ...]
    output: Address
    seed: int = 0
    format: Format = "png"
    shards: bool = False
    workers: int = 0
    overwrite: bool = False
    retry_failed: Retry = ""
    verify: bool = False
    quiet: bool = False
    share: Share = SINGLE_RANK
    device: str = ""
    dtype: str = ""
    filters: Filters = ALL_FILES
    limit: int | None = None
    provenance: bool = True
    upright: bool = False

    def identity(self) -> RunIdentity:
        """What must be equal when a run is resumed."""
        restorer, options = self.restorer, self.restorer.options
        return RunIdentity(
            weights=restorer.digest,
            mode=restorer.mode,
            seed=self.seed,
            samples=options.samples,
            format=self.format,
            shards=self.shards,
            input="\n".join(map(str, lasting_addresses(self.inputs))),
            frontend=options.frontend,
            noise=1 if restorer.mode == "mmse" else NOISE_VERSION,
            device=self.device,
            dtype=self.dtype,
            tile=options.tile,
            batch=options.batch,
            compile=options.compile,
            strength=options.strength,
            filters=str(self.filters),
            provenance=self.provenance and self.format != "npy",
            upright=self.upright,
        )

    def open_manifest(self) -> Manifest:
        """Opens the output folder's manifest. Raises SinkError."""
        return Manifest.open(self.output, self.identity(), self.overwrite, self.share.part, self.retry_failed)
