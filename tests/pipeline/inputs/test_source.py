"""Reading folders and tars: everything accounted for, in one order, and no trust in names or sizes."""

import gzip
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from shards import write_tar

from pipeline.inputs.keys import Keys
from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.names import UnsafeNameError, safe_name
from pipeline.inputs.source import Item, SideMember, read


def put(path: Path, data: bytes = b"data") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def items(path: Path, **options) -> list[Item]:
    return [item for item in read(list_sources(path), **options) if isinstance(item, Item)]


def errors(found: list[Item]) -> dict[str, str]:
    return {item.source: item.error for item in found if item.error is not None}


def test_folder_with_files_and_shards_at_any_depth(tmp_path):
    for name in ("b/z.jpeg", "b/a.JPG", "a.b.c.jpg", "top.jfif", "x.jpe", "notes.txt", "b/c/deep.jpg", ".jpg", "é.jpg"):
        put(tmp_path / name, name.encode())
    write_tar(tmp_path / "b" / "one.tar", [("m/1.jpg", b"one"), ("m/1.json", b"{}"), ("./m//2.v2.jpeg", b"two")])
    found = items(tmp_path)
    assert [(item.key, item.source, item.shard) for item in found] == [
        ("a.b.c", "a.b.c.jpg", None),
        ("top", "top.jfif", None),
        ("x", "x.jpe", None),
        ("é", "é.jpg", None),
        ("b/a", "b/a.JPG", None),
        ("b/z", "b/z.jpeg", None),
        ("m/1", "b/one.tar/m/1.jpg", "b/one.tar"),
        ("m/2.v2", "b/one.tar/m/2.v2.jpeg", "b/one.tar"),
        ("b/c/deep", "b/c/deep.jpg", None),
    ]
    assert [item.data for item in found if item.shard is None] == [
        item.source.encode() for item in found if item.shard is None
    ]
    assert found == items(tmp_path)
    sources = list_sources(tmp_path)
    assert [(root.files, root.shards) for root in sources.roots] == [(7, 1)]
    assert sources.count is None


def test_single_file_and_single_tar(tmp_path):
    put(tmp_path / "photo.jpg", b"p")
    put(tmp_path / "other.jpg", b"o")
    tar = write_tar(tmp_path / "s.tar", [("a/b.jpg", b"q")])
    assert items(tmp_path / "photo.jpg") == [Item("photo", "photo.jpg", b"p")]
    assert items(tar) == [Item("a/b", "s.tar/a/b.jpg", b"q", "s.tar")]
    assert list_sources(tmp_path / "photo.jpg").count == 1


@pytest.mark.parametrize("name", ["missing", "empty", "file.txt", "missing/deeper.jpg"])
def test_input_that_holds_nothing_says_so(tmp_path, name):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty" / "notes.txt")
    put(tmp_path / "file.txt")
    with pytest.raises(SourceError, match=f"{name}.*expected a folder, a JPEG file"):
        list_sources(tmp_path / name)


def test_side_members_come_only_when_asked_for(tmp_path):
    tar = write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.json", b"{}"), ("a.txt", b"t"), ("a.txt", b"u")])
    assert [item.key for item in items(tar)] == ["a"]
    assert list(read(list_sources(tar), side_members=True))[1:] == [
        SideMember("a.json", "s.tar/a.json", b"{}", "s.tar"),
        SideMember("a.txt", "s.tar/a.txt", b"t", "s.tar"),
        SideMember("a.txt", "s.tar/a.txt#2", b"u", "s.tar"),
    ]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".TAR", "w")])
def test_compressed_and_capital_shards(tmp_path, suffix, mode):
    tar = write_tar(tmp_path / f"s{suffix}", [("a.jpg", b"1" * 5000), ("b.jpg", b"2")], mode)
    assert [(item.key, item.data, item.error) for item in items(tar)] == [
        ("a", b"1" * 5000, None),
        ("b", b"2", None),
    ]


