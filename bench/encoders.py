"""Lossless encoders on restored photographs: CPU time, size, and whether they release the GIL.

python -m bench.encoders --data val.tar --quality 10 75 --limit 8

Every encoder gets what the pipeline has, [3, H, W] uint8, interleaved in memory. Packages that are not installed
are left out: pip install isal zlib-ng deflate opencv-python-headless imagecodecs pylibjxl pillow-jxl-plugin.

CPU time is that of the process with all its threads, in the best of --repeat rounds, in which the encoders take turns.
"Other threads" is the CPU time that a thread computing in Python gets per second of the encoder's; near 0 the encoder
holds the GIL.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from bench.machine import processor, versions
from bench.markdown import header, line
from bench.photographs import command_line, load_or_exit
from bench.pillow import to_jpeg
from pipeline.engine.options import SAMPLER
from pipeline.engine.restorer import Restorer
from pipeline.outputs import formats

Planes = NDArray[np.uint8]
Encoder = Callable[[Planes], bytes]
BASE = "PNG: Pillow, level 1"
PACKAGES = ("pillow", "isal", "zlib-ng", "deflate", "opencv-python-headless", "imagecodecs", "pylibjxl",
            "pillow-jxl-plugin")  # fmt: skip
HUFFMAN, RLE = 2, 3  # zlib's strategies


@dataclass
class EncoderCost:
    """cpu: seconds of the best round over all images. size: bytes. others: the share of CPU time that other threads
    got, in each round."""

    cpu: float = float("inf")
    size: int = 0
    others: list[float] = field(default_factory=list)


def interleaved(planes: Planes) -> Planes:
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def by_pillow(format: str, planes: Planes, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(interleaved(planes)).save(out, format, **options)
    return out.getvalue()


def average_png(compress: Callable[[bytes], bytes], planes: Planes) -> bytes:
    """The pipeline's PNG rows in another library's zlib stream."""
    rows = b"".join(band.tobytes() for band in formats._average_rows(planes))
    return compress(rows)


def by_strategy(module: ModuleType, strategy: int, data: bytes) -> bytes:
    stream = module.compressobj(1, 8, 15, 9, strategy)
    return b"".join((stream.compress(data), stream.flush()))


def optional(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


def encoders() -> Iterator[tuple[str, Encoder]]:
    """(name, function) of every encoder whose library is installed; the pipeline's in bold."""
    yield BASE, partial(by_pillow, "PNG", compress_level=1)
    yield "PNG: Pillow, level 1, Huffman only", partial(by_pillow, "PNG", compress_level=1, compress_type=HUFFMAN)
    yield "PNG: Pillow, level 1, run lengths", partial(by_pillow, "PNG", compress_level=1, compress_type=RLE)
    yield from png_streams()
    if cv2 := optional("cv2"):
        cv2.setNumThreads(1)
        yield "PNG: OpenCV", lambda x: cv2.imencode(".png", interleaved(x[::-1]))[1].tobytes()
        fast = [cv2.IMWRITE_PNG_STRATEGY, HUFFMAN, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
        yield "PNG: OpenCV, Sub, Huffman only", lambda x: cv2.imencode(".png", interleaved(x[::-1]), fast)[1].tobytes()
    if imagecodecs := optional("imagecodecs"):
        yield "PNG: imagecodecs, libpng, level 1", lambda x: imagecodecs.png_encode(interleaved(x), 1)
        yield "PNG: imagecodecs, libspng, level 1", lambda x: imagecodecs.spng_encode(interleaved(x), 1)
    yield "**`--format png`**", lambda x: formats.encode_image(x, "png")
    yield "**`--format webp`**", lambda x: formats.encode_image(x, "webp")
    if imagecodecs:
        options = {"lossless": True, "effort": 1, "numthreads": 1}
        yield "JPEG XL: imagecodecs, effort 1", lambda x: imagecodecs.jpegxl_encode(interleaved(x), **options)
    if optional("pillow_jxl"):
        yield "JPEG XL: pillow-jxl-plugin, effort 1", partial(by_pillow, "JXL", lossless=True, effort=1, num_threads=1)
    if optional("pylibjxl"):
        yield "**`--format jxl`**", lambda x: formats.encode_image(x, "jxl")
    yield "**`--format npy`**", lambda x: formats.encode_image(x, "npy")


def png_streams() -> Iterator[tuple[str, Encoder]]:
    """zlib streams of rows filtered as in the pipeline: a whole PNG except for its checksums."""
    if isal := optional("isal.isal_zlib"):
        for level in range(4):
            yield f"Average rows, isal, level {level}", partial(average_png, partial(isal.compress, level=level))
    if zlib_ng := optional("zlib_ng.zlib_ng"):
        yield "Average rows, zlib-ng, level 1", partial(average_png, partial(zlib_ng.compress, level=1))
        for name, strategy in (("Huffman only", HUFFMAN), ("run lengths", RLE)):
            yield f"Average rows, zlib-ng, {name}", partial(average_png, partial(by_strategy, zlib_ng, strategy))
    if deflate := optional("deflate"):
        yield "Average rows, libdeflate, level 1", partial(average_png, lambda data: deflate.zlib_compress(data, 1))


def measure(tested: dict[str, Encoder], images: list[Planes], repeat: int) -> dict[str, EncoderCost]:
    """The encoders take turns, so that other load on the machine affects all of them."""
    costs = {name: EncoderCost() for name in tested}
    large = np.tile(images[0].transpose(1, 2, 0), (6, 6, 1)).transpose(2, 0, 1)
    with ThreadPoolExecutor(1) as pool:
        for _ in tqdm(range(repeat), leave=False):
            for name, encoder in tested.items():
                cpu = time.process_time()
                costs[name].size = sum(len(encoder(image)) for image in images)
                costs[name].cpu = min(costs[name].cpu, time.process_time() - cpu)
                costs[name].others.append(share_of_others(pool.submit(encoder, large)))
    return costs


def share_of_others(encoded: Future[bytes]) -> float:
    """Computes in Python until the encoder is done; this thread's CPU time divided by the encoder's, at most 1."""
    own, process = time.thread_time(), time.process_time()
    while not encoded.done():
        sum(range(100))
    own, process = time.thread_time() - own, time.process_time() - process
    return min(1.0, own / (process - own))


def table(costs: dict[str, EncoderCost], megapixels: float) -> str:
    base = costs[BASE]
    lines = [header(["encoder", "CPU ms/MP", "times as fast", "bytes a pixel", "size", "other threads"])]
    for name, cost in costs.items():
        cells = [
            f"{cost.cpu / megapixels * 1e3:.1f}",
            f"{base.cpu / cost.cpu:.1f}",
            f"{cost.size / megapixels / 1e6:.3f}",
        ]
        lines.append(line([name, *cells, f"{cost.size / base.size:.3f}", f"{np.median(cost.others):.1f}"]))
    return "\n".join(lines)


def main() -> int:
    parser = command_line(__doc__, limit=8)
    parser.add_argument("--quality", type=int, nargs="+", default=[10, 75], help="[10 75]")
    parser.add_argument("--weights", default=SAMPLER, help="[%(default)s]")
    parser.add_argument("--repeat", type=int, default=7, help="rounds [%(default)s]")
    options = parser.parse_args()
    photographs = load_or_exit(options)
    restorer = Restorer.from_pretrained(options.weights, "cpu")
    tested = dict(encoders())
    print(f"`python -m bench.encoders {' '.join(sys.argv[1:])}`, {processor()}, {versions(PACKAGES)}.")
    for quality in options.quality:
        images = [restorer.restore(to_jpeg(image, quality, "4:2:0")).image.numpy() for image in photographs]
        megapixels = sum(image[0].size for image in images) / 1e6
        costs = measure(tested, images, options.repeat)
        print(f"\nQuality {quality}, {len(images)} images, {megapixels:.2f} MP:\n\n{table(costs, megapixels)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
