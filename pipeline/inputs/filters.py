"""Which inputs are restored, and what becomes of the others.

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
    """A file that the filters leave out; the message says which did. layout: its header, if that could be read."""

    def __init__(self, reason: str, layout: Layout | None = None) -> None:
        super().__init__(reason, layout)
        self.layout = layout

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Filters:
    """Inputs outside are passed through, with the reason in the manifest.

    min_quality, max_quality: bounds of the file's quality, the nearest of libjpeg's 1..100. min_size: pixels that the
    shorter side has at least. include, exclude: glob patterns; a pattern with a slash is compared with the path below
    its own input, a tar counting as a folder, another with its last part; `*` also matches slashes. passed_through:
    what becomes of inputs that are not restored, for this or another reason: decoded as they are, copied byte for byte,
    or no output at all."""

    min_quality: int | None = None
    max_quality: int | None = None
    min_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    passed_through: PassedThrough = "decode"

    def __str__(self) -> str:
        """What differs from the defaults; the same text means the same outputs."""
        changed = {x.name: getattr(self, x.name) for x in fields(self) if getattr(self, x.name) != x.default}
        return ", ".join(
            f"{name.replace('_', '-')} {shlex.join(value) if isinstance(value, tuple) else value}"
            for name, value in changed.items()
        )

    def apply(self, layout: Layout | JpegError, reason: str | None = None) -> Layout | JpegError:
        """The layout, or why the file is left out: by its name, with that reason, or by what its header says."""
        if reason is None and isinstance(layout, Layout):
            reason = self._by_header(layout)
        if reason is None:
            return layout
        return FilteredOut(reason, layout if isinstance(layout, Layout) else None)

    def by_name(self, source: str) -> str | None:
        """Why a file is left out whose path below its own input this is; None if its name is no reason."""
        if self.include and not _matches(source, self.include):
            return f"not in --include {shlex.join(self.include)}"
        if pattern := _matches(source, self.exclude):
            return f"in --exclude {shlex.quote(pattern)}"
        return None

    def _by_header(self, layout: Layout) -> str | None:
        quality, side = layout.quality, min(layout.header.size)
        if self.min_quality is not None and quality < self.min_quality:
            return f"quality {quality} is below --min-quality {self.min_quality}"
        if self.max_quality is not None and quality > self.max_quality:
            return f"quality {quality} is above --max-quality {self.max_quality}"
        if self.min_size is not None and side < self.min_size:
            return f"the shorter side of {side} pixels is below --min-size {self.min_size}"
        return None


ALL_FILES = Filters()


def _matches(source: str, patterns: Iterable[str]) -> str:
    """The first pattern that the source matches, or none."""
    name = source.rpartition("/")[2]
    found = (p for p in patterns if fnmatch.fnmatchcase(source if "/" in p else name, p))
    return next(found, "")
