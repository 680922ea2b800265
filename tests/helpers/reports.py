"""A report as a parser sees it: its words, its exhibits, and the pixels that are embedded."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from jpegs import Pixels
from PIL import Image

from pipeline import report

VOID = frozenset({"meta", "link", "img", "rect", "line", "stop", "image", "circle", "path", "br"})


@dataclass
class Exhibit:
    """One file of the gallery: its heading, all its words, and its images by class."""

    key: str = ""
    text: str = ""
    images: dict[str, list[Pixels]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    @property
    def before(self) -> Pixels:
        return self.images["before"][0]


class Page(HTMLParser):
    """Elements that are not closed properly, or attributes that are not what they should be, fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.text = html, ""
        self.exhibits: list[Exhibit] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert not [name for name in given if name.startswith("on")]
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag not in VOID:
            self._open.append((tag, given.get("class", "")))
        if tag == "article":
            self.exhibits.append(Exhibit())
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        inside = [kind for name, kind in self._open if name == "figure"]
        if tag == "img" and "src" in given:
            self.exhibits[-1].images.setdefault(inside[-1].split()[1], []).append(pixels(given["src"]))
        if tag == "image":
            self.exhibits[-1].images["overview"] = [pixels(given["href"])]
        if tag == "a" and self._inside("article"):
            self.exhibits[-1].links.append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag
        if tag in ("td", "th", "dt", "dd", "strong"):
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        if self._inside("style") or self._inside("script"):
            return
        self.text += data
        if self._inside("article"):
            self.exhibits[-1].text += data
            if self._inside("h3"):
                self.exhibits[-1].key += data

    def _inside(self, tag: str) -> bool:
        return any(name == tag for name, _ in self._open)

    def exhibit(self, key: str) -> Exhibit:
        return next(exhibit for exhibit in self.exhibits if exhibit.key == key)

    @property
    def words(self) -> str:
        """All text, with single spaces."""
        return " ".join(self.text.split())


def pixels(url: str) -> Pixels:
    """[H, W, 3]; gray images come as colour ones."""
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def rgb(file: bytes) -> Pixels:
    """An image file as Pillow decodes it."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def page_of(output: Path, **options) -> Page:
    """Writes the report of an output folder and reads it."""
    return Page(Path(report.write_report(output, **options)).read_text("utf-8"))