def test_finished_and_whole_are_not_read(tmp_path):
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    write_tar(tmp_path / "s.tar", [("c.jpg", b"1"), ("d.jpg", b"2")])
    write_tar(tmp_path / "t.tar", [("e.jpg", b"3")])
    (tmp_path / "a.jpg").chmod(0)
    found = items(
        tmp_path,
        finished=lambda source: source in ("a.jpg", "s.tar/c.jpg"),
        shard_finished=lambda shard: shard == "t.tar",
    )
    assert [(item.key, item.data, item.error) for item in found] == [
        ("a", None, None),
        ("b", b"data", None),
        ("c", None, None),
        ("d", b"2", None),
    ]


def test_what_is_not_wanted_is_not_read(tmp_path):
    write_tar(tmp_path / "x" / "s.tar", [("c.jpg", b"1"), ("d.jpg", b"2"), ("c.json", b"{}")])
    (tmp_path / "x" / "a.jpg").symlink_to(tmp_path / "nowhere")
    write_tar(tmp_path / "y" / "s.tar", [("c.jpg", b"3")])
    sources = list_sources(tmp_path / "x", tmp_path / "y")
    found = list(read(sources, wanted=lambda name: name == "s.tar/d.jpg", side_members=True))
    assert [(x.source, x.data) for x in found] == [
        ("x/a.jpg", b""),
        ("x/s.tar/c.jpg", b""),
        ("x/s.tar/d.jpg", b"2"),
        ("x/s.tar/c.json", b"{}"),
        ("y/s.tar/c.jpg", b""),
    ]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_tar_cut_off_gives_its_readable_files_and_is_reported(tmp_path, suffix, share):
    members = [(f"{number:02}.jpg", os.urandom(3000)) for number in range(20)]
    tar = write_tar(tmp_path / f"s{suffix}", members, "w:gz" if suffix.endswith("gz") else "w")
    tar.write_bytes(tar.read_bytes()[: int(tar.stat().st_size * share)])
    *whole, last = items(tmp_path)
    assert [(item.source, item.data) for item in whole] == [(f"s{suffix}/{name}", data) for name, data in members][
        : len(whole)
    ]
    assert len(whole) >= 20 * share * 0.6 - 1
    assert (last.key, last.source, last.data, last.shard) == (tar.name, tar.name, None, tar.name)
    assert last.error is not None


def test_tar_cut_at_any_place_is_never_taken_for_whole(tmp_path):
    members = [(f"{number}.jpg", bytes([number]) * 700) for number in range(3)]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    end = 3 * (512 + 1024)
    for size in [*range(0, end, 97), *range(0, end + 1, 512)]:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:size])
        found = items(cut)
        assert [item.error is not None for item in found] == [False] * (len(found) - 1) + [True], size
        assert len(found) - 1 == max(0, (size - 512 - 700 + 1536) // 1536), size
    cut.write_bytes(whole[: end + 512])
    assert not errors(items(cut))


def test_damaged_header_in_the_middle_is_reported(tmp_path):
    tar = write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")])
    data = bytearray(tar.read_bytes())
    data[1024:1030] = b"\xff" * 6
    tar.write_bytes(data)
    found = items(tar)
    assert [item.source for item in found] == ["s.tar/a.jpg", "s.tar"]
    assert "damaged" in (found[1].error or "")


def test_random_damage_never_raises_or_hangs(tmp_path):
    tar = write_tar(tmp_path / "s.tar", [(f"{'long' * 30}{number}.jpg", b"1" * 300) for number in range(5)])
    whole = tar.read_bytes()
    rng = random.Random(5)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(7000)] = rng.choice([0, 0x80, 0xFF, rng.randrange(256)])
        for header in range(0, 7000, 512):  # a right checksum, so that the damage gets past it
            if rng.random() < 0.5 and data[header + 257 : header + 262] == b"ustar":
                data[header + 148 : header + 156] = b" " * 8
                data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        tar.write_bytes(data)
        assert len(items(tar)) <= 20


