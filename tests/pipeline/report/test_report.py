"""The report says what the manifest and the files say, for every kind of run, and nothing in it is taken for HTML."""

import gzip
import io
import json
import os
import random
import shutil
import tarfile

import numpy as np
import pytest
from jpegs import encode, photograph
from PIL import Image, ImageOps
from reports import Page, page_of, rgb
from runs import bag, command, exif, fill, lines, run
from shards import write_tar

from pipeline import restore
from pipeline.outputs.formats import decode_image
from pipeline.outputs.history import HISTORY, read_history
from pipeline.outputs.manifest_file import MANIFEST, manifest_name
from pipeline.outputs.record import IDENTITY, Record
from pipeline.report.__main__ import main
from pipeline.report.page import REPORT


def cmyk() -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(40, 50)).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def test_counts_certificates_reasons_and_settings(tmp_path, weights):
    files = bag() | {"cmyk.jpg": cmyk(), "empty.jpg": b""}
    files |= {f"short{n}.jpg": encode(photograph(40, 40))[: 60 + n] for n in range(7)}
    files["fine.jpg"] = encode(photograph(160, 160), "4:4:4", 100)
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights[0], "--report", code=1)
    page = Page((tmp_path / "out" / REPORT).read_text("utf-8"))
    restored = [line for line in found.values() if line["status"] == "restored"]
    mismatches = sum(line["mismatches"] for line in restored)
    coefficients = sum(line["coefficients"] for line in restored)
    assert mismatches
    assert f"{len(files)} inputs: {len(restored)} restored, 1 passed through, 8 failed." in page.words
    assert f"{mismatches:,} of {coefficients:,} coefficients differ" in page.words
    worst = max(restored, key=lambda line: line["mismatches"])
    assert f"{worst['source']} {worst['quality']} {worst['sampling']} {worst['mismatches']:,}" in page.words
    assert found["empty.jpg"]["reason"] in page.words
    assert found["cmyk.jpg"]["reason"] in page.words
    assert "7 truncated: the file ends at byte …, inside a header segment 5 examples of:" in page.words
    for sampling in ("4:4:4", "4:2:2", "4:4:0", "4:2:0", "gray"):
        assert f"{sampling} {sum(line['sampling'] == sampling for line in restored)}" in page.words
    assert f"weights (hash) {restored[0]['weights']}" in page.words
    (past,) = read_history(tmp_path / "out")
    assert past.inputs == len(files)
    assert f"{past.speed:.3g} MP/s" in page.words
    assert f"version {past.version}" in page.words
    assert page.headings[0] == "h1"
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1


@pytest.mark.parametrize("format", ["png", "webp", "npy", "jxl"])
def test_the_gallery_has_the_very_pixels_of_input_and_output(tmp_path, weights, format):
    if format == "jxl":
        pytest.importorskip("pylibjxl")
    names = ("gray", "440-q10", "422-q50", "progressive", "metadata")
    files = {f"in here/{name}.jpg": bag()[f"{name}.jpg"] for name in names}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    found = run(source, out, "--weights", weights[0], "--format", format)
    page = page_of(out)
    assert len(page.exhibits) == len(files)
    for name, data in files.items():
        exhibit, (output,) = page.exhibit(name.removesuffix(".jpg")), found[name]["outputs"]
        turns = -1 if name.endswith("metadata.jpg") else 0  # its EXIF says so, and images are shown upright
        after = np.rot90(decode_image((out / output).read_bytes()), turns)
        assert np.array_equal(exhibit.before, np.rot90(rgb(data), turns))
        assert np.array_equal(exhibit.images["after"][0], after if after.ndim == 3 else np.dstack([after] * 3))
        height, width = found[name]["size"][:: turns or 1]
        assert f"{width} \N{MULTIPLICATION SIGN} {height} pixels" in " ".join(exhibit.text.split())
        assert exhibit.links == [f"./{output.replace(' ', '%20')}"]


def test_samples_and_their_deviation(tmp_path, weights):
    files = {"a.jpg": encode(photograph(60, 90), "4:2:0", 10), "b.jpg": encode(photograph(50, 40), "gray", 20)}
    out = tmp_path / "out"
    run(fill(tmp_path / "in", files), out, "--weights", weights[1], "--samples", "3", "--seed", "5")
    page = page_of(out)
    for key in "ab":
        exhibit = page.exhibit(key)
        samples = [rgb((out / f"{key}.s{k}.png").read_bytes()) for k in range(3)]
        assert all(np.array_equal(*pair) for pair in zip(exhibit.images["after"], samples, strict=True))
        deviation = np.sqrt(np.stack(samples).astype(float).var(0, ddof=1).mean(2))
        brightness = exhibit.images["deviation"][0].astype(int).sum(2)
        assert np.corrcoef(deviation.ravel(), brightness.ravel())[0, 1] > 0.95
        assert (brightness[deviation == 0] == 4).all()
        assert "gray levels" in exhibit.text
        assert "seed 5" in exhibit.text
        assert exhibit.links == [f"./{key}.s{k}.png" for k in range(3)]


