"""Which files are restored and how far, several inputs, trials, 16 bits, and what images say of themselves."""

import io
import json
import struct
import tarfile
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, encode, photograph
from PIL import Image
from runs import SRGB, bag, command, exif, fill, images, lines, mismatches, outputs, run, weights
from shards import write_tar

from kernels import Subsampling
from kernels import encode as encode_coefficients
from pipeline import restore
from pipeline.engine.memory import bytes_needed
from pipeline.engine.options import Options
from pipeline.engine.resources import max_file_bytes
from pipeline.engine.restorer import Restorer
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.outputs.formats import EncodeError, encode_image

__all__ = ["weights"]

try:
    import pylibjxl
except ImportError:
    pylibjxl = None


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def cmyk() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photograph(40, 50)).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()


def test_strength_is_a_line_from_the_regression_to_the_sample(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(90, 101), quality=10)})
    found = {}
    for strength in ("0", "0.25", "0.5", "1"):
        line = run(source, tmp_path / strength, "--weights", weights[1], "--strength", strength)["a.jpg"]
        assert line["mismatches"] == 0
        assert line.get("strength") == (None if strength == "1" else float(strength))
        data = (tmp_path / strength / "a.png").read_bytes()
        assert mismatches((source / "a.jpg").read_bytes(), data) == 0
        found[strength] = pixels(data)
    run(source, tmp_path / "mmse", "--weights", weights[1], "--mode", "mmse")
    run(source, tmp_path / "sample", "--weights", weights[1])
    assert np.array_equal(found["0"], pixels((tmp_path / "mmse" / "a.png").read_bytes()))
    assert np.array_equal(found["1"], pixels((tmp_path / "sample" / "a.png").read_bytes()))
    far = np.sqrt(((found["1"] - found["0"]) ** 2).mean())
    assert far > 1
    for strength in ("0.25", "0.5"):
        middle = found["0"] + float(strength) * (found["1"] - found["0"])
        assert np.sqrt(((found[strength] - middle) ** 2).mean()) < 0.25 * far  # it is projected and rounded after that


def test_filtered_files_are_passed_through_with_the_reason(tmp_path, weights):
    files = {f"{q}.jpg": encode(photograph(40, 50), quality=q) for q in (10, 50, 96)} | {
        "small.jpg": encode(photograph(20, 90), quality=10),
        "not/this.jpg": encode(photograph(40, 50), quality=10),
        "cmyk.jpg": cmyk(),
        "broken.jpg": b"text",
    }
    source = fill(tmp_path / "in", files)
    options = ("--weights", weights[0], "--max-quality", "60", "--min-size", "30", "--exclude", "not/*")
    decoded = run(source, tmp_path / "decode", *options, code=1)
    assert {name: line["status"] for name, line in decoded.items() if line["status"] != "passed_through"} == {
        "10.jpg": "restored",
        "50.jpg": "restored",
        "broken.jpg": "failed",
    }
    assert decoded["96.jpg"]["reason"] == "quality 96 is above --max-quality 60"
    assert (decoded["96.jpg"]["quality"], decoded["96.jpg"]["size"]) == (96, [40, 50])
    assert "--min-size 30" in decoded["small.jpg"]["reason"]
    assert decoded["not/this.jpg"]["reason"] == "in --exclude 'not/*'"
    assert np.array_equal(pixels((tmp_path / "decode" / "96.png").read_bytes()), pixels(files["96.jpg"]))
    copied = run(source, tmp_path / "copy", *options, "--passed-through", "copy", code=1)
    skipped = run(source, tmp_path / "skip", *options, "--passed-through", "skip", code=1)
    for name, line in decoded.items():
        for other in (copied[name], skipped[name]):
            assert (line["status"], line["reason"]) == (other["status"], other["reason"])
        if line["status"] == "passed_through":
            assert copied[name]["outputs"] == [name]
            assert (tmp_path / "copy" / name).read_bytes() == files[name]
            assert skipped[name]["outputs"] == []
    assert set(images(tmp_path / "skip")) == {"10.png", "50.png"}