def test_header_that_claims_a_negative_or_endless_size(tmp_path):
    for size in (-1024, -512, 1 << 60):
        header = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT))
        header[124:136] = bytes([0xFF if size < 0 else 0x80]) + (size % (1 << 88)).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        tar = write_tar(tmp_path / "s.tar", [("a.jpg", b"1")])
        tar.write_bytes(tar.read_bytes()[:1024] + header + bytes(1024))
        found = items(tar)
        assert [item.source for item in found if item.error is None] == ["s.tar/a.jpg"]
        assert errors(found)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a tar", b"x" * 20000, gzip.compress(b"no tar inside")],
    ids=["empty", "short", "long", "compressed"],
)
def test_file_named_tar_that_is_none(tmp_path, content):
    put(tmp_path / "fake.tar", content)
    put(tmp_path / "good.jpg")
    found = items(tmp_path)
    assert [item.source for item in found] == ["good.jpg", "fake.tar"]
    assert "not a tar archive" in errors(found)["fake.tar"]


def test_empty_tar_is_fine(tmp_path):
    assert items(write_tar(tmp_path / "s.tar", [])) == []


def test_unsafe_names_are_reported_and_never_mended(tmp_path):
    bad = ["../up.jpg", "/etc/abs.jpg", "a/../../b.jpg", "a/..//c.jpg"]
    tar = write_tar(tmp_path / "s.tar", [(name, b"1") for name in bad] + [("ok.jpg", b"2"), ("../up.txt", b"3")])
    found = items(tar, side_members=True)
    assert [item.key for item in found if item.error is None] == ["ok"]
    assert all("unsafe name" in reason for reason in errors(found).values())
    assert len(errors(found)) == 5
    assert not any(Keys().claim(item) for item in found)


def test_what_was_reported_once_is_not_reported_again(tmp_path):
    """A continued run has a line for it already."""
    write_tar(tmp_path / "s.tar", [("../up.jpg", b"1"), ("big.jpg", b"1" * 200)])
    put(tmp_path / "fake.tar", b"no tar")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    first = items(tmp_path, limit=100)
    assert len(errors(first)) == len(first) == 4
    again = items(tmp_path, limit=100, finished=errors(first).__contains__)
    assert [(item.source, item.data, item.error) for item in again] == [(item.source, None, None) for item in first]


def test_safe_name():
    assert safe_name("./a//b.jpg") == "a/b.jpg"
    assert safe_name("...jpg") == "...jpg"
    for name in ("", ".", "/", "/a", "a/..", "../a", "a\0b", "a/../b"):
        with pytest.raises(UnsafeNameError):
            safe_name(name)


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path):
    tar = tmp_path / "s.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind in (("sym.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    found = items(tar)
    assert list(errors(found)) == [item.source for item in found] == ["s.tar/sym.jpg", "s.tar/hard.jpg"]


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "in" / "a" / "x.jpg", b"x")
    put(tmp_path / "elsewhere" / "y.jpg", b"y")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "y.jpg")
    (tmp_path / "in" / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "self.jpg").symlink_to("self.jpg")
    found = items(tmp_path / "in")
    assert {item.source: item.data for item in found if item.error is None} == {
        "link.jpg": b"y",
        "a/x.jpg": b"x",
        "away/y.jpg": b"y",
    }
    assert sorted(errors(found)) == ["broken.jpg", "self.jpg"]


def test_files_that_cannot_be_read_are_errors_and_the_rest_goes_on(tmp_path):
    for name in ("a", "b", "c", "d"):
        put(tmp_path / f"{name}.jpg")
    put(tmp_path / "locked" / "x.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "b.jpg").chmod(0)
    (tmp_path / "locked").chmod(0)
    root = os.geteuid() == 0
    for folder in (tmp_path, *tmp_path.parents[:-2]) if root else ():
        folder.chmod(0o755)
    try:
        if root:  # may read anything, so be somebody else meanwhile
            os.seteuid(65534)
        found = []
        for item in read(list_sources(tmp_path)):
            found.append(item)
            if item.source == "b.jpg":
                if root:
                    os.seteuid(0)
                (tmp_path / "c.jpg").unlink()
                if root:
                    os.seteuid(65534)
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "locked").chmod(0o755)
    assert [item.source for item in found if item.error is None] == ["a.jpg", "d.jpg"]
    reasons = errors(found)
    assert sorted(reasons) == ["b.jpg", "c.jpg", "locked", "pipe.jpg", "pipe.tar"]
    assert "Permission denied" in reasons["b.jpg"]
    assert "No such file" in reasons["c.jpg"]
    assert "Permission denied" in reasons["locked"]


