"""Whatever the input, the run ends, with a line for each file that says what became of it; and a disk that fails loses
nothing that was finished."""

import io
import os
import resource
import subprocess
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import jpegs
import numpy as np
import pytest
from disks import small_disk
from jpegs import encode, photograph, pillow_loads
from PIL import Image
from runs import command, fill, images, in_a_child, lines, outputs, run, tiny_weights

from pipeline import restore
from pipeline.engine.restorer import Restorer
from pipeline.jpeg.errors import JpegError
from pipeline.outputs.manifest_file import MANIFEST

GOOD = encode(photograph(48, 40))
LARGER = encode(photograph(160, 120))
DQT, SOF, SOS = 0xDB, 0xC0, 0xDA


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


def claiming(data: bytes, height: int, width: int) -> bytes:
    """The file with another size in its header."""

    def change(payload: bytearray) -> None:
        payload[1:5] = height.to_bytes(2, "big") + width.to_bytes(2, "big")

    return jpegs.edit(data, SOF, change)


def cmyk(height: int = 48, width: int = 40) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photograph(height, width)).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()


def shard(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be loaded, and what the reason must name."""
    png = io.BytesIO()
    Image.fromarray(photograph(8, 8)).save(png, "PNG")

    def no_components(payload: bytearray) -> None:
        payload[5:] = b"\0"

    return {
        "empty": (b"", "empty"),
        "text": (b"no picture", "not a JPEG"),
        "png": (png.getvalue(), "PNG"),
        "at-100-bytes": (LARGER[:100], "truncated"),
        "half": (LARGER[: len(LARGER) // 2], "truncated"),
        "last-10": (LARGER[:-10], "truncated"),
        "cmyk-half": (cmyk()[:-600], "CMYK"),
        "no-components": (jpegs.edit(GOOD, SOF, no_components), ""),
        "no-components-whole": (jpegs.insert(jpegs.without(GOOD, SOF), SOF, bytes((8, 0, 48, 0, 40, 0))), "component"),
        "no-tables": (jpegs.without(GOOD, DQT), "table"),
        "only-soi": (b"\xff\xd8", ""),
        "zeros": (bytes(4096), "not a JPEG"),
    }


def test_what_cannot_be_loaded_fails_with_its_reason_and_the_others_go_on(tmp_path, weights):
    files = {f"{name}.jpg": data for name, (data, _) in broken().items()} | {"good.jpg": GOOD}
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights, code=1)
    assert found.keys() == files.keys()
    assert found.pop("good.jpg")["status"] == "restored"
    for name, (data, reason) in broken().items():
        line = found[f"{name}.jpg"]
        assert (line["status"], line["mismatches"], line["outputs"]) == ("failed", None, [])
        assert line["reason"]
        assert reason in line["reason"]
        assert name == "png" or not pillow_loads(data)
    assert set(images(tmp_path / "out")) == {"good.png"}


def test_a_quantisation_step_of_0_is_passed_through_unless_no_component_uses_its_table(tmp_path, weights):
    """Progressive files too, and tables that a later definition replaces before the first scan."""

    def zero_step(payload: bytearray) -> None:
        payload[10] = 0

    unused = bytes([3, *[16] * 20, *[0] * 44])
    progressive = encode(photograph(48, 40), "4:4:4", 60, progressive=True)
    zeros = {
        "baseline": jpegs.edit(GOOD, DQT, zero_step),
        "progressive": jpegs.edit(progressive, DQT, zero_step),
        "gray": jpegs.edit(encode(photograph(30, 50), "gray"), DQT, zero_step),
    }
    sound = {
        "unused": jpegs.insert(GOOD, DQT, unused),
        "unused-progressive": jpegs.insert(progressive, DQT, unused),
        "replaced": jpegs.insert(GOOD, DQT, bytes([0, *unused[1:]])),
    }
    broken = {"cut": zeros["gray"][:-40]}
    files = {f"{name}.jpg": data for name, data in {**zeros, **sound, **broken}.items()}
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights, "--verify", code=1)
    decoded = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in images(tmp_path / "out").items()}
    for name, data in zeros.items():
        line = found[f"{name}.jpg"]
        assert (line["status"], line["mismatches"], line["outputs"]) == ("passed_through", None, [f"{name}.png"])
        assert "table 0 holds a step of 0" in line["reason"]
        assert np.array_equal(decoded[f"{name}.png"], jpegs.pixels_of(data))
    for name in sound:
        assert (found[f"{name}.jpg"]["status"], found[f"{name}.jpg"]["mismatches"]) == ("restored", 0)
    for name, data in broken.items():
        line = found[f"{name}.jpg"]
        assert not pillow_loads(data)
        assert (line["status"], line["outputs"]) == ("failed", [])
        assert "step of 0; Pillow cannot load it" in line["reason"]


def bases() -> list[bytes]:
    """Small files of every kind, passed through ones too, for `mutate` to injure."""
    small, gray = photograph(24, 17), photograph(16, 16, 1)
    files = [encode(small, sampling, 40) for sampling in (*jpegs.SAMPLINGS, "gray")]
    files += [encode(small, progressive=True), encode(gray, "gray", progressive=True)]
    files += [encode(small, restart_marker_blocks=2), encode(small, exif=b"Exif\0\0MM\0*" + bytes(20)), cmyk(16, 16)]
    return files


def test_a_thousand_mutated_files(tmp_path, weights, seed):
    generator, kinds = np.random.default_rng(seed), bases()
    files = {f"{n:04}.jpg": jpegs.mutate(kinds[n % len(kinds)], generator) for n in range(1000)}
    found = run(fill(tmp_path / "in", files), tmp_path / "out", "--weights", weights, "--verify", code=1)
    assert found.keys() == files.keys()
    fates = {name: line["status"] for name, line in found.items()}
    assert set(fates.values()) == {"restored", "passed_through", "failed"}
    for name, data in files.items():
        reason = found[name]["reason"]
        assert (fates[name] != "failed") == pillow_loads(data), (name, reason)
        assert bool(reason) == (fates[name] != "restored")
    assert len(images(tmp_path / "out")) == sum(fate != "failed" for fate in fates.values())


@pytest.mark.parametrize("sampling", ["4:2:0", "4:4:4"])
def test_flipped_bits_cost_no_file_much_more_time_than_its_like(weights, seed, sampling):
    """CPU time of this process: up to 13 times a sound file's have been seen, hundreds before work was bounded."""
    generator, restorer = np.random.default_rng(seed), Restorer.from_pretrained(str(weights), device="cpu")
    sound = [encode(photograph(150, 200, n), sampling, 50) for n in range(10)]

    def seconds(data: bytes) -> float:
        started = time.process_time()
        with suppress(JpegError):
            restorer.restore(data)
        return time.process_time() - started

    def flipped(data: bytes) -> bytes:
        damaged = bytearray(data)
        for place in generator.integers(data.rindex(b"\xff\xda") + 14, len(data) - 2, 20):
            damaged[place] ^= 1 << generator.integers(8)
        return bytes(damaged)

    seconds(sound[0])  # compiles what has to be
    usual = np.median([seconds(data) for data in sound])
    worst = max(min(seconds(data) for _ in range(2)) for data in map(flipped, sound))
    assert worst <= 60 * usual


def run_with(arguments: list[str], more: int) -> int:
    """The exit code of a restoration that may take so many bytes more than this process has."""

    def work() -> int:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))
        return restore.main(arguments)

    return in_a_child(work)


