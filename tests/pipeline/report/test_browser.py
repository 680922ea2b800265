"""The report in a real browser, opened from the disk: what it asks for, how it is used, how it can be read."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jpegs import encode, photograph
from runs import fill, run

from pipeline.outputs.manifest_file import MANIFEST
from pipeline.outputs.record import Record
from pipeline.report.page import REPORT, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
"""What a browser does of its own accord, switched off."""


def missing(what: str) -> None:
    """Skips, unless a browser is required."""
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what}, and REQUIRE_BROWSER=1 asks for a browser")
    pytest.skip(f"{what}: the report is not tried in a browser")


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing(f"none of {', '.join(BROWSERS)} is installed")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415
    except ImportError:
        missing("playwright is not installed")
    arguments = ["--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, and what it said and asked for."""

    page: object
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def visit(chromium) -> Iterator:
    """Opens a file in a context with the given options; afterwards no page may have complained, or have asked for
    anything but itself."""
    visits = []

    def opened(path: Path, **options) -> object:
        page = chromium.new_context(**options).new_page()
        made = Visit(page)
        visits.append(made)
        page.on("console", lambda message: made.problems.append(message.text))
        page.on("pageerror", lambda error: made.problems.append(str(error)))
        page.on("request", lambda request: made.requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for made in visits:
        made.page.context.close()
        assert made.problems == []
        assert [url[:100] for url in made.requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def report(weights, tmp_path_factory) -> Path:
    """Of three samples of a small, a large and a gray image, and of files that fail or are passed through."""
    folder = tmp_path_factory.mktemp("report")
    files = {
        "a/small.jpg": encode(photograph(90, 120), "4:2:0", 10),
        "large.jpg": encode(photograph(1100, 1300), "4:2:0", 30),
        "gray.jpg": encode(photograph(60, 50), "gray", 50),
        "fine.jpg": encode(photograph(96, 96), "4:4:4", 100),
        f"{'long' * 50}.jpg": encode(photograph(40, 40), quality=40),
        "empty.jpg": b"",
        f"{'unbroken' * 25}.jpg": b"no image",
    }
    given = ("--weights", weights[1], "--samples", "3", "--report")
    run(fill(folder / "in", files), folder / "out", *given, code=1)
    return folder / "out" / REPORT


def exhibit(page, key: str):
    return page.locator(".exhibit").filter(has=page.get_by_role("heading", name=key, exact=True))


def clip(viewer) -> float:
    """Pixels of the after image that are hidden, from the left."""
    shown = viewer.locator(".over").evaluate("image => getComputedStyle(image).clipPath")
    return float(re.findall(r"([\d.]+)px", shown)[-1])


def test_divider_moves_by_pointer_and_keys(visit, report):
    page = visit(report, viewport={"width": 1200, "height": 900})
    viewer = exhibit(page, "a/small").locator(".viewer")
    viewer.scroll_into_view_if_needed()
    divider, frame = viewer.get_by_role("slider"), viewer.locator(".frame").bounding_box()
    assert divider.get_attribute("aria-valuenow") == "50"
    assert clip(viewer) == pytest.approx(frame["width"] / 2, abs=1)
    handle = divider.bounding_box()
    middle = handle["y"] + handle["height"] / 2
    page.mouse.move(handle["x"] + handle["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 4, middle, steps=5)
    page.mouse.up()
    assert divider.get_attribute("aria-valuenow") == "25"
    assert clip(viewer) == pytest.approx(frame["width"] / 4, abs=1)
    page.mouse.move(frame["x"] + frame["width"], middle)
    assert divider.get_attribute("aria-valuenow") == "25"
    for key, expected in (("ArrowRight", 27), ("ArrowLeft", 25), ("Shift+ArrowRight", 35), ("Home", 0), ("End", 100)):
        divider.press(key)
        assert divider.get_attribute("aria-valuenow") == str(expected)
        assert clip(viewer) == pytest.approx(frame["width"] * expected / 100, abs=1)
    assert "100 per cent" in divider.get_attribute("aria-valuetext")


def test_divider_moves_by_finger(visit, report):
    page = visit(report, viewport={"width": 360, "height": 800}, has_touch=True, is_mobile=True)
    viewer = exhibit(page, "a/small").locator(".viewer")
    viewer.scroll_into_view_if_needed()
    divider, frame = viewer.get_by_role("slider"), viewer.locator(".frame").bounding_box()
    handle, devtools = divider.bounding_box(), page.context.new_cdp_session(page)
    y = handle["y"] + handle["height"] / 2

    def touch(kind: str, *points: float) -> None:
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x in points]})

    touch("touchStart", handle["x"] + handle["width"] / 2)
    for part in (0.6, 0.7, 0.8):
        touch("touchMove", frame["x"] + frame["width"] * part)
    touch("touchEnd")
    assert divider.get_attribute("aria-valuenow") == "80"
    assert clip(viewer) == pytest.approx(frame["width"] * 0.8, abs=1)


def test_zoom_by_pointer_and_keys_in_step(visit, report):
    page = visit(report, viewport={"width": 1200, "height": 900})
    viewer = exhibit(page, "a/small").locator(".viewer")

    def widths() -> set[float]:
        return {viewer.locator(image).bounding_box()["width"] for image in (".under", ".over", ".frame")}

    for zoom in (1, 2, 4, 8):
        button = viewer.get_by_role("button", name=f"{zoom}\N{MULTIPLICATION SIGN}")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert widths() == {120 * zoom}
    assert viewer.locator(".over").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    scroller = viewer.locator(".scroller")
    scroller.press("-")
    assert widths() == {480}
    viewer.get_by_role("slider").press("+")
    assert widths() == {960}
    viewer.get_by_role("button", name="2\N{MULTIPLICATION SIGN}").focus()
    page.keyboard.press("Enter")
    assert widths() == {240}


def test_panning_leaves_the_line_where_it_is(visit, report):
    page = visit(report, viewport={"width": 1200, "height": 900})
    viewer = exhibit(page, "large").locator(".viewer")
    viewer.get_by_role("button", name="4\N{MULTIPLICATION SIGN}").click()
    viewer.locator(".scroller").scroll_into_view_if_needed()
    scroller, box = viewer.locator(".scroller"), viewer.locator(".scroller").bounding_box()
    before, clipped = scroller.evaluate("e => [e.scrollLeft, e.scrollTop]"), clip(viewer)
    assert before[0] > 100
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 250, steps=4)
    page.mouse.up()
    assert scroller.evaluate("e => [e.scrollLeft, e.scrollTop]") == [before[0] + 100, before[1] + 50]
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert clip(viewer) == pytest.approx(clipped + 100, abs=1)
    handle = viewer.get_by_role("slider").bounding_box()
    assert handle["x"] + handle["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=10)


def test_samples_and_heat_map(visit, report):
    page = visit(report)
    shown = exhibit(page, "a/small")
    assert shown.locator(".pictures .after img").count() == 3
    heat = shown.locator(".pictures .deviation")
    assert heat.locator("img").is_visible()
    assert heat.locator("img").evaluate("image => image.naturalWidth") == 120
    assert "gray levels" in heat.get_by_role("img", name="Colour scale").get_attribute("aria-label")
    viewer = shown.locator(".viewer")
    sources = [image.get_attribute("src") for image in shown.locator(".after img, .deviation img").all()]
    assert len(set(sources)) == 4
    for number, name in enumerate(("Sample 0", "Sample 1", "Sample 2", "Deviation")):
        viewer.get_by_role("button", name=name).click()
        assert viewer.locator(".over").get_attribute("src") == sources[number]
    assert exhibit(page, "large").get_by_role("img", name="The whole image").is_visible()


CONTRASTS = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (value) => value / 255 <= 0.04045 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = (e) => {
    const style = getComputedStyle(e);
    const colours = [numbers(e instanceof SVGElement ? style.fill : style.color), behind(e)];
    const [brighter, darker] = colours.map(luminance).sort((x, y) => y - x);
    return [(brighter + 0.05) / (darker + 0.05), e.outerHTML.slice(0, 80)];
  };
  const words = (e) => [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && words(e));
  return shown.map(contrast).sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit, report, scheme):
    page = visit(report, color_scheme=scheme)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert contrasts[0][0] >= 4.5, contrasts[:3]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background.strip("rgb()").split(",")[0]) < 128) == (scheme == "dark")


