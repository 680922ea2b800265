"""The README's picture: a detail of a sample file as an ordinary decoder shows it, and restored.

python bench/picture.py --file astronaut-q10-444.jpg --box 60 10 188 138 --output bench/before-after.png
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

from PIL import Image

from pipeline.restorer import DEFAULT_WEIGHTS, Restorer

SAMPLE = Path(__file__).parents[1] / "pipeline" / "sample" / "sample.tar"
GAP = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="astronaut-q10-444.jpg", help="a member of the sample shard [%(default)s]")
    parser.add_argument("--box", type=int, nargs=4, default=[60, 10, 188, 138], help="left top right bottom, pixels")
    parser.add_argument("--scale", type=int, default=3, help="enlargement, by repetition [%(default)s]")
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help="[%(default)s]")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("before-after.png"))
    options = parser.parse_args()
    with tarfile.open(SAMPLE) as archive:
        member = archive.extractfile(options.file)
        if member is None:
            raise SystemExit(f"{options.file} is no file of {SAMPLE}")
        data = member.read()
    before = Image.open(io.BytesIO(data)).convert("RGB")
    after = Image.fromarray(Restorer.from_pretrained(options.weights).restore(data).pixels()).convert("RGB")
    left, top, right, bottom = options.box
    width, height = (right - left) * options.scale, (bottom - top) * options.scale
    picture = Image.new("RGB", (2 * width + GAP, height), "white")
    for number, image in enumerate((before, after)):
        detail = image.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(detail, (number * (width + GAP), 0))
    picture.save(options.output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