@pytest.mark.parametrize("data", [GOOD, encode(photograph(48, 40), "gray"), cmyk()], ids=["colour", "gray", "cmyk"])
@pytest.mark.parametrize("size", [(65535, 65535), (65500, 65500)])
def test_a_claim_of_four_gigapixels_takes_no_memory(tmp_path, weights, data, size):
    source = fill(tmp_path / "in", {"a.jpg": claiming(data, *size), "b.jpg": GOOD})

    assert run_with(command(source, tmp_path / "out", "--weights", weights), 512 << 20) == 1
    found = lines(tmp_path / "out")
    assert found["b.jpg"]["status"] == "restored"
    assert found["a.jpg"]["status"] == "failed"
    assert "pixels" in found["a.jpg"]["reason"] or "65535" in found["a.jpg"]["reason"]


def test_out_of_memory_is_the_failure_of_one_file(tmp_path, weights):
    source = fill(tmp_path / "in", {"a.jpg": encode(np.zeros((9000, 9000, 3), np.uint8)), "b.jpg": GOOD})

    assert run_with(command(source, tmp_path / "out", "--weights", weights), 200 << 20) == 1
    assert {name: line["status"] for name, line in lines(tmp_path / "out").items()} == {
        "a.jpg": "failed",
        "b.jpg": "restored",
    }


def test_files_that_do_not_fit_into_memory_are_failures_to_retry(tmp_path, weights):
    """Of 1.5 GB, in a folder and in a tar: sparse, so that they take no space on the disk."""
    source, large = fill(tmp_path / "in", {"b.jpg": GOOD}), 3 << 29
    header = tarfile.TarInfo("c.jpg")
    header.size = large
    for name, start, after in (("a.jpg", b"", b""), ("s.tar", header.tobuf(), shard([("d.jpg", GOOD)]))):
        with (source / name).open("wb") as file:
            file.write(start)
            file.seek(large, os.SEEK_CUR)
            file.write(after)
            file.truncate(file.tell())

    assert run_with(command(source, tmp_path / "out", "--weights", weights), 500 << 20) == 1
    found = lines(tmp_path / "out")
    for name in ("a.jpg", "s.tar/c.jpg"):
        assert (found[name]["status"], found[name]["transient"]) == ("failed", True)
        assert "not enough memory" in found[name]["reason"]
    assert {found[name]["status"] for name in ("b.jpg", "s.tar/d.jpg")} == {"restored"}