def test_fits_a_phone(visit, report):
    page = visit(report, viewport={"width": 360, "height": 800}, has_touch=True, is_mobile=True)
    for details in page.locator("summary").all():
        details.click()
    for zoom in page.get_by_role("button", name="8\N{MULTIPLICATION SIGN}").all():
        zoom.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    targets = page.locator("button, summary, nav a, [role=slider], .links a")
    assert targets.count() > 30
    for box in (target.bounding_box() for target in targets.all()):
        assert min(box["width"], box["height"]) >= 44


def test_without_scripts_before_and_after_are_side_by_side(visit, report):
    page = visit(report, java_script_enabled=False)
    shown = exhibit(page, "a/small")
    assert shown.locator(".viewer").count() == 0
    before, after = (shown.locator(f".pictures .{kind} img").first.bounding_box() for kind in ("before", "after"))
    assert before["y"] == after["y"]
    assert before["x"] + before["width"] < after["x"]
    assert before["width"] > 50


def test_twenty_thousand_lines_open_soon_and_stay_small(visit, weights, tmp_path):
    """With a gallery of eight images."""
    files = {f"{n}.jpg": encode(photograph(500, 600, n), "4:4:4", 5) for n in range(4)}
    files |= {f"{n}.jpg": encode(photograph(100, 120, n), "4:4:4", 100) for n in range(4, 8)}  # with mismatches
    out = tmp_path / "out"
    run(fill(tmp_path / "in", files), out, "--weights", weights[0])
    with (out / MANIFEST).open("a") as file:
        for number in range(20_000):
            name = f"folder/{number:05}"
            fields = {"size": (1000, 1500), "sampling": "4:2:0", "quality": 10 + number % 85, "coefficients": 2_250_000}
            record = Record(name, f"{name}.jpg", "restored", outputs=(f"{name}.png",), mismatches=0, **fields)
            if number % 50 == 0:
                record = Record(name, f"{name}.jpg", "failed", f"truncated: the file ends at byte {number}")
            file.write(record.to_json() + "\n")
    path = write_report(out)
    assert 2_000_000 < path.stat().st_size < 15_000_000
    page = visit(path)
    assert "20,008 inputs" in page.locator(".verdict").text_content()
    assert page.locator(".exhibit").count() == 8
    loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    milliseconds = [page.evaluate(loaded) for _ in range(3) if page.reload()]
    print("loaded after", milliseconds, "ms;", path.stat().st_size, "bytes")
    assert 0 < min(milliseconds) < 10_000  # a bound for slow machines; on a desktop it is less than one second
