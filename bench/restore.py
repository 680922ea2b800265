"""What a restoration costs, stage by stage, beside Pillow's plain decode and PNG of the same files in the same run.

python bench/restore.py --data val.tar --quality 10
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

from photographs import load, to_jpeg
from PIL import Image
from tqdm import tqdm

from pipeline.encode import encode_image
from pipeline.restorer import SAMPLER, Restorer
from pipeline.stopwatch import Stopwatch

JPEG_STAGES = ("bitstream", "decode", "project", "encode")


def plain(data: bytes, stopwatch: Stopwatch) -> None:
    """Pillow: decode, and write as PNG at level 1."""
    with stopwatch("pillow decode"):
        image = Image.open(io.BytesIO(data))
        image.load()
    with stopwatch("pillow png"):
        image.save(io.BytesIO(), "PNG", compress_level=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clean photographs: a tar, a folder or a file")
    parser.add_argument("--quality", type=int, default=10, help="[%(default)s]")
    parser.add_argument("--sampling", default="4:2:0", help="[%(default)s]")
    parser.add_argument("--weights", default=SAMPLER, help="[%(default)s]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    restorer = Restorer.from_pretrained(options.weights, options.device, options.dtype)
    files = [to_jpeg(image, options.quality, options.sampling) for image in load(options.data, options.limit)]
    restorer.restore(files[0])  # constants and code that the first file would pay for
    restorer.stopwatch = stopwatch = Stopwatch()
    pixels, start = 0, time.perf_counter()
    for data in tqdm(files, unit="img", leave=False):
        plain(data, stopwatch)
        restored = restorer.restore(data)
        with stopwatch("encode"):
            encode_image(restored.image.numpy())
        pixels += restored.image.shape[1] * restored.image.shape[2]
    seconds, megapixels = time.perf_counter() - start, pixels / 1e6
    stages = stopwatch.stages
    pillow = stages["pillow decode"].cpu + stages["pillow png"].cpu
    ratio = sum(stages[stage].cpu for stage in JPEG_STAGES) / pillow
    network = megapixels / stages["network"].wall
    print(f"{len(files)} files, {megapixels:.2f} MP, quality {options.quality} {options.sampling}, {restorer.device}, "
          f"{restorer.dtype}, {seconds:.1f} s")  # fmt: skip
    print(stopwatch.table(megapixels))
    print(f"JPEG stages ({', '.join(JPEG_STAGES)}): {ratio:.2f} times Pillow's decode + PNG, by CPU time")
    print(f"network: {network:.2f} MP/s")
    if options.json:
        figures = {name: vars(times) for name, times in stages.items()}
        options.json.write_text(json.dumps({"megapixels": megapixels, "stages": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