@pytest.mark.parametrize("options", [(), ("--output-shards",)], ids=["files", "shards"])
def test_tar_cut_in_half_gives_its_readable_files(tmp_path, weights, options):
    whole = shard([(f"{n}.jpg", GOOD) for n in range(10)])
    source = fill(tmp_path / "in", {"a.tar": whole[: len(whole) // 2], "b.tar": shard([("b.jpg", GOOD)])})
    found = run(source, tmp_path / "out", "--weights", weights, *options, code=1)
    assert found["b.tar/b.jpg"]["status"] == "restored"
    restored = [name for name, line in found.items() if line["status"] == "restored" and name.startswith("a.tar/")]
    assert len(restored) >= 3
    assert found["a.tar"]["status"] == "failed"
    assert "damaged or cut off" in found["a.tar"]["reason"]
    assert run(source, tmp_path / "out", "--weights", weights, *options, code=1) == found


@pytest.mark.parametrize("options", [(), ("--output-shards",)], ids=["files", "shards"])
def test_names_that_lead_out_write_nothing_outside(tmp_path, weights, options):
    names = ["../up.jpg", str(tmp_path / "absolute.jpg"), "a/../../up2.jpg", "inside/fine.jpg"]
    source = fill(tmp_path / "deep" / "in", {"a.tar": shard([(name, GOOD) for name in names])})
    before = set(tmp_path.rglob("*"))
    found = run(source, tmp_path / "deep" / "out", "--weights", weights, *options, code=1)
    assert [line["status"] for line in found.values()] == ["failed"] * 3 + ["restored"]
    assert all("unsafe name" in line["reason"] for line in list(found.values())[:3])
    assert all((tmp_path / "deep" / "out") in (path, *path.parents) for path in set(tmp_path.rglob("*")) - before)


def test_duplicate_keys_are_reported_and_the_first_one_stays(tmp_path, weights):
    other = encode(photograph(16, 16, 5))
    files = {"a.jpeg": GOOD, "a.jpg": other, "s.tar": shard([("b.jpg", GOOD), ("b.jpg", other), ("a.jpe", other)])}
    source = fill(tmp_path / "in", files)
    found = run(source, tmp_path / "out", "--weights", weights, code=1)
    assert {name: line["status"] for name, line in found.items()} == {
        "a.jpeg": "restored",
        "a.jpg": "failed",
        "s.tar/b.jpg": "restored",
        "s.tar/b.jpg#2": "failed",
        "s.tar/a.jpe": "failed",
    }
    assert "a.jpeg has it already" in found["a.jpg"]["reason"]
    assert {name: Image.open(io.BytesIO(data)).size for name, data in images(tmp_path / "out").items()} == {
        "a.png": (40, 48),
        "b.png": (40, 48),
    }


def test_output_folder_that_cannot_be_written(tmp_path, weights, capfd):
    source = fill(tmp_path / "in", {"a.jpg": GOOD})
    (tmp_path / "file").write_text("")
    assert restore.main(command(source, tmp_path / "file" / "out", "--weights", weights)) == 2
    assert "cannot be made or written: Not a directory" in capfd.readouterr().err
    with small_disk(tmp_path, 1 << 20) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert restore.main(command(source, disk / "out", "--weights", weights)) == 2
    assert "Read-only file system" in capfd.readouterr().err


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--output-shards",)], ids=["files", "workers", "shards"])
def test_full_disk_stops_the_run_and_a_later_one_completes_it(tmp_path, weights, options, capfd):
    files = {
        f"{n}.tar": shard([(f"{n}{m}.jpg", encode(photograph(80, 80, 10 * n + m))) for m in range(6)]) for n in (1, 2)
    }
    source = fill(tmp_path / "in", files)
    run(source, tmp_path / "whole", "--weights", weights, *options)
    size = sum(len(data) for data in outputs(tmp_path / "whole").values())
    with small_disk(tmp_path, 2 * size) as disk:
        (disk / "ballast").write_bytes(bytes(int(1.3 * size)))
        assert restore.main(command(source, disk / "out", "--weights", weights, *options)) == 2
        assert "No space left on device" in capfd.readouterr().err
        finished = {name: (disk / "out" / name).stat().st_ino for name in images(disk / "out")}
        assert 0 < len(finished) < len(images(tmp_path / "whole"))
        assert len(lines(disk / "out")) >= len(finished)
        (disk / "ballast").unlink()
        run(source, disk / "out", "--weights", weights, *options)
        assert outputs(disk / "out") == outputs(tmp_path / "whole")
        assert {name: (disk / "out" / name).stat().st_ino for name in finished} == finished


def test_file_that_may_not_grow_stops_the_run_and_a_later_one_completes_it(tmp_path, weights):
    files = {"0.jpg": GOOD, "1.jpg": encode(photograph(400, 400)), "2.jpg": GOOD}
    source, out = fill(tmp_path / "in", files), tmp_path / "out"

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        return restore.main(command(source, out, "--weights", weights))

    assert in_a_child(work) == 2
    assert set(images(out)) == {"0.png"}
    assert list(lines(out)) == ["0.jpg"]
    run(source, out, "--weights", weights)
    run(source, tmp_path / "whole", "--weights", weights)
    assert outputs(out) == outputs(tmp_path / "whole")
    assert (out / MANIFEST).exists()
