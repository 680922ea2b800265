"""The README's pictures. Without --data: a detail of a sample file, decoded by Pillow and restored. With clean
photographs and a sampler's weights, a row for each compressed photograph: the input, four samples, the mean and
standard deviation of all samples, the regression's image and the truth.

python -m bench.picture --file astronaut-q10-444.jpg --box 60 10 188 138 --output bench/before-after.png
python -m bench.picture --weights runs/posterior/generator.safetensors --data val.tar --output bench/samples.png
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from bench.photographs import SAMPLE
from kernels import Subsampling
from pipeline.engine.options import SAMPLER
from pipeline.engine.restorer import Restorer
from pipeline.inputs.listing import SourceError
from train.data.photographs import DATA_HELP, Photograph, Photographs
from train.evaluate import (
    MMSE_HELP,
    EvaluationError,
    EvaluationSettings,
    GridCollector,
    load_networks,
    modes_of,
)
from train.grid import grid
from train.measures import compress
from train.restorations import restorations

GAP = 8


def before_after(options: argparse.Namespace) -> Image.Image:
    """The same detail twice, side by side. Raises SourceError."""
    with tarfile.open(SAMPLE) as archive:
        if options.file not in archive.getnames():
            raise SourceError(f"{options.file} is no file of {SAMPLE}, which has {', '.join(archive.getnames())}")
        member = archive.extractfile(options.file)
        assert member is not None
        data = member.read()
    before = Image.open(io.BytesIO(data)).convert("RGB")
    restorer = Restorer.from_pretrained(options.weights, options.device, options.dtype)
    after = Image.fromarray(restorer.restore(data).pixels()).convert("RGB")
    left, top, right, bottom = options.box
    width, height = (right - left) * options.scale, (bottom - top) * options.scale
    picture = Image.new("RGB", (2 * width + GAP, height), "white")
    for number, image in enumerate((before, after)):
        detail = image.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(detail, (number * (width + GAP), 0))
    return picture


def choose(options: argparse.Namespace) -> list[Photograph]:
    """The photographs of --keys, in that order, or the first --images. Raises SourceError."""
    if not options.keys:
        return list(Photographs(options.data, options.images))
    found = {key: (key, image) for key, image in Photographs(options.data) if key in options.keys}
    missing = [key for key in options.keys if key not in found]
    if missing:
        raise SourceError(f"{options.data}: no photograph {', '.join(missing)}; keys are names without their suffix")
    return [found[key] for key in options.keys]


@torch.inference_mode()
def samples(options: argparse.Namespace) -> Image.Image:
    """A row for each photograph. Raises EvaluationError and SourceError."""
    networks = load_networks(options.weights, options.mmse, options.device, options.dtype)
    modes = modes_of(EvaluationSettings((options.quality,), samples=options.samples, seed=options.seed), networks)
    sheet = GridCollector()
    for key, image in tqdm(choose(options), unit="img", leave=False):
        compressed = compress(key, image, options.quality, Subsampling.from_label(options.sampling))
        found = restorations(compressed, networks, modes & {"projected", "mean"}, options.samples, options.seed)
        sheet.add(compressed, found)
    return grid(sheet.rows)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--weights", default=SAMPLER, help="[%(default)s]")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--output", type=Path, help="a PNG [before-after.png or, with --data, samples.png, in bench/]")
    one = result.add_argument_group("before and after")
    one.add_argument("--file", default="astronaut-q10-444.jpg", help="a member of the sample shard [%(default)s]")
    one.add_argument("--box", type=int, nargs=4, default=[60, 10, 188, 138], help="left, top, right, bottom in pixels")
    one.add_argument("--scale", type=int, default=3, help="enlargement, by nearest neighbour [%(default)s]")
    many = result.add_argument_group("samples")
    many.add_argument("--data", type=Path, help=DATA_HELP)
    many.add_argument("--keys", nargs="+", metavar="KEY", help="photographs to show [the first --images]")
    many.add_argument("--images", type=int, default=4, help="[%(default)s]")
    many.add_argument("--quality", type=int, default=10, help="[%(default)s]")
    many.add_argument("--sampling", choices=[s.label for s in Subsampling], default="4:2:0", help="[%(default)s]")
    many.add_argument("--samples", type=int, default=16, help="draws for the mean and the deviation [%(default)s]")
    many.add_argument("--seed", type=int, default=0, help="of the noise [%(default)s]")
    many.add_argument("--mmse", help=MMSE_HELP)
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    output = options.output or Path(__file__).with_name("samples.png" if options.data else "before-after.png")
    try:
        picture = samples(options) if options.data else before_after(options)
        picture.save(output, "PNG", optimize=True)
    except (EvaluationError, SourceError, ValueError, OSError) as error:
        print(f"picture: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
