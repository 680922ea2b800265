"""The loader on real shards: each image once an epoch, Pillow's pixels, exact resume, nothing lost to broken files."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, edit, encode, photograph
from PIL import Image
from shards import write_tar

from pipeline.inputs.listing import SourceError
from train.checks import ConfigError
from train.data.index import open_index
from train.data.loader import Loader
from train.data.plan import LoaderConfig, LoaderError, plan

CROP = 33
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def png(pixels, mode="RGB", **options):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, "PNG", **options)
    return file.getvalue()


def small_photograph(seed):
    """Of odd sizes, all larger than a crop."""
    height, width = np.random.default_rng(seed).integers(CROP, 150, 2)
    return photograph(height, width, seed)


def kinds(seed=0):
    """Name → file, one of each kind that the loader takes; their names say JPEG for a PNG, too, as ImageNet's do."""
    files = {}
    for number, (sampling, progressive, quality) in enumerate(
        (sampling, progressive, quality)
        for sampling in (*SAMPLINGS, "gray")
        for progressive in (False, True)
        for quality in (20, 95)
        if not (progressive and sampling == "4:4:0")
    ):
        options = {"progressive": True} if progressive else {}
        files[f"{number:03d}.jpg"] = encode(small_photograph(seed + number), sampling, quality, **options)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    files["turned.JPEG"] = encode(small_photograph(seed + 50), exif=exif.tobytes())
    for number, mode in enumerate(("RGB", "L", "LA", "P", "RGBA", "1")):
        files[f"{mode}.PNG"] = png(small_photograph(seed + 60 + number), mode)
    rgba = np.dstack([photograph(70, 90, seed), np.arange(70 * 90, dtype=np.uint8).reshape(70, 90)])
    files["transparent.png"] = png(rgba, None)
    frames = [Image.fromarray(photograph(60, 61, seed + i)) for i in (1, 2)]
    files["animated.png"] = png(photograph(60, 61, seed), None, save_all=True, append_images=frames)
    files["png named.jpg"] = png(small_photograph(seed + 70))
    return files


def write_shard(path, files):
    members = {f"deep/{name}{end}": b"" if end else data for name, data in files.items() for end in ("", ".json")}
    return str(write_tar(path, members))


def write_folder(path, files):
    for name, data in files.items():
        place = path / ("even" if len(name) % 2 else "odd/odd") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return str(path)


@pytest.fixture
def paths(tmp_path):
    """Two shards and a folder of all kinds of images, 84 in all."""
    write_shard(tmp_path / "a.tar", kinds(0))
    write_shard(tmp_path / "b.tar", kinds(200))
    write_folder(tmp_path / "photos", kinds(400))
    return [str(tmp_path / name) for name in ("a.tar", "b.tar", "photos")]


@pytest.fixture
def make(tmp_path):
    """Loader(...) with a cache of this test's own, closed at its end."""
    made = []

    def make(paths, **options):
        defaults = {"crop": CROP, "batch": 8, "threads": 1, "cache": str(tmp_path / "cache")}
        made.append(Loader(LoaderConfig(paths=list(paths), **{**defaults, **options})))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def take(loader, count):
    return [next(loader) for _ in range(count)]


def same(one, other):
    return one.crops == other.crops and one.step == other.step and torch.equal(one.images, other.images)


def as_pillow_cuts(loader, crop, side=CROP):
    pixels = np.asarray(Image.open(io.BytesIO(loader.index.read(crop.image))).convert("RGB"))
    assert crop.top + side <= pixels.shape[0]
    assert crop.left + side <= pixels.shape[1]
    patch = pixels[crop.top : crop.top + side, crop.left : crop.left + side]
    patch = patch.transpose(1, 0, 2) if crop.orientation & 4 else patch
    patch = patch[::-1] if crop.orientation & 2 else patch
    patch = patch[:, ::-1] if crop.orientation & 1 else patch
    return torch.from_numpy(patch.transpose(2, 0, 1).copy())


