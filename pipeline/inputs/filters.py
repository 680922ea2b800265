"""Which inputs are restored, and what happens to the others.

filters = Filters(max_quality=90, exclude=("thumbs/*",))
filters.by_name("thumbs/a.jpg")         # why it is left out, or None
filters.apply(layout)                   # the layout, or FilteredOut with the reason
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pipeline.jpeg.bitstream import Layout
from pipeline.jpeg.errors import JpegError, UnsupportedJpeg

PassedThrough = Literal["decode", "copy", "skip"]
PASSED_THROUGH: tuple[str, ...] = get_args(PassedThrough)


class FilteredOut(UnsupportedJpeg):
    """A file that the filters leave out; the message is the reason. layout: its header, or what is wrong with it."""

    def __init__(self, reason: str, layout: Layout | JpegError) -> None:
        super().__init__(reason, layout)
        self.layout = layout
        self.size = layout.size

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Filters:
    """Which inputs are restored. The others are passed through, with the reason in the manifest.

    min_quality, max_quality: bounds of the file's quality, the nearest of libjpeg's 1..100.
    min_size: minimum of the shorter side, in pixels.
    include, exclude: glob patterns. A pattern with a slash is matched against the path below the file's input, a tar
        counting as a folder; one without against the file's name. `*` also matches slashes.
    passed_through: what happens to inputs that are not restored, by a filter or because they are not modelled: decoded
        by Pillow, copied byte for byte, or no output."""

    min_quality: int | None = None
    max_quality: int | None = None
    min_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    passed_through: PassedThrough = "decode"

    def __str__(self) -> str:
        """The fields that differ from the defaults. Equal texts mean equal outputs."""
        changed = {x.name: getattr(self, x.name) for x in fields(self) if getattr(self, x.name) != x.default}
        return ", ".join(
            f"{name.replace('_', '-')} {shlex.join(value) if isinstance(value, tuple) else value}"
            for name, value in changed.items()
        )

    def apply(self, layout: Layout | JpegError, reason: str | None = None) -> Layout | JpegError:
        """The layout, or FilteredOut. reason: why the file's name is left out, from `by_name`."""
        if reason is None and isinstance(layout, Layout):
            reason = self._by_header(layout)
        if reason is None:
            return layout
        return FilteredOut(reason, layout)

    def by_name(self, source: str) -> str | None:
        """Why a file is left out by its path below its input; None if it is not."""
        if self.include and not _matches(source, self.include):
            return f"not in --include {shlex.join(self.include)}"
        if pattern := _matches(source, self.exclude):
            return f"in --exclude {shlex.quote(pattern)}"
        return None

    def _by_header(self, layout: Layout) -> str | None:
        quality, side = layout.quality, min(layout.size)
        if self.min_quality is not None and quality < self.min_quality:
            return f"quality {quality} is below --min-quality {self.min_quality}"
        if self.max_quality is not None and quality > self.max_quality:
            return f"quality {quality} is above --max-quality {self.max_quality}"
        if self.min_size is not None and side < self.min_size:
            return f"the shorter side of {side} pixels is below --min-size {self.min_size}"
        return None


ALL_FILES = Filters()


def _matches(source: str, patterns: Iterable[str]) -> str:
    """The first pattern that the source matches, or an empty string."""
    name = source.rpartition("/")[2]
    found = (p for p in patterns if fnmatch.fnmatchcase(source if "/" in p else name, p))
    return next(found, "")