def test_members_of_shards_also_of_the_same_name(tmp_path, weights):
    pictures = [encode(photograph(40, 50, number), quality=30) for number in range(4)]
    write_tar(tmp_path / "in" / "a" / "s.tar", [("x/1.jpg", pictures[0]), ("x/1.jpg", pictures[1]), ("t.txt", b"t")])
    write_tar(tmp_path / "in" / "t.tar.gz", {"1.jpg": pictures[2]}, "w:gz")
    (tmp_path / "in" / "folder.tar").mkdir()
    fill(tmp_path / "in" / "folder.tar", {"loose.jpg": pictures[3]})
    for name, options in (("files", []), ("shards", ["--output-shards"])):
        out = tmp_path / name
        found = run(tmp_path / "in", out, "--weights", weights[0], *options, code=1)
        page = page_of(out)
        expected = {source: line for source, line in found.items() if line["status"] == "restored"}
        assert found["a/s.tar/x/1.jpg#2"]["status"] == "failed"
        assert len(page.exhibits) == len(expected) == 3
        for key, picture in (("x/1", pictures[0]), ("1", pictures[2]), ("folder.tar/loose", pictures[3])):
            assert np.array_equal(page.exhibit(key).before, rgb(picture))
            assert not np.array_equal(page.exhibit(key).images["after"][0], rgb(picture))
    assert page.exhibit("x/1").links == ["./a/s.tar"]


def test_a_single_shard_as_input_and_elsewhere_later(tmp_path, weights):
    data = encode(photograph(40, 50), quality=30)
    shard = write_tar(tmp_path / "one.tar", {"a.jpg": data})
    out = tmp_path / "out"
    run(shard, out, "--weights", weights[0])
    assert np.array_equal(page_of(out).exhibit("a").before, rgb(data))
    (tmp_path / "moved").mkdir()
    shard = shard.rename(tmp_path / "moved" / "one.tar")
    assert "one.tar/a.jpg: the input cannot be read any more" in page_of(out).words
    assert main(["--quiet", "--input-dir", str(shard), "--output-dir", str(out)]) == 0
    assert np.array_equal(Page((out / REPORT).read_text()).exhibit("a").before, rgb(data))


def test_what_is_gone_or_changed_is_left_out_and_named(tmp_path, weights):
    files = {f"{n}.jpg": encode(photograph(40, 50, n), quality=30) for n in range(5)}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"
    run(source, out, "--weights", weights[0])
    (source / "0.jpg").unlink()
    (out / "1.png").unlink()
    (out / "2.png").write_bytes(b"damaged")
    (source / "3.jpg").write_bytes(encode(photograph(20, 20)))
    page = page_of(out)
    assert [exhibit.key for exhibit in page.exhibits] == ["4"]
    for problem in (
        "0.jpg: the input cannot be read any more",
        "1.jpg: an output cannot be read any more",
        "2.jpg: 2.png: not a PNG, WebP, JPEG XL or npy file",
        "3.jpg: 3.png: the output is not of the input's size",
    ):
        assert problem in page.words
    (out / IDENTITY).write_text("{")
    shutil.rmtree(source)
    page = page_of(out)
    assert not page.exhibits
    assert "5 inputs, all restored." in page.words
    assert "missing or damaged" in page.words


def test_shards_that_are_gone_or_damaged(tmp_path, weights):
    for name in "abc":
        write_tar(tmp_path / "in" / f"{name}.tar", {f"{name}.jpg": encode(photograph(40, 50), quality=30)})
    out = tmp_path / "out"
    run(tmp_path / "in", out, "--weights", weights[0], "--output-shards")
    (tmp_path / "in" / "a.tar").write_bytes(gzip.compress(b"no tar"))
    (out / "b.tar").unlink()
    page = page_of(out)
    assert [exhibit.key for exhibit in page.exhibits] == ["c"]
    assert "a.tar/a.jpg: the input cannot be read any more" in page.words
    assert "b.tar/b.jpg: an output cannot be read any more" in page.words


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a' onmouseover='x",
    "{{ 7 * 7 }}",
    "\u202egpj.exe",
    "line\nbreak",
    "javascript:alert(1)",
    os.fsdecode(b"\xff\xfe"),
    "& &lt; שלום",
)


