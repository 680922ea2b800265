"""The gallery: images of a few files before and after, in full or cropped, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.inputs.remote import Address
from pipeline.jpeg.orientation import UPRIGHT, turn_upright
from pipeline.outputs.files import link_to, read_inputs, read_outputs
from pipeline.outputs.record import Record
from pipeline.report.pictures import (
    Box,
    Pixels,
    choose_box,
    data_url,
    decode_after,
    decode_before,
    deviation,
    overview,
    webp,
)

BUDGET = 10_000_000
"""Bytes of the gallery's images; base64 in HTML adds a third."""

MIN_CROP = 32 * 32
"""Pixels of a crop, at least."""


@dataclass(frozen=True)
class GalleryImage:
    """An image for HTML. link: relative URL of the whole output file, or empty."""

    url: str
    label: str
    link: str = ""


@dataclass(frozen=True)
class GalleryEntry:
    """One file in the gallery.

    why: the reason for which it was chosen.
    size: (height, width) of the whole image in pixels; box: the part that is shown.
    deviation: map of the samples' standard deviation, if there are several; scale: gray levels at its scale's end.
    overview: the whole image, reduced, if only a part is shown."""

    record: Record
    why: str
    size: tuple[int, int]
    box: Box
    before: GalleryImage
    after: tuple[GalleryImage, ...]
    deviation: GalleryImage | None
    scale: int
    overview: GalleryImage | None

    @property
    def cropped(self) -> bool:
        """Whether only a part of the image is shown."""
        return (self.box.height, self.box.width) != self.size


@dataclass
class _Comparison:
    """A file whose outputs are being read. Only crops of its images, upright, are kept.

    upright: whether the outputs are stored like that; orientation: as which they are stored."""

    record: Record
    why: str
    jpeg: bytes
    pixels: int
    upright: bool
    orientation: int = UPRIGHT
    box: Box | None = None
    size: tuple[int, int] = (0, 0)
    before: Pixels | None = None
    overview: bytes | None = None
    after: dict[str, Pixels] = field(default_factory=dict)
    problem: str = ""

    def add(self, name: str, file: bytes) -> None:
        """Adds an output. Raises ValueError and OSError if it is damaged or does not have the input's size."""
        stored = decode_after(file)
        after = turn_upright(stored, self.orientation)
        if self.box is None or self.before is None:
            height, width = stored.shape[:2]
            before, orientation = decode_before(self.jpeg, height * width)
            if not self.upright:
                self.orientation, after = orientation, turn_upright(stored, orientation)
            if before.shape != after.shape:
                raise ValueError("the output is not of the input's size")
            self.size, self.jpeg = (after.shape[0], after.shape[1]), b""
            self.box = choose_box(before, after, self.pixels)
            self.before = self.box.of(before).copy()
            if (self.box.height, self.box.width) != self.size:
                self.overview = webp(overview(before))
        elif after.shape[:2] != self.size:
            raise ValueError("the outputs differ in size")
        self.after[name] = self.box.of(after).copy()

    def exhibit(self, budget: int) -> tuple[GalleryEntry, int]:
        """The gallery entry, and its number of bytes: at most `budget`, unless that is too small for any image.
        Requires that all outputs have been added."""
        assert self.box is not None and self.before is not None
        record, samples = self.record, [self.after[name] for name in self.record.outputs]
        heat, scale = deviation(samples) if len(samples) > 1 else (None, 0)
        images = [self.before, *samples] + ([heat] if heat is not None else [])
        inner, files = _fit_budget(images, budget - len(self.overview or b""))
        box = Box(self.box.top + inner.top, self.box.left + inner.left, inner.height, inner.width)
        if (box.height, box.width) != self.size and self.overview is None:  # the whole image did not fit the budget
            self.overview = webp(overview(self.before))
        labels = [f"Sample {n}" for n in range(len(samples))] if len(samples) > 1 else ["Restored"]
        after = [
            GalleryImage(data_url(file), label, link_to(record, name))
            for file, label, name in zip(files[1:], labels, record.outputs, strict=False)
        ]
        whole = GalleryImage(data_url(self.overview), "Overview") if self.overview is not None else None
        heat_map = GalleryImage(data_url(files[-1]), "Standard deviation") if heat is not None else None
        before = GalleryImage(data_url(files[0]), "Ordinary decoder")
        exhibit = GalleryEntry(record, self.why, self.size, box, before, tuple(after), heat_map, scale, whole)
        return exhibit, sum(map(len, files)) + len(self.overview or b"")


def _fit_budget(images: Sequence[Pixels], budget: int) -> tuple[Box, list[bytes]]:
    """(a centred box, the images' parts in it as files of at most `budget` bytes together). images: [H, W, 3] uint8
    each, of one size."""
    box = Box(0, 0, *images[0].shape[:2])
    while True:
        files = [webp(box.of(image)) for image in images]
        total = sum(map(len, files))
        if total <= budget or box.height * box.width <= MIN_CROP:
            return box, files
        box = box.smaller(min(0.97, 0.97 * (max(budget, 0) / total) ** 0.5))


def make_gallery(
    output: Address,
    inputs: Sequence[Address],
    chosen: Sequence[tuple[Record, str]],
    budget: int = BUDGET,
    *,
    upright: bool = False,
) -> tuple[list[GalleryEntry], list[tuple[str, str]]]:
    """(the entries that can be shown, (source, reason) of the others), in the order of `chosen`. upright: whether the
    run turned its outputs.

    Does not raise for files that cannot be read any more. In memory are the JPEG files, crops, and one output at a
    time."""
    jpegs = dict(read_inputs(inputs, [record.source for record, _ in chosen]))
    comparisons: dict[str, _Comparison] = {}
    for record, why in chosen:
        if record.source in jpegs:
            pixels = budget // len(chosen) // (len(record.outputs) + 1)
            comparisons[record.source] = _Comparison(record, why, jpegs[record.source], pixels, upright)
    owners = {name: found for found in comparisons.values() for name in found.record.outputs}
    for name, file in read_outputs(output, [found.record for found in comparisons.values()]):
        if not owners[name].problem:
            _add(owners[name], name, file)
    exhibits: list[GalleryEntry] = []
    skipped: list[tuple[str, str]] = []
    left = len(chosen)
    for record, _ in chosen:
        comparison = comparisons.get(record.source)
        problem = "the input cannot be read any more" if comparison is None else comparison.problem
        if comparison is not None and not problem and len(comparison.after) < len(record.outputs):
            problem = "an output cannot be read any more"
        if comparison is None or problem:
            skipped.append((record.source, problem))
        else:
            exhibit, used = comparison.exhibit(budget // left)
            budget -= used
            exhibits.append(exhibit)
        left -= 1
    return exhibits, skipped


def _add(comparison: _Comparison, name: str, file: bytes) -> None:
    try:
        comparison.add(name, file)
    except Exception as error:  # of an image library, if the file was changed
        comparison.problem = f"{name}: {str(error) or type(error).__name__}"
