"""DALI's part of the loader: the pipeline that decodes crops, and which files it is that it cannot decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.jpeg.fallback import for_pillow
from train.data.plan import Crop, LoaderConfig

TOUCHSTONE = -1
"""The number of the image that `touchstone` makes."""


def graph_inputs(encoded: list[NDArray[np.uint8]], crops: list[Crop]) -> list[Any]:
    """In the order of the graph's external source."""
    orientation = np.array([crop.orientation for crop in crops], np.int32)
    start = np.array([(crop.top, crop.left) for crop in crops], np.int32)
    return [encoded, start, (orientation & 4) > 0, orientation >> 1 & 1, orientation & 1]


def build_pipeline(config: LoaderConfig, source: Callable[[], list[Any]], batch: int, prefetch: int) -> Any:
    """DALI's pipeline: encoded files → [batch, 3, crop, crop] uint8 on the device."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - only where it is needed: it exists for Linux alone

    device = torch.device(config.device)
    gpu = device.type == "cuda"
    number = (torch.cuda.current_device() if device.index is None else device.index) if gpu else None

    def graph() -> Any:
        encoded, start, transposed, upside_down, mirrored = fn.external_source(
            source=source,
            num_outputs=5,
            dtype=[types.UINT8, types.INT32, types.BOOL, types.INT32, types.INT32],
            ndim=[1, 1, 0, 0, 0],
        )
        pixels = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=[config.crop, config.crop],
            axes=[0, 1],
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # Pillow decodes what is stored
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo does, on the GPU too
        )
        if transposed:
            planes = fn.transpose(pixels, perm=[2, 1, 0], transpose_layout=False, output_layout="CHW")
        else:
            planes = fn.transpose(pixels, perm=[2, 0, 1], transpose_layout=False, output_layout="CHW")
        return fn.flip(planes, vertical=upside_down, horizontal=mirrored)

    pipeline = pipeline_def(
        graph,
        batch_size=batch,
        num_threads=config.threads,
        device_id=number,
        prefetch_queue_depth=prefetch,
        enable_conditionals=True,
    )()
    pipeline.build()
    return pipeline


def run_pipeline(pipeline: Any, config: LoaderConfig) -> Tensor:
    """[batch, 3, crop, crop] uint8: copied, on the device, out of the buffers that DALI uses again."""
    from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415

    device = torch.device(config.device)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    found = pipeline.run(stream)[0].as_tensor()
    images = torch.empty(found.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(found, images, cuda_stream=stream)
    return images


def find_undecodable(
    config: LoaderConfig, samples: Iterable[tuple[Crop, NDArray[np.uint8]]]
) -> Iterator[tuple[int, str]]:
    """(image, reason) of those that DALI cannot decode."""
    waiting: list[Any] = []

    def next_sample() -> Any:  # DALI cannot call a built-in function
        return waiting.pop()

    pipeline = None
    for crop, encoded in samples:
        waiting.append(graph_inputs([encoded], [crop]))
        if pipeline is None:
            pipeline = build_pipeline(config, next_sample, 1, 1)
        try:
            run_pipeline(pipeline, config)
        except RuntimeError:  # which does not say why
            pipeline = None
            yield crop.image, f"DALI cannot decode it, {_pillow_says(encoded)}"


def touchstone(side: int) -> tuple[Crop, NDArray[np.uint8]]:
    """An image that is known to be sound, to tell a fault of the images from one of the device or of DALI."""
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    return Crop(TOUCHSTONE, 0, 0, 0, 0), np.frombuffer(file.getvalue(), np.uint8)


def _pillow_says(encoded: NDArray[np.uint8]) -> str:
    try:
        Image.open(for_pillow(encoded.tobytes())).load()
    except Exception as error:  # Pillow raises half a dozen types over damaged files
        return f"nor can Pillow: {error}"
    return "though Pillow can"