def test_hostile_names_stay_text(tmp_path, weights):
    data = encode(photograph(30, 30), quality=30)
    source = fill(tmp_path / "in", {f"{name.replace('/', ':')}.jpg": data for name in HOSTILE})
    write_tar(source / "t.tar", [("</script><b>.jpg", data), ("../up<i>.jpg", data), ("<i>.jpg", b"<u>not a jpeg")])
    out = tmp_path / "out"
    run(source, out, "--weights", weights[0], "--report", code=1)
    html = (out / REPORT).read_text("utf-8")
    page = Page(html)
    assert page.tags.count("script") == 1
    assert not {"b", "i", "u"} & {*page.tags}
    assert len(page.exhibits) == len(HOSTILE) + 1
    assert all(image.shape == (30, 30, 3) for exhibit in page.exhibits for image in exhibit.images["before"])
    assert page.exhibit("{{ 7 * 7 }}")  # found by its name as it is: the template's language is not run
    assert page.exhibit("\\u202egpj.exe").links == ["./%E2%80%AEgpj.exe.png"]
    assert page.exhibit("javascript:alert(1)").links == ["./javascript%3Aalert%281%29.png"]
    assert page.exhibit("\\udcff\\udcfe").links == ["./%FF%FE.png"]
    assert page.exhibit("line\\nbreak")
    assert "\u202e" not in html
    assert "../up<i>.jpg" in page.text


def test_parts_of_ranks_are_read_and_nothing_is_changed(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {f"{n}.jpg": encode(photograph(32, 32, n), quality=30) for n in range(6)})
    out = tmp_path / "out"
    given = command(source, out, "--weights", weights[0], "--workers", "1", "--world-size", "2")
    for rank in "01":
        assert restore.main([*given, "--rank", rank]) == 0
    part = (out / manifest_name("1-of-2")).read_bytes()
    with (out / manifest_name("0-of-2")).open("ab") as file:  # a line for the second time, and a torn one
        file.write(part.splitlines(keepends=True)[0] + part[:30])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    page = page_of(out)
    assert "6 inputs, all restored." in page.words
    assert len(page.exhibits) == 6
    assert len(read_history(out)) == 2
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir() if path.name != REPORT}
    assert after == before
    assert restore.main([*given, "--rank", "0", "--report"]) == 2
    assert "use --merge --report" in capfd.readouterr().err
    (out / REPORT).unlink()
    assert restore.main(["--output-dir", str(out), "--merge", "--report"]) == 0
    assert f"the report is {out / REPORT}" in capfd.readouterr().err
    assert Page((out / REPORT).read_text()).exhibits
    assert not list(out.glob("manifest.*-of-*.jsonl")) or all(HISTORY in path.name for path in out.glob("*-of-*.jsonl"))
    assert len(lines(out)) == 6
    assert len(read_history(out)) == 2


def test_the_same_lines_in_another_order_give_the_same_report(tmp_path, weights):
    files = {f"{n}.jpg": encode(photograph(32, 32, n), quality=5 + 4 * n) for n in range(20)}
    out = tmp_path / "out"
    run(fill(tmp_path / "in", files), out, "--weights", weights[0])
    first = page_of(out, gallery=6)
    assert [exhibit.key for exhibit in first.exhibits if "Lowest quality" in exhibit.text][:2] in (
        ["0", "1"],
        ["1", "0"],
    )
    assert len(first.exhibits) == 6
    shuffled = (out / MANIFEST).read_text().splitlines(keepends=True)
    random.Random(3).shuffle(shuffled)
    (out / MANIFEST).write_text("".join(shuffled))
    assert page_of(out, gallery=6).html == first.html
    assert not page_of(out, gallery=0).exhibits


def test_gallery_begins_with_the_worst_certificates(tmp_path, weights):
    files = {f"{n}.jpg": encode(photograph(64, 64, n), "4:4:4", 100 if n < 2 else 20) for n in range(8)}
    out = tmp_path / "out"
    found = run(fill(tmp_path / "in", files), out, "--weights", weights[0])
    worst = sorted((f"{n}.jpg" for n in range(2)), key=lambda name: -found[name]["mismatches"])
    assert all(found[name]["mismatches"] for name in worst)
    page = page_of(out, gallery=6)
    assert [f"{exhibit.key}.jpg" for exhibit in page.exhibits[:2]] == worst
    assert [exhibit.text.count("Most mismatches") for exhibit in page.exhibits] == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("options", [(), ("--upright",)])
def test_images_are_shown_upright(tmp_path, weights, options):
    """Before and after, however the outputs are stored."""
    data = encode(photograph(90, 60), quality=20, exif=exif(6))
    run(fill(tmp_path / "in", {"a.jpg": data}), tmp_path / "out", "--weights", weights[0], *options)
    shown = page_of(tmp_path / "out").exhibit("a")
    with Image.open(tmp_path / "out" / "a.png") as output:
        after = np.asarray(ImageOps.exif_transpose(output))
    assert np.array_equal(shown.before, np.rot90(rgb(data), -1))
    assert np.array_equal(shown.images["after"][0], after)
    assert after.shape == (60, 90, 3)