@pytest.mark.parametrize("how", ["copy", "skip"])
def test_a_filtered_run_goes_on_and_keeps_its_filters(tmp_path, weights, capfd, how):
    source = fill(tmp_path / "in", {f"{q}.jpg": encode(photograph(40, 50), quality=q) for q in (10, 96)})
    options = ("--weights", weights[0], "--max-quality", "60", "--passed-through", how)
    run(source, tmp_path / "out", *options)
    first = outputs(tmp_path / "out")
    run(source, tmp_path / "out", *options)
    assert outputs(tmp_path / "out") == first
    capfd.readouterr()
    assert restore.main(command(source, tmp_path / "out", "--weights", weights[0])) == 2
    assert "filters 'max-quality 60, passed-through" in capfd.readouterr().err


def test_skipped_and_copied_in_shards_beside_the_other_members(tmp_path, weights):
    files = {"a.jpg": encode(photograph(40, 50), quality=10), "b.JPG": encode(photograph(40, 50), quality=96)}
    write_tar(tmp_path / "in" / "s.tar", {**files, "b.json": b"{}"})
    options = ("--weights", weights[0], "--max-quality", "60", "--output-shards", "--passed-through")
    for how, expected in (("copy", ["a.png", "b.JPG", "b.json"]), ("skip", ["a.png", "b.json"])):
        run(tmp_path / "in", tmp_path / how, *options, how)
        with tarfile.open(tmp_path / how / "s.tar") as shard:
            assert sorted(shard.getnames()) == expected
            if how == "copy":
                assert shard.extractfile("b.JPG").read() == files["b.JPG"]