def test_every_image_comes_once_in_an_epoch_over_two_ranks(make, paths):
    ranks = [make(paths, rank=rank, world=2, batch=5, seed=3) for rank in (0, 1)]
    count = len(ranks[0].index)
    assert count == len(ranks[0].index.members) == 84
    steps = -(-3 * count // 10)
    batches = [take(loader, steps) for loader in ranks]
    crops = [crop for step in zip(*batches, strict=True) for batch in step for crop in batch.crops]
    orders = [[crop.image for crop in crops if crop.epoch == epoch] for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # the same steps on one rank: the same crops in the same places
    for one, two in zip(make(paths, batch=10, seed=3), zip(*batches, strict=True), strict=False):
        assert one.crops == two[0].crops + two[1].crops
        assert torch.equal(one.images, torch.cat([two[0].images, two[1].images]))
        if one.step == 5:
            break
    assert next(make(paths, seed=4)).crops != next(make(paths, seed=3)).crops


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_are_those_that_pillow_decodes(make, paths, device):
    loader = make(paths, device=device, batch=28)
    seen, orientations = set(), set()
    for batch in take(loader, 2 * len(loader.index) // 28):
        assert batch.images.shape == (28, 3, CROP, CROP)
        assert batch.images.dtype == torch.uint8
        assert batch.images.device.type == device
        for image, crop in zip(batch.images.cpu(), batch.crops, strict=True):
            error = (image.int() - as_pillow_cuts(loader, crop).int()).abs()
            assert error.max() == 0 if device == "cpu" else error.float().mean() <= 1, loader.index.name(crop.image)
            seen.add(crop.image)
            orientations.add(crop.orientation)
    assert len(seen) == len(loader.index)
    assert orientations == set(range(8))


def test_crops_lie_anywhere_in_the_image_alike(tmp_path):
    files = {"a.jpg": encode(photograph(48, 80)), "b.png": png(photograph(33, 40)), "c.jpg": encode(photograph(99, 34))}
    index = open_index([write_shard(tmp_path / "a.tar", files)], CROP, tmp_path / "cache")
    config = LoaderConfig(["a.tar"], crop=CROP, batch=9000, seed=11)
    crops = plan(index, config, 0) + plan(index, config, 1)
    for image, (height, width) in enumerate(index.sizes.tolist()):
        for axis, room in (("top", height - CROP + 1), ("left", width - CROP + 1), ("orientation", 8)):
            chosen = torch.tensor([getattr(crop, axis) for crop in crops if crop.image == image])
            assert len(chosen) == 6000
            counts = chosen.bincount(minlength=room).double()
            assert len(counts) == room
            expected = counts.mean()
            assert ((counts - expected).square() / expected).sum() < room + 6 * (2 * room) ** 0.5  # chi squared


def test_a_resumed_loader_gives_the_same_batches(make, paths, tmp_path):
    loader = make(paths, prefetch=3)
    take(loader, 9)
    state = loader.state_dict()
    torch.save(state, tmp_path / "checkpoint.pt")
    expected = take(loader, 6)  # into the second epoch
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for options in ({}, {"prefetch": 1, "threads": 2}):
        resumed = make(paths, **options)
        take(resumed, 2)
        resumed.load_state_dict(state)
        assert all(same(*pair) for pair in zip(take(resumed, 6), expected, strict=True))
    halves = [make(paths, batch=4, rank=rank, world=2) for rank in (0, 1)]
    for half in halves:
        half.load_state_dict(state)
    for batch in expected:
        assert torch.equal(batch.images, torch.cat([next(half).images for half in halves]))


def test_a_checkpoint_of_other_data_or_crops_is_refused(make, paths):
    state = make(paths).state_dict()
    for options, named in (({"seed": 1}, "seed"), ({"batch": 9}, "crops_per_step"), ({"crop": 32}, "crop")):
        with pytest.raises(LoaderError, match=named):
            make(paths, **options).load_state_dict(state)
    with pytest.raises(LoaderError, match="images"):
        make(paths[:2]).load_state_dict(state)


def unusable():
    """Name → file and what the reason has to say. Most would raise in DALI, the rest differ from Pillow's."""
    good, picture = encode(photograph(90, 80, 7)), png(photograph(90, 80, 8))
    colours = io.BytesIO()
    Image.fromarray(photograph(90, 80)).convert("CMYK").save(colours, "JPEG")
    rgb = io.BytesIO()
    Image.fromarray(photograph(90, 80)).save(rgb, "JPEG", keep_rgb=True)
    deep = np.arange(90 * 80, dtype=np.uint16).reshape(90, 80) * 9
    return {
        "cut.jpg": (good[: len(good) // 2], "truncated"),
        "cut in its header.jpg": (good[:100], "truncated"),
        "cut.png": (picture[: len(picture) // 2], "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.png": (b"no image at all" * 99, "not a JPEG"),
        "no pixels.jpg": (edit(good, 0xC0, lambda payload: payload.__setitem__(slice(1, 3), b"\0\0")), "80x0"),
        "bad checksum.png": (picture[:20] + b"\1" + picture[21:], "sound header"),
        "12 bits.jpg": (edit(good, 0xC0, lambda payload: payload.__setitem__(0, 12)), "12-bit"),
        "cmyk.jpg": (colours.getvalue(), "4 colour"),
        "rgb.jpg": (rgb.getvalue(), "RGB"),
        "16 bits.png": (png(deep, None), "16-bit"),
        "low.jpg": (encode(photograph(CROP - 1, 200)), "too small"),
        "narrow.png": (png(photograph(200, CROP - 1)), "too small"),
    }


@pytest.mark.parametrize("write", [write_shard, write_folder])
def test_broken_and_small_files_are_named_and_all_others_seen(make, tmp_path, write):
    bad = unusable()
    good = {f"{number:04d}.jpg": encode(small_photograph(number)) for number in range(19 * len(bad))}  # 5 % are bad
    files = dict(sorted({**good, **{name: data for name, (data, _) in bad.items()}}.items()))
    loader = make([write(tmp_path / "data.tar", files)], batch=13)
    reasons = {Path(name).name: reason for name, reason in loader.index.skipped.items()}
    assert reasons.keys() == bad.keys()
    assert all(expected in reasons[name] for name, (_, expected) in bad.items()), reasons
    crops = [crop for batch in take(loader, 19) for crop in batch.crops]
    assert sorted(Path(loader.index.name(crop.image)).name for crop in crops) == sorted(good)
    assert {crop.epoch for crop in crops} == {0}
    assert not loader.dropped


def broken_inside():
    """Files with sound headers and ends, and data that cannot be decoded."""
    picture = png(photograph(90, 80, 1))
    middle = len(picture) // 2
    scans = encode(photograph(90, 80, 2), progressive=True)
    second = scans.index(b"\xff\xc4", scans.index(b"\xff\xda"))
    tables = encode(photograph(90, 80, 3)).replace(b"\xff\xdb", b"\xff\xec")
    return {
        "picture.png": picture[:middle] + bytes(200) + picture[middle + 200 :],
        "scans.jpg": scans[: second + 4] + b"\xff" * 40 + scans[second + 44 :],
        "no tables.jpg": tables,
    }


@pytest.mark.parametrize("prefetch", [1, 3])
def test_files_that_break_later_are_dropped_and_no_other_is_lost(make, tmp_path, prefetch, capfd):
    bad = broken_inside()
    good = {f"{number:04d}.jpg": encode(small_photograph(number)) for number in range(77)}
    shard = write_shard(tmp_path / "data.tar", {**bad, **good})
    loader = make([shard], prefetch=prefetch)
    assert len(loader.index) == 80
    assert not loader.index.skipped
    state = loader.state_dict()
    batches = take(loader, 20)
    crops = [crop for batch in batches for crop in batch.crops]
    for epoch in (0, 1):
        names = [Path(loader.index.name(c.image)).name for c in crops if c.epoch == epoch and not c.is_replacement]
        assert sorted(names) == sorted(good)
        assert sum(crop.is_replacement for crop in crops if crop.epoch == epoch) == 3
    assert {Path(name).name for name in loader.dropped} == bad.keys()
    assert all("decode" in reason for reason in loader.dropped.values())
    told = capfd.readouterr().out
    assert all(f"dropped {name}: {reason}" in told for name, reason in loader.dropped.items())
    for batch in batches:
        for image, crop in zip(batch.images, batch.crops, strict=True):
            assert torch.equal(image, as_pillow_cuts(loader, crop))
    # resumed from before it was known, and in a later run, which knows from the start
    resumed, later = make([shard]), make([shard])
    assert resumed.dropped == later.dropped == loader.dropped
    resumed.load_state_dict(state)
    assert not resumed.dropped
    for again in (resumed, later):
        assert all(same(*pair) for pair in zip(take(again, 20), batches, strict=True))


def test_a_file_that_vanishes_is_dropped_until_it_is_back(make, tmp_path):
    folder = write_folder(tmp_path / "photos", kinds())
    loader = make([folder])
    gone = Path(loader.index.name(5))
    data = gone.read_bytes()
    gone.unlink()
    crops = [crop for batch in take(loader, 7) for crop in batch.crops if crop.epoch == 0]
    assert sorted(crop.image for crop in crops if not crop.is_replacement) == sorted(set(range(28)) - {5})
    assert [str(gone)] == list(loader.dropped)
    assert "No such file" in loader.dropped[str(gone)]
    gone.write_bytes(data)
    assert not make([folder]).dropped


def test_a_batch_without_a_sound_image_takes_the_next_of_the_epoch(make, tmp_path):
    good = {f"{number:04d}.jpg": encode(small_photograph(number)) for number in range(4)}
    loader = make([write_shard(tmp_path / "data.tar", {**broken_inside(), **good})], batch=1)
    batches = take(loader, 2 * len(loader.index))
    for batch in batches:
        (crop,) = batch.crops
        assert torch.equal(batch.images[0], as_pillow_cuts(loader, crop))
    crops = [crop for batch in batches for crop in batch.crops]
    assert sum(crop.is_replacement for crop in crops) == 2 * len(broken_inside())
    order = [batch.crops[0].image for batch in batches]
    for step, crop in enumerate(crops[:-1]):
        if crop.is_replacement and not crops[step + 1].is_replacement and crops[step + 1].epoch == crop.epoch:
            assert order[step] == order[step + 1]


def test_without_a_sound_image_there_is_no_batch(make, tmp_path):
    loader = make([write_shard(tmp_path / "data.tar", broken_inside())], batch=2)
    with pytest.raises(LoaderError, match=r"all images are broken.*(no tables|scans|picture)"):
        take(loader, 3)


def test_the_index_is_kept_until_files_change_and_not_beside_them(make, tmp_path):
    folder = Path(write_folder(tmp_path / "photos", {"a.jpg": encode(photograph(60, 60)), "b.png": b"text"}))
    shard = Path(write_shard(folder / "c.tar", {"d.jpg": encode(photograph(50, 60))}))
    before = sorted(folder.rglob("*"))
    assert [Path(make([folder]).index.name(i)).name for i in range(2)] == ["d.jpg", "a.jpg"]
    # other contents of the same size and time are not noticed, so they were not read
    times = shard.stat().st_mtime_ns
    shard.write_bytes(bytes(shard.stat().st_size))
    os.utime(shard, ns=(times, times))
    assert len(make([folder]).index) == 2
    assert len(make([folder], crop=55).index) == 1
    os.utime(shard, ns=(times, times + 1))
    assert [Path(make([folder]).index.name(i)).name for i in range(1)] == ["a.jpg"]
    next(folder.rglob("b.png")).write_bytes(png(photograph(40, 40)))
    next(folder.rglob("a.jpg")).unlink()
    loader = make([folder])
    assert [Path(loader.index.name(i)).name for i in range(len(loader.index))] == ["b.png"]
    assert {path for path in folder.rglob("*") if path.name != "a.jpg"} <= set(before)
    # a damaged catalogue is made anew
    for catalogue in (tmp_path / "cache").glob("photos*.jsonl"):
        catalogue.write_bytes(b"\xff\0{]\n[]\n" + catalogue.read_bytes()[:60])
    assert len(make([folder]).index) == 1


def test_ranks_that_start_together_share_one_index(tmp_path, paths):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: open_index(paths, CROP, tmp_path / "cache").fingerprint(), range(8)))
    assert len(set(found)) == 1


def test_odd_folders_and_tars_are_accounted_for(make, tmp_path):
    folder = Path(write_folder(tmp_path / "photos", {"a.jpg": encode(photograph(60, 60))}))
    (folder / "even" / "loop").symlink_to(folder)
    (folder / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"latin-\xe9.jpg")).write_bytes(b"")
    good = encode(photograph(60, 60))
    whole = Path(write_shard(folder / "whole.tar", {"b.jpg": good, "c.jpg": good})).read_bytes()
    (folder / "cut.tar").write_bytes(whole[: whole.rindex(b"\xff\xd9") - 100])
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as packed:
        packed.add(folder / "whole.tar")
    with tarfile.open(folder / "links.tar", "w") as links:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        links.addfile(link)
    write_tar(folder / "links.tar", [("twice.jpg", good)] * 2, "a")
    loader = make([folder])
    found = sorted(str(Path(loader.index.name(i)).relative_to(folder)) for i in range(len(loader.index)))
    whole_names = ["whole.tar/deep/b.jpg", "whole.tar/deep/c.jpg"]
    assert found == ["cut.tar/deep/b.jpg", "even/a.jpg", "links.tar/twice.jpg", "links.tar/twice.jpg#2", *whole_names]
    reasons = {str(Path(name).relative_to(folder)): reason for name, reason in loader.index.skipped.items()}
    expected = {
        "nowhere.jpg": "No such file",
        "pipe.png": "not a regular file",
        "latin-\\udce9.jpg": "empty",
        "cut.tar": "damaged or cut off",
        "cut.tar/deep/c.jpg": "truncated",
        "packed.tar.gz": "not an uncompressed tar",
        "links.tar/link.jpg": "not followed",
    }
    assert reasons.keys() == expected.keys()
    assert all(why in reasons[name] for name, why in expected.items()), reasons
    assert next(loader).images.shape[0] == 8


def test_nothing_to_train_on_is_an_error_that_says_why(make, tmp_path):
    folder = write_folder(tmp_path / "photos", {"a.jpg": b"text"})
    with pytest.raises(SourceError, match=r"33x33.*photos.*a\.jpg: not a JPEG"):
        make([folder])
    with pytest.raises(SourceError, match="nowhere"):
        make([str(tmp_path / "nowhere")])
    with pytest.raises(SourceError, match="expected a folder"):
        make([__file__])
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cache"):
        make([folder], cache=str(tmp_path / "file"))
    for options in ({"crop": 0}, {"rank": 1}, {"batch": 0}, {"device": "meta"}, {"device": "none"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make([folder], **options)
    with pytest.raises(ConfigError, match="paths"):
        make([])
