"""--upright: images turned as EXIF says, in every format, with the certificate of the image as it was stored."""

import io
from pathlib import Path

import numpy as np
import pytest
from jpegs import encode, photograph
from PIL import Image, ImageOps
from runs import command, exif, fill, run, tiny_weights

from pipeline import Restorer, restore, verify
from pipeline.outputs.formats import decode_image

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="X"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return str(tiny_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def source(tmp_path) -> Path:
    """Photographs in all orientations, and a gray one, one that is passed through, and a square one."""
    files = {f"{n}.jpg": encode(photograph(40, 56, n), quality=40, exif=exif(n), dpi=(72, 300)) for n in range(1, 9)}
    files["gray.jpg"] = encode(photograph(40, 56), "gray", 40, exif=exif(8))
    files["square.jpg"] = encode(photograph(48, 48), quality=40, exif=exif(3))
    stream = io.BytesIO()
    Image.fromarray(photograph(40, 56)).convert("CMYK").save(stream, "JPEG", exif=exif(6))
    return fill(tmp_path / "in", files | {"cmyk.jpg": stream.getvalue()})


@pytest.mark.parametrize("format", ["png", "webp", "npy"])
def test_every_image_is_that_of_a_run_without_it_turned(tmp_path, weights, source, format):
    options = ("--weights", weights, "--format", format)
    stored = run(source, tmp_path / "stored", *options)
    upright = run(source, tmp_path / "upright", *options, "--upright", "--verify")
    for name, line in upright.items():
        images = [(tmp_path / folder / line["outputs"][0]).read_bytes() for folder in ("stored", "upright")]
        before, after = map(decode_image, images)
        lying = Image.fromarray(before)
        with Image.open(source / name) as jpeg:
            lying.info["exif"] = jpeg.info["exif"]
        expected = np.asarray(ImageOps.exif_transpose(lying))
        assert np.array_equal(after, expected)
        assert (line["mismatches"], line["size"]) == (stored[name]["mismatches"], stored[name]["size"])
        if format != "npy":
            with Image.open(io.BytesIO(images[1])) as loaded:
                assert loaded.getexif()[0x0112] == 1
    assert verify.main(["--output-dir", str(tmp_path / "upright")]) == 0
    assert verify.main(["--output-dir", str(tmp_path / "stored")]) == 0


def test_a_false_image_is_not_proved_by_turning_it(tmp_path, weights, source, capsys):
    out = tmp_path / "out"
    run(source, out, "--weights", weights, "--upright")
    for name in ("1", "3", "6"):
        assert verify.main([str(out / f"{name}.png"), str(source / f"{name}.jpg")]) == 0
        with Image.open(out / f"{name}.png") as image:
            ImageOps.mirror(image).save(out / f"{name}-mirrored.png")
        assert verify.main([str(out / f"{name}-mirrored.png"), str(source / f"{name}.jpg")]) == 1
    with Image.open(out / "1.png") as image:
        image.rotate(90, expand=True).save(out / "1.png")
    assert verify.main([str(out / "1.png"), str(source / "1.jpg")]) == 2  # its file says that it is upright
    assert "40x56 pixels, the JPEG file 56x40" in capsys.readouterr().err


def test_metadata_say_that_the_image_is_upright(weights):
    data = encode(photograph(40, 56), quality=40, exif=exif(6), dpi=(72, 300), xmp=XMP)
    restored = Restorer.from_pretrained(weights, device="cpu").restore(data)
    for upright, size, orientation in ((False, (56, 40), 6), (True, (40, 56), 1)):
        with Image.open(io.BytesIO(restored.encode("png", upright=upright))) as image:
            assert image.size == size
            assert image.getexif()[0x0112] == orientation
            assert image.info["dpi"] == pytest.approx((300, 72) if upright else (72, 300), abs=0.1)
            assert (b"Orientation" in image.info["xmp"]) != upright
            assert b'tiff:Make="X"' in image.info["xmp"]


def test_a_folder_has_images_of_one_kind(tmp_path, weights, source, capfd):
    run(source, tmp_path / "out", "--weights", weights)
    assert restore.main(command(source, tmp_path / "out", "--weights", weights, "--upright")) == 2
    assert "upright False (now True)" in capfd.readouterr().err
