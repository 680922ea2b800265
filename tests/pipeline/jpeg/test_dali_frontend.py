"""Coefficients recovered by DALI: the file's own where nothing is lost, and nearly so elsewhere; one file's trouble is
its own; and the command line says what it has done."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, encode, insert, mutate, photograph
from PIL import Image
from runs import bag, command, exif, fill, images, in_a_child, mismatches, run, tiny_weights, weights  # noqa: F401 - a fixture
from runs import lines as manifest

from pipeline import restore
from pipeline.command_line import parse
from pipeline.engine import run as engine
from pipeline.engine.options import Options
from pipeline.engine.restorer import Restorer
from pipeline.jpeg.bitstream import Bitstream, read_bitstream
from pipeline.jpeg.dali_frontend import MAX_BATCH, DaliFrontend, bitstream_or_raise
from pipeline.jpeg.errors import BitstreamError, JpegError, UnsupportedJpeg
from pipeline.outputs.record import IDENTITY

pytest.importorskip("nvidia.dali")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = ((160, 176), (77, 101), (41, 3), (1, 1))


@pytest.fixture(scope="module", params=DEVICES)
def front_end(request) -> DaliFrontend:
    return DaliFrontend(torch.device(request.param), threads=2)


def missed(found: Bitstream | JpegError, data: bytes) -> float:
    """The share of coefficients that are not the file's."""
    c, own = bitstream_or_raise(found).coefficients, read_bitstream(data).coefficients
    c.check_values()
    return int(c.mismatches(own)) / c.count


@pytest.mark.parametrize("sampling", ["gray", *SAMPLINGS])
def test_all_coefficients_are_recovered_where_steps_are_not_small(front_end, sampling):
    """Of odd sizes, too, whose last blocks hang over the edge, and with chroma upsampled by the triangle filter."""
    files = [encode(photograph(*size), sampling, quality) for size in SIZES for quality in (10, 50, 75)]
    for data, found in zip(files, front_end.read_many(files), strict=True):
        assert missed(found, data) == 0


@pytest.mark.parametrize("sampling", ["gray", *SAMPLINGS])
@pytest.mark.parametrize(("quality", "share"), [(90, 0.001), (95, 0.025)])
def test_few_are_missed_where_steps_are_small(front_end, sampling, quality, share):
    files = [encode(photograph(*size), sampling, quality) for size in SIZES[:2]]
    assert all(missed(x, data) <= share for x, data in zip(front_end.read_many(files), files, strict=True))


@pytest.mark.parametrize("sampling", ["gray", "4:4:4", "4:2:0"])
def test_pictures_that_the_decoder_limits(front_end, sampling):
    """Text-like edges from black to white: after quantisation they overshoot both ends in most blocks."""
    generator = np.random.default_rng(0)
    pixels = np.kron(generator.integers(0, 2, (40, 40, 3)), np.ones((4, 4, 1))).astype(np.uint8) * 255
    files = [encode(pixels, sampling, quality) for quality in (30, 75)]
    limits = {"gray": 0.001, "4:4:4": 0.01, "4:2:0": 0.04}
    assert all(missed(x, data) < limits[sampling] for x, data in zip(front_end.read_many(files), files, strict=True))


@pytest.mark.parametrize("sampling", ["gray", "4:4:4", "4:2:0"])
def test_progressive_files_and_restart_markers(front_end, sampling):
    files = [encode(photograph(160, 176), sampling, 75, **{o: 1}) for o in ("progressive", "restart_marker_rows")]
    files.append(encode(photograph(77, 101), sampling, 75, progressive=True))  # has no more than the image's own blocks
    exact, also, nearly = (missed(x, data) for x, data in zip(front_end.read_many(files), files, strict=True))
    assert exact == also == 0
    assert nearly < 0.005
    assert [bitstream_or_raise(x).progressive for x in front_end.read_many(files)] == [True, False, True]


