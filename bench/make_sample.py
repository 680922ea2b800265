"""Builds pipeline/sample/: CREDITS.md and sample.tar, twelve JPEG files of many kinds, each with a note on its origin.

Needs the photographs of two packages. The same versions give the same bytes:

    pip install pillow==13.0.0 simplejpeg==1.9.0 scikit-image==0.26.0
    apt-get download lomiri-wallpapers-16.04=20.04.0-2 && dpkg-deb -x lomiri-wallpapers-16.04_*.deb wallpapers
    python -m bench.make_sample --wallpapers wallpapers
"""

import argparse
import hashlib
import io
import json
import tarfile
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps

CC0 = "CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/"
CC_BY = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
NASA = "No known copyright restrictions, released into the public domain"
LOMIRI = "lomiri-wallpapers-16.04 20.04.0-2 (Debian), https://gitlab.com/ubports/development/core/lomiri-wallpapers"
AITZOL = "Aitzol Berasategi, 2018"
SKIMAGE = "scikit-image 0.26.0, skimage/data"
CHANGES = "Cropped, reduced in size and compressed. Nobody named here endorses this use."
FIXED_DATE = bytes.fromhex("07ea 0001 0001 0000 0000 0000")  # replaces an ICC profile's time of creation


class Photograph(NamedTuple):
    """A photograph in its package. file: its name there. sha256: the start of its hash."""

    title: str
    author: str
    licence: str
    origin: str
    file: str
    sha256: str


class Variant(NamedTuple):
    """One JPEG file: the part `box` (left, top, right, bottom) of a photograph, reduced to `size` (width, height)."""

    photograph: str
    size: tuple[int, int]
    quality: int
    sampling: str
    kind: str = ""
    box: tuple[int, int, int, int] | None = None

    @property
    def key(self) -> str:
        """The member's name without its extension; it describes the file."""
        parts = self.photograph, f"q{self.quality:02d}", self.sampling.replace(":", ""), self.kind
        return "-".join(part for part in parts if part)


# fmt: off
PHOTOGRAPHS = {name: Photograph(*fields) for name, *fields in (
    ("mountains", "picosdeeuropa", AITZOL, CC_BY, LOMIRI, "picosdeeuropa_by_Aitzol_Berasategi.jpg", "414d0072"),
    ("dogs", "friends", AITZOL, CC_BY, LOMIRI, "friends_by_Aitzol_Berasategi.jpg", "cc40e313"),
    ("stream", "life", AITZOL, CC_BY, LOMIRI, "life_by_Aitzol_Berasategi.jpg", "4c119350"),
    ("dandelion", "seeding", "Clemens Engelhardt, 2018", CC0, LOMIRI, "seeding_by_Clements_Engelhardt.jpg", "a5634d1a"),
    ("brushes", "Picture 1A", "Trevor “Freespace”, 2018", CC_BY, LOMIRI, "Picture_1A_by_freespace.jpg", "89e86af3"),
    ("fig", "Picture 0B", "Trevor “Freespace”, 2018", CC_BY, LOMIRI, "Picture_0B_by_freespace.jpg", "c8c0ab18"),
    ("drum", "Wine", "Jakub Mede, 2018", CC_BY, LOMIRI, "Wine_by_Jakkub_Mede.jpg", "d2e96e6d"),
    ("coffee", "Coffee cup", "Rachel Michetti", CC0, SKIMAGE, "coffee.png", "cc02f8ca"),
    ("cat", "Chelsea the cat", "Stefan van der Walt", CC0, SKIMAGE, "chelsea.png", "596aa1e7"),
    ("astronaut", "Eileen Collins", "NASA, https://flic.kr/p/r9qvLn", NASA, SKIMAGE, "astronaut.png", "88431cd9"),
)}
# fmt: on
VARIANTS = (
    Variant("brushes", (385, 303), 5, "4:2:0"),
    Variant("mountains", (512, 384), 10, "4:2:0"),
    Variant("astronaut", (255, 383), 10, "4:4:4", box=(100, 0, 355, 383)),
    Variant("mountains", (321, 241), 15, "gray"),
    Variant("dogs", (381, 499), 20, "4:2:0", "progressive", box=(320, 480, 1606, 2166)),
    Variant("cat", (401, 267), 20, "4:4:4"),
    Variant("coffee", (423, 281), 30, "4:2:0", "icc"),
    Variant("stream", (481, 321), 30, "4:2:2"),
    Variant("drum", (297, 445), 40, "4:2:0", "orientation"),
    Variant("fig", (357, 243), 40, "4:4:0"),
    Variant("dandelion", (500, 281), 50, "4:2:0", "progressive"),
    Variant("stream", (400, 272), 75, "4:2:0"),
)


def load(photograph: Photograph, wallpapers: Path) -> Image.Image:
    """The original, RGB. Raises SystemExit for another version than the one that is credited."""
    skimage = Path(str(files("skimage")))
    folder = skimage / "data" if photograph.origin == SKIMAGE else wallpapers / "usr/share/backgrounds"
    data = (folder / photograph.file).read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(photograph.sha256):
        raise SystemExit(f"{folder / photograph.file} is not the version that is credited here")
    return Image.open(io.BytesIO(data)).convert("RGB")


def compress(image: Image.Image, variant: Variant) -> bytes:
    """The JPEG file, by libjpeg-turbo: in Pillow, except for 4:4:0, which Pillow does not write, in simplejpeg."""
    image = ImageOps.fit(image.crop(variant.box), variant.size, Image.Resampling.LANCZOS)
    if variant.sampling == "4:4:0":
        return bytes(simplejpeg.encode_jpeg(np.asarray(image), variant.quality, "RGB", "440", fastdct=False))
    options: dict[str, Any] = {"quality": variant.quality, "progressive": variant.kind == "progressive"}
    if variant.sampling == "gray":
        image = image.convert("L")
    else:
        options["subsampling"] = variant.sampling
    if variant.kind == "icc":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options["icc_profile"] = profile[:24] + FIXED_DATE + profile[36:]
    if variant.kind == "orientation":
        image = image.transpose(Image.Transpose.ROTATE_90)
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6  # EXIF orientation: rotate clockwise by 90 degrees for display
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wallpapers", type=Path, required=True, help="the unpacked Debian package")
    parser.add_argument("--output-dir", type=Path, default=Path("pipeline/sample"), help="default: %(default)s")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    lines = ["# The photographs in sample.tar", "", f"{CHANGES} Their licences are their own, not the code's.", ""]
    with tarfile.open(options.output_dir / "sample.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for variant in VARIANTS:
            photograph = PHOTOGRAPHS[variant.photograph]
            note = photograph._asdict() | {"changes": CHANGES}
            del note["sha256"]
            data = compress(load(photograph, options.wallpapers), variant)
            for suffix, content in ((".jpg", data), (".json", json.dumps(note, indent=1, ensure_ascii=False).encode())):
                member = tarfile.TarInfo(variant.key + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            lines.append(
                f"- `{variant.key}.jpg`: “{photograph.title}” by {photograph.author}. {photograph.licence}. "
                f"From {photograph.origin}, {photograph.file}."
            )
            print(f"{variant.key:32}{variant.size[0]:5} x {variant.size[1]:3}{len(data):8,} bytes")
    (options.output_dir / "CREDITS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
