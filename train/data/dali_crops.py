"""The DALI pipeline that decodes crops, and the search for the files that it cannot decode."""

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

SOUND_IMAGE = -1
"""Image number of `sound_image`."""


def graph_inputs(encoded: list[NDArray[np.uint8]], crops: list[Crop]) -> list[Any]:
    """Encoded files and their crops → the outputs of the graph's external source."""
    orientation = np.array([crop.orientation for crop in crops], np.int32)
    start = np.array([(crop.top, crop.left) for crop in crops], np.int32)
    return [encoded, start, (orientation & 4) > 0, orientation >> 1 & 1, orientation & 1]


def build_pipeline(config: LoaderConfig, source: Callable[[], list[Any]], batch: int, prefetch: int) -> Any:
    """A DALI pipeline: encoded files → [batch, 3, crop, crop] uint8 on the device. source: returns `graph_inputs` of
    the next batch. prefetch: depth of DALI's queue, in batches."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - an optional dependency, for Linux only

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
            adjust_orientation=False,  # as Pillow: pixels as stored
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
    """Runs the pipeline: [batch, 3, crop, crop] uint8 on the device, copied because DALI reuses its buffers. Raises
    RuntimeError if an image cannot be decoded."""
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
    """(image, reason) for each sample that DALI cannot decode, tried one by one."""
    waiting: list[Any] = []

    def next_sample() -> Any:  # DALI does not accept a bound built-in method
        return waiting.pop()

    pipeline = None
    for crop, encoded in samples:
        waiting.append(graph_inputs([encoded], [crop]))
        if pipeline is None:
            pipeline = build_pipeline(config, next_sample, 1, 1)
        try:
            run_pipeline(pipeline, config)
        except RuntimeError:  # without the reason
            pipeline = None
            yield crop.image, f"DALI cannot decode it, {_pillow_says(encoded)}"


def sound_image(side: int) -> tuple[Crop, NDArray[np.uint8]]:
    """A valid image, to distinguish broken images from a failure of the device or of DALI."""
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    return Crop(SOUND_IMAGE, 0, 0, 0, 0), np.frombuffer(file.getvalue(), np.uint8)


def _pillow_says(encoded: NDArray[np.uint8]) -> str:
    try:
        Image.open(for_pillow(encoded.tobytes())).load()
    except Exception as error:  # Pillow raises half a dozen types over damaged files
        return f"nor can Pillow: {error}"
    return "though Pillow can"