def test_the_rest_of_the_file_is_read_as_ever(front_end):
    """Tables, metadata and pixels as they are stored, whatever orientation EXIF wishes for."""
    data = encode(photograph(90, 61), quality=20, exif=exif(6), icc_profile=b"a profile")
    (found,), own = front_end.read_many([data]), read_bitstream(data)
    found = bitstream_or_raise(found)
    assert (found.metadata, found.quality) == (own.metadata, own.quality)
    assert found.coefficients.size == (90, 61)
    assert torch.equal(found.coefficients.tables, own.coefficients.tables)
    assert missed(found, data) == 0
    assert found.recovered
    assert not own.recovered


def test_a_broken_file_does_not_harm_its_neighbours(front_end):
    sound = [encode(photograph(40 + n, 56, n), "gray" if n % 3 == 0 else "4:2:0") for n in range(6)]
    truncated, headless = sound[1][: len(sound[1]) // 2], sound[2][:300]
    scrambled = insert(sound[4], 0xDA, b"\3\1\0\2\x11\3\x11\0\x3f\0") + b"\xff\xd9"  # a scan without Huffman tables
    found = front_end.read_many([sound[0], truncated, sound[1], headless, b"GIF89a", *sound[2:4], scrambled, sound[5]])
    for number in (1, 3, 4, 7):
        assert isinstance(found[number], BitstreamError)
    assert "truncated" in str(found[1])
    for number, data in zip((0, 2, 5, 6, 8), [*sound[:4], sound[5]], strict=True):
        assert missed(found[number], data) == 0


def test_mutated_files_are_read_or_refused(front_end, seed):
    generator = np.random.default_rng(seed)
    files = [encode(photograph(48, 64), "4:2:0", 60, progressive=n % 4 == 0) for n in range(60)]
    found = front_end.read_many([mutate(data, generator) if n % 6 else data for n, data in enumerate(files)])
    assert all(isinstance(x, Bitstream | JpegError) for x in found)
    assert all(missed(found[n], files[n]) == 0 for n in range(0, 60, 6))


def test_unmodelled_kinds_are_named_as_by_the_other_front_end(front_end):
    cmyk, lossless = io.BytesIO(), encode(photograph(16, 16))
    Image.fromarray(photograph(33, 20)).convert("CMYK").save(cmyk, "JPEG")
    arithmetic = lossless.replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11", 1)
    for data in (cmyk.getvalue(), arithmetic):
        with pytest.raises(UnsupportedJpeg) as reason:
            read_bitstream(data)
        (found,) = front_end.read_many([data])
        assert isinstance(found, UnsupportedJpeg)
        assert str(found) == str(reason.value)


def test_images_that_are_too_large_are_refused_before_they_are_decoded(front_end):
    (found,) = front_end.read_many([encode(photograph(40, 40))], max_pixels=1599)
    assert isinstance(found, BitstreamError)
    assert "limit of 1599" in str(found)


def test_more_files_than_go_together_and_none(front_end):
    files = [encode(photograph(8 + n, 24, n), "gray" if n % 5 == 0 else "4:2:0") for n in range(2 * MAX_BATCH + 3)]
    assert all(missed(x, data) == 0 for x, data in zip(front_end.read_many(files), files, strict=True))
    assert front_end.read_many([]) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_devices_recover_the_same_where_steps_are_not_small():
    files = [encode(photograph(160, 176, n), s, 50) for n, s in enumerate(("gray", *SAMPLINGS))]
    there, here = (DaliFrontend(torch.device(device)).read_many(files) for device in ("cuda", "cpu"))
    for a, b in zip(there, here, strict=True):
        assert int(bitstream_or_raise(a).coefficients.mismatches(bitstream_or_raise(b).coefficients)) == 0


def test_a_file_from_python(tmp_path):
    restorer = Restorer.from_pretrained(str(tiny_weights(tmp_path)), "cpu", options=Options(frontend="dali"))
    data = encode(photograph(50, 70), quality=50)
    restored = restorer.restore(data)
    assert restored.bitstream.recovered
    assert restored.mismatches == mismatches(data, png(restored.pixels())) == 0
    with pytest.raises(BitstreamError):
        restorer.restore(data[:-100])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_command_line_restores_certifies_and_counts(tmp_path, weights, workers):  # noqa: F811
    """Tiles, too. Where all coefficients are recovered, the image is the one that the other front end leads to."""
    kinds = ("420-q10", "422-q10", "440-q50", "444-q50", "gray", "progressive", "metadata")
    files = {name: bag()[name] for name in (f"{kind}.jpg" for kind in kinds)}
    cmyk = io.BytesIO()
    Image.fromarray(photograph(33, 20)).convert("CMYK").save(cmyk, "JPEG")
    files |= {"broken.jpg": files["420-q10.jpg"][:-200], "cmyk.jpg": cmyk.getvalue()}
    files["large.jpg"] = encode(photograph(250, 300), quality=30)
    source = fill(tmp_path / "in", files)
    options = ("--weights", weights[0], "--tile", "208", "--workers", workers, "--no-provenance")
    own = run(source, tmp_path / "libjpeg", *options, code=1)  # first: it forks, which DALI's threads may not survive
    lines = run(source, tmp_path / "dali", *options, "--frontend", "dali", "--verify", code=1)
    found, wanted = images(tmp_path / "dali"), images(tmp_path / "libjpeg")
    assert found.keys() == wanted.keys()
    assert lines["broken.jpg"]["status"] == "failed"
    assert lines["cmyk.jpg"] == own["cmyk.jpg"]
    exact = 0
    for name in files.keys() - {"broken.jpg", "cmyk.jpg"}:
        line = lines[name]
        assert (line["status"], line["coefficients_from"]) == ("restored", "dali")
        assert 0.97 < line["recovered"] / line["coefficients"] <= 1
        if line["recovered"] == line["coefficients"]:
            exact += 1
            assert found[name.replace(".jpg", ".png")] == wanted[name.replace(".jpg", ".png")]
            assert line == own[name] | {"coefficients_from": "dali", "recovered": line["coefficients"]}
        assert not {"coefficients_from", "recovered"} & own[name].keys()
    assert exact >= 6


@pytest.mark.parametrize("workers", ["1", "3"])
def test_in_batches_beside_tiles_that_go_in_batches(tmp_path, weights, workers):  # noqa: F811
    """As on a GPU, which one thread drives for both. What a file becomes does not depend on its company."""
    files = {f"{n}.jpg": encode(photograph(60 + 9 * n, 80, n), ("gray", *SAMPLINGS)[n % 5], 40) for n in range(12)}
    found = []
    for some in (files, {"3.jpg": files["3.jpg"]}):
        source, output = fill(tmp_path / f"{len(some)}", some), tmp_path / f"{len(some)}-out"
        options = ("--weights", weights[0], "--frontend", "dali", "--workers", workers, "--batch", "4", "--tile", "256")
        job = restore.make_job(parse(command(source, output, *options, "--verify")))
        job.restorer.batched = True
        assert engine.run(job) == 0
        assert {line["status"] for line in manifest(output).values()} == {"restored"}
        found.append(images(output))
    assert found[1].items() <= found[0].items()


def test_without_verify_nothing_is_counted(tmp_path, weights):  # noqa: F811
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 50))})
    line = run(source, tmp_path / "out", "--weights", weights[0], "--frontend", "dali")["a.jpg"]
    assert line["coefficients_from"] == "dali"
    assert "recovered" not in line


def test_a_run_goes_on_with_its_own_front_end_only(tmp_path, weights, capfd):  # noqa: F811
    source = fill(tmp_path / "in", {"a.jpg": encode(photograph(40, 50))})
    run(source, tmp_path / "out", "--weights", weights[0])
    before = images(tmp_path / "out")
    options = ("--weights", weights[0], "--frontend", "dali")

    def refused() -> None:
        arguments = command(source, tmp_path / "out", *options)
        assert in_a_child(lambda: restore.main(arguments)) == 2  # DALI's threads, if any, would outlast this test
        assert "frontend 'libjpeg' (now 'dali')" in capfd.readouterr().err

    refused()
    assert images(tmp_path / "out") == before
    forget_the_front_end(tmp_path / "out" / IDENTITY)  # as versions without the option wrote it
    fill(source, {"b.jpg": encode(photograph(30, 50))})
    assert run(source, tmp_path / "out", "--weights", weights[0]).keys() == {"a.jpg", "b.jpg"}
    refused()


def forget_the_front_end(identity: Path) -> None:
    said = json.loads(identity.read_text())
    assert said.pop("frontend") == "libjpeg"
    identity.write_text(json.dumps(said))