def test_limit_ends_a_trial_that_can_go_on(tmp_path, weights):
    write_tar(
        tmp_path / "in" / "s.tar", {f"{n}.jpg": encode(photograph(20, 30, n)) for n in range(6)} | {"z.json": b""}
    )
    options = ("--weights", weights[0])
    for _ in range(2):
        found = run(tmp_path / "in", tmp_path / "out", *options, "--limit", "4")
        assert sorted(found) == [f"s.tar/{n}.jpg" for n in range(4)]
    assert len(run(tmp_path / "in", tmp_path / "out", *options)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "1.5"], "expected 0 (regression) to 1 (sample)"),
        (["--strength", "0.5", "--mode", "mmse"], "needs mode sample"),
        (["--strength", "0.5", "--mode", "mean"], "needs mode sample"),
        (["--limit", "0"], "--limit 0: expected at least 1"),
        (["--limit", "1", "--output-shards"], "--limit: not with --output-shards"),
        (["--min-quality", "60", "--max-quality", "50"], "no file can match both"),
        (["--max-quality", "101"], "--max-quality 101: expected 1 to 100"),
        (["--merge", "--dry-run"], "--dry-run: not with --merge"),
        (["--format", "png16", "--verify"], "png16 has no certificate"),
        (["--limit", "1", "--rank", "0", "--world-size", "2"], "--limit: not with 2 ranks"),
        (["--limit", "1", "--engine", "ray"], "--limit: not with --engine ray"),
        (["--dry-run", "--engine", "ray"], "--dry-run: not with --engine ray"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, weights, capfd, options, message):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(16, 16))})
    assert restore.main(command(source, tmp_path / "out", "--weights", weights[1], *options)) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lists_in_a_configuration_file(tmp_path, weights):
    fill(tmp_path, {"x/a.jpg": encode(photograph(16, 16)), "y/b.jpg": encode(photograph(16, 16))})
    settings = {
        "input-dir": [str(tmp_path / "x"), str(tmp_path / "y")],
        "output-dir": str(tmp_path / "out"),
        "weights": weights[0],
        "exclude": "b.*",
        "passed-through": "skip",
        "quiet": True,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    assert restore.main(["--config", str(tmp_path / "run.yaml")]) == 0
    assert {name: line["status"] for name, line in lines(tmp_path / "out").items()} == {
        "x/a.jpg": "restored",
        "y/b.jpg": "passed_through",
    }


@pytest.mark.parametrize("value", ["", "\n  -\n  - b*"])
def test_an_option_without_a_value_in_a_configuration_file(tmp_path, capsys, value):
    fill(tmp_path, {"in/a.jpg": encode(photograph(16, 16))})
    (tmp_path / "run.yaml").write_text(f"inputs: {tmp_path / 'in'}\noutput-dir: {tmp_path / 'out'}\ninclude: {value}\n")
    assert restore.main(["--config", str(tmp_path / "run.yaml")]) == 2
    assert "'include' has no value" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def xmp(data: bytes, format: str) -> bytes:
    """The packet's element, as another decoder finds it."""
    if format == "jxl":
        found = pylibjxl.decode(data, metadata=True)[1].get("xmp") or b""
    else:
        found = Image.open(io.BytesIO(data)).info.get("XML:com.adobe.xmp" if format == "png" else "xmp", b"")
    packet = found.encode() if isinstance(found, str) else found
    return packet[packet.find(b"<x:xmpmeta") : packet.find(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")] if packet else b""


@pytest.mark.parametrize("format", ["png", "webp", "jxl"])
def test_images_say_that_they_are_restored(tmp_path, weights, format):
    if format == "jxl" and pylibjxl is None:
        pytest.skip("pylibjxl is not installed")
    described = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="the sea"/>'
    described += "</rdf:RDF></x:xmpmeta>"
    files = {
        "a.jpg": encode(photograph(40, 50), quality=20, icc_profile=SRGB, exif=exif(6)),
        "described.jpg": encode(photograph(40, 50), quality=20, xmp=described.encode()),
    }
    source = fill(tmp_path / "in", files)
    options = ("--weights", weights[1], "--seed", "7", "--samples", "2", "--format", format)
    found = run(source, tmp_path / "with", *options)
    line, other = found["a.jpg"], found["described.jpg"]["outputs"][0]
    run(source, tmp_path / "without", *options, "--no-provenance")
    data = (tmp_path / "with" / line["outputs"][1]).read_bytes()
    bare = (tmp_path / "without" / line["outputs"][1]).read_bytes()
    wanted = f"weights={line['weights']} mode=sample seed=7 sample=1 strength=1 coefficients={line['coefficients']}"
    wanted += " mismatches=0"
    packet = xmp(data, format)
    texts = [value for element in ElementTree.fromstring(packet).iter() for value in element.attrib.values()]
    assert wanted in texts
    assert "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced" in texts
    assert xmp(bare, format) == b""
    assert xmp((tmp_path / "without" / other).read_bytes(), format).decode() == described
    both = xmp((tmp_path / "with" / other).read_bytes(), format)
    assert b"the sea" in both
    assert b"mismatches=0" in both
    if format != "jxl":
        image, plain = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(bare))
        assert np.array_equal(image, plain)
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[0x0112] == 6
    if format == "png":
        assert image.text["Software"].startswith("jpeg-posterior ")
        assert image.text["Restoration"] == wanted
        assert "Restoration" not in plain.text


def test_what_is_passed_through_does_not_say_that_it_is_restored(tmp_path, weights):
    run(fill(tmp_path / "in", {"a.jpg": cmyk()}), tmp_path / "out", "--weights", weights[0])
    assert "Restoration" not in Image.open(tmp_path / "out" / "a.png").text


def sixteen(data: bytes) -> np.ndarray:
    """[H, W, C] uint16 of a PNG whose rows have the filter Average, read by nothing of the pipeline's."""
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    assert bits == 16
    channels = {0: 1, 2: 3}[kind]
    chunks, position = b"", 8
    while position < len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        chunks += data[position + 8 : position + 8 + length] if name == b"IDAT" else b""
        position += length + 12
    step, rows = 2 * channels, zlib.decompress(chunks)
    above, found = np.zeros(width * step, np.uint8), []
    for start in range(0, len(rows), width * step + 1):
        assert rows[start] == 3
        row = bytearray(rows[start + 1 : start + 1 + width * step])
        for i in range(len(row)):
            row[i] = (row[i] + ((row[i - step] if i >= step else 0) + int(above[i])) // 2) % 256
        above = np.frombuffer(bytes(row), np.uint8)
        found.append(above)
    return np.stack(found).view(">u2").reshape(height, width, channels).astype(np.uint16)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
def test_16_bits_lie_in_the_files_intervals_as_far_as_the_manifest_says(tmp_path, weights, sampling):
    """Computed anew from the file's pixels, whose coefficients, rounded to whole ones, are within half a one."""
    data = encode(photograph(45, 61), sampling, 50)
    source = fill(tmp_path / "in", {"a.jpg": data})
    line = run(source, tmp_path / "out", "--weights", weights[1], "--format", "png16")["a.jpg"]
    assert (line["status"], line["mismatches"], line["outputs"]) == ("restored", None, ["a.png"])
    assert 0 <= line["excess"] < 0.5
    levels = sixteen((tmp_path / "out" / "a.png").read_bytes())
    assert len(np.unique(levels)) > 256
    c = read_bitstream(data).coefficients
    x = torch.from_numpy(levels.astype(np.float64) / 257).permute(2, 0, 1)[None].contiguous()
    fine = torch.ones_like(c.tables)  # steps of one: real coefficients, rounded to whole ones
    found = encode_coefficients(x.float(), fine, Subsampling.from_label(sampling))
    for component, (mine, theirs) in enumerate(zip(found.planes, c.planes, strict=True)):
        steps = c.tables[0, component].double()
        beyond = ((mine[0].double() - theirs[0] * steps).abs() - 0.5) / steps - 0.5
        assert float(beyond.max()) <= line["excess"] + 0.01


def test_16_bits_of_a_file_that_is_passed_through_are_its_levels_spread(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": cmyk()})
    run(source, tmp_path / "out", "--weights", weights[0], "--format", "png16")
    expected = np.asarray(Image.open(io.BytesIO(cmyk())).convert("RGB")).astype(np.uint16) * 257
    assert np.array_equal(sixteen((tmp_path / "out" / "a.png").read_bytes()), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 1), (37, 53)])
def test_16_bit_png_comes_back(channels, height, width):
    image = np.random.default_rng(1).integers(0, 65536, (channels, height, width), dtype=np.uint16)
    data = encode_image(image, "png16")
    assert np.array_equal(sixteen(data), image.transpose(1, 2, 0))
    high = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(high, image[0]) if channels == 1 else np.array_equal(high, image.transpose(1, 2, 0) >> 8)


def test_16_bits_do_not_depend_on_workers(tmp_path, weights):
    source = fill(tmp_path / "in", bag(2))
    options = ("--weights", weights[1], "--format", "png16", "--tile", "256")
    for workers in ("1", "2"):
        found = run(source, tmp_path / workers, *options, "--workers", workers)
        assert {line["status"] for line in found.values()} == {"restored"}
    assert outputs(tmp_path / "1") == outputs(tmp_path / "2")


def test_16_bits_in_other_formats_are_refused():
    for format in ("webp", "jxl"):
        with pytest.raises(EncodeError, match="8 bits per channel"):
            encode_image(np.zeros((3, 4, 4), np.uint16), format)


def test_memory_is_enough_for_the_largest_file_of_16_bits(weights):
    options = Options(max_pixels=1 << 20, bits=16, samples=3, mode="sample")
    restorer = Restorer.from_pretrained(weights[1], options=options)
    for size in ((1024, 1024), (16, 65535), (65535, 16)):
        assert max_file_bytes(restorer) >= bytes_needed(Subsampling.S444, size, 3, options.pixel)


def test_a_run_without_provenance_goes_on_with_it(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(20, 30))})
    run(source, tmp_path / "out", "--weights", weights[0], "--no-provenance")
    fill(source, {"b.jpg": encode(photograph(20, 30))})
    capfd.readouterr()
    assert len(run(source, tmp_path / "out", "--weights", weights[0])) == 2
    assert "another provenance False (now True): the pixels are the same" in capfd.readouterr().err


def test_provenance_of_a_mean(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(20, 30), quality=20)})
    run(source, tmp_path / "out", "--weights", weights[1], "--mode", "mean", "--samples", "4")
    assert "mode=mean seed=0 averaged=4 " in Image.open(tmp_path / "out" / "a.png").text["Restoration"]


def test_an_empty_file_that_is_copied_is_done_once(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(20, 30)), "b.jpg": b""})
    options = ("--weights", weights[0], "--exclude", "b.*", "--passed-through", "copy")
    for _ in range(2):
        assert run(source, tmp_path / "out", *options)["b.jpg"]["outputs"] == []
    assert len((tmp_path / "out" / "manifest.history.jsonl").read_text().splitlines()) == 1