def test_too_large_is_an_error_and_takes_no_memory(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1 << 33)
    write_tar(tmp_path / "s.tar", [("big.jpg", b"1" * 200), ("big.txt", b"1" * 200), ("small.jpg", b"2")])
    tracemalloc.start()
    found = items(tmp_path, side_members=True, limit=100)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert sorted(errors(found)) == ["huge.jpg", "s.tar/big.jpg", "s.tar/big.txt"]
    assert "limit of 100" in errors(found)["huge.jpg"]


PEAK = """
import sys, tracemalloc
from pathlib import Path
from pipeline.inputs.listing import list_sources
from pipeline.inputs.source import read
for path in sys.argv[1:]:
    tracemalloc.start()
    count = sum(1 for _ in read(list_sources(Path(path))))
    print(count, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_members_of_a_shard(tmp_path):
    counts = (100, 1000, 6000)  # the first one for what is kept once
    members = {count: [(f"{number:06}.jpg", b"") for number in range(count)] for count in counts}
    tars = [str(write_tar(tmp_path / f"{count}.tar", members[count])) for count in counts]
    # a fresh interpreter: tracemalloc counts whatever this one's other threads and leftovers allocate, too
    made = subprocess.run([sys.executable, "-c", PEAK, *tars], check=True, capture_output=True, text=True).stdout
    found = [tuple(map(int, line.split())) for line in made.splitlines()]
    assert tuple(count for count, _ in found) == counts
    assert found[2][1] - found[1][1] < 5000 * 250  # what is left is the digest of each name


def test_output_folder_below_the_input_is_left_out(tmp_path):
    put(tmp_path / "a.jpg")
    write_tar(tmp_path / "out" / "s.tar", [("b.jpg", b"1")])
    assert [entry.name for entry in list_sources(tmp_path, exclude=tmp_path / "out")] == ["a.jpg"]
    assert [entry.name for entry in list_sources(tmp_path, exclude=tmp_path)] == ["a.jpg", "out/s.tar"]
    assert [entry.name for entry in list_sources(tmp_path, exclude=tmp_path / "not yet")] == ["a.jpg", "out/s.tar"]


def test_duplicate_keys_name_the_first_of_them(tmp_path):
    put(tmp_path / "x.jpeg")
    put(tmp_path / "x.jpg")
    put(tmp_path / "s.tar.jpg")
    write_tar(tmp_path / "s.tar", [("x.jpg", b"1"), ("y.jpg", b"2"), ("y.jpg", b"3"), ("z.jpg", b"4")])
    write_tar(tmp_path / "t.tar", [("y.jpe", b"5")])
    (tmp_path / "u.tar").write_bytes(b"broken")
    keys, found = Keys(), items(tmp_path)
    assert {item.source: first for item in found if (first := keys.claim(item)) is not None} == {
        "x.jpg": "x.jpeg",
        "s.tar/x.jpg": "x.jpeg",
        "s.tar/y.jpg#2": "s.tar/y.jpg",
        "t.tar/y.jpe": "s.tar/y.jpg",
    }
    keys = Keys(per_shard=True)
    assert {item.source: first for item in found if (first := keys.claim(item)) is not None} == {
        "x.jpg": "x.jpeg",
        "s.tar/y.jpg#2": "s.tar/y.jpg",
    }


def test_duplicates_are_the_same_when_a_run_is_continued(tmp_path):
    put(tmp_path / "x.jpeg")
    put(tmp_path / "x.jpg")
    for done in (set(), {"x.jpeg"}, {"x.jpg"}, {"x.jpeg", "x.jpg"}):
        keys = Keys()
        assert [keys.claim(item) for item in items(tmp_path, finished=done.__contains__)] == [None, "x.jpeg"]


def test_a_million_keys_fit():
    keys = Keys()
    tracemalloc.start()
    for number in range(50_000):
        keys.claim(Item(f"{'folder' * 20}/{number}", f"{'folder' * 20}/{number}.jpg", None))
    assert tracemalloc.get_traced_memory()[0] < 50_000 * 160
    tracemalloc.stop()


def test_names_that_are_no_unicode(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"1")
    (item,) = items(tmp_path)
    assert os.fsencode(item.key) == b"\xff"
    assert item.data == b"1"
    assert Keys().claim(item) is None