def test_in_a_store(tmp_path, weights, memory):
    data = encode(photograph(40, 50), quality=30)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        header = tarfile.TarInfo("a.jpg")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    for name, file in (("in/s.tar", buffer.getvalue()), ("in/b/b.jpg", data), ("in/c.jpg", b"no")):
        memory.fs.pipe_file(f"{memory}/{name}", file)
    for number, options in enumerate(((), ("--output-shards",))):
        out = memory / f"out{number}"
        given = ["--quiet", "--input-dir", str(memory / "in"), "--output-dir", str(out), "--weights", weights[0]]
        assert restore.main([*given, *options, "--report"]) == 1
        page = Page((out / REPORT).read_bytes().decode())
        assert "3 inputs: 2 restored, 1 failed." in page.words
        assert len(page.exhibits) == 2
        assert all(np.array_equal(exhibit.before, rgb(data)) for exhibit in page.exhibits)
        assert len(read_history(out)) == 1
        assert restore.main([*given, *options, "--retry-failed"]) == 1  # parts and times are not taken for each other
        assert len(read_history(out)) == 1


def test_times_of_runs(tmp_path, weights, capfd):
    source, out = fill(tmp_path / "in", {"a.jpg": encode(photograph(32, 48))}), tmp_path / "out"
    for expected in (1, 1):  # the second finds nothing to do
        run(source, out, "--weights", weights[0], "--dtype", "float32")
        assert len(read_history(out)) == expected
    fill(source, {"b.jpg": encode(photograph(32, 48, 1))})
    run(source, out, "--weights", weights[0], "--dtype", "float32")
    first, second = read_history(out)
    assert (first.inputs, second.inputs) == (1, 1)
    assert first.megapixels == second.megapixels == pytest.approx(32 * 48 / 1e6)
    assert (first.device, first.dtype) == ("cpu", "float32")
    with (out / f"{HISTORY}.jsonl").open("a") as file:
        file.write('{"started": 3}\n{"torn')
    assert len(read_history(out)) == 2
    run(source, out, "--weights", weights[0], "--seed", "1", "--overwrite")
    (only,) = read_history(out)
    assert only.inputs == 2
    (out / f"{HISTORY}.jsonl").unlink()
    (out / f"{HISTORY}.jsonl").mkdir()
    fill(source, {"c.jpg": encode(photograph(32, 48, 2))})
    run(source, out, "--weights", weights[0], "--seed", "1", code=2)
    assert "the outputs and their manifest are complete" in capfd.readouterr().err
    assert len(lines(out)) == 3


def test_command_line(tmp_path, weights, capfd):
    assert main(["--output-dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capfd.readouterr().err
    assert main(["--output-dir", str(tmp_path)]) == 2
    assert f"has no {IDENTITY}" in capfd.readouterr().err
    assert main(["--output-dir", "pipe:x"]) == 2
    assert main(["--output-dir", str(tmp_path), "--gallery", "-1"]) == 2
    assert "--gallery -1" in capfd.readouterr().err
    run(fill(tmp_path / "in", {"a.jpg": encode(photograph(32, 32))}), tmp_path / "out", "--weights", weights[0])
    (tmp_path / "out" / REPORT).mkdir()
    assert main(["--output-dir", str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err.startswith("report: ")
    (tmp_path / "out" / REPORT).rmdir()
    assert main(["--output-dir", str(tmp_path / "out")]) == 0
    assert capfd.readouterr().err == f"the report is {tmp_path / 'out' / REPORT}\n"
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capfd.readouterr().out


def test_an_unfinished_or_empty_run(tmp_path):
    identity = {"weights": "abc", "mode": "mmse", "input": "/nowhere", "new_field": [1]}
    (tmp_path / IDENTITY).write_text(json.dumps(identity))
    page = page_of(tmp_path)
    assert "The manifest has no lines yet." in page.words
    assert "new_field [1]" in page.words
    line = Record("a", "a.jpg", "restored", outputs=("a.png",)).to_json()
    (tmp_path / MANIFEST).write_text(f"{line}\n{line[:40]}")
    assert "One input, restored." in page_of(tmp_path).words
    dali = Record(
        "b", "b.jpg", "restored", coefficients=640, coefficients_from="dali", mismatches=0, outputs=("b.png",)
    )
    full = Record("c", "c.jpg", "failed", "no memory", transient=True)
    (tmp_path / MANIFEST).write_text(f"{dali.to_json()}\n{full.to_json()}\n")
    words = page_of(tmp_path).words
    assert "The coefficients of 1 file were recovered from pixels decoded by DALI" in words
    assert "1 no memory (1 not the file\N{RIGHT SINGLE QUOTATION MARK}s own" in words
