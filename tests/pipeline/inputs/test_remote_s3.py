"""From S3 to S3, by moto's server: real requests, a real `kill -9`, and the run goes on elsewhere."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import environment, files, items, lines, photographs, s3_bucket, upload
from runs import command, outputs, tiny_weights

from pipeline import restore
from pipeline.inputs.listing import SourceError, list_sources
from pipeline.inputs.source import MAX_DENIED, Item, read


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def test_s3_killed_and_continued(tmp_path, monkeypatch):
    """Real requests and a real `kill -9`: what has a line is there, and the next run completes the rest."""
    local = photographs(tmp_path / "in")
    options = ("--weights", str(tiny_weights(tmp_path)), "--output-shards")
    assert restore.main(command(local, tmp_path / "out", *options)) == 0
    expected = {name: data for name, data in outputs(tmp_path / "out").items() if not name.startswith("manifest")}
    with s3_bucket(monkeypatch) as bucket:
        source, out = upload(local, bucket / "in"), bucket / "out"
        assert [item.source for item in items(source)] == [item.source for item in items(local)]
        arguments = [*command(Path(), Path(), *options), "--input-dir", source.address, "--output-dir", out.address]
        run = subprocess.Popen([sys.executable, "-m", "pipeline.restore", *arguments], env=environment())
        wait_until(lambda: bool(lines(out)) or run.poll() is not None)
        run.send_signal(signal.SIGKILL)
        run.wait()
        done = lines(out)
        assert {line["shard"] for line in done} <= files(out).keys()
        assert restore.main([*arguments, "--workers", "2"]) == 0
        assert files(out) == expected
        assert sorted(line["source"] for line in lines(out)) == sorted(
            item.source for item in items(local) if isinstance(item, Item)
        )
        assert [line for line in lines(out) if line in done] == done


@pytest.mark.parametrize(("suffix", "denied"), [("tar", 1), ("tar", MAX_DENIED), ("jpg", 1), ("jpg", MAX_DENIED + 1)])
def test_denied_files_fail_and_a_store_that_denies_all_ends_the_run(monkeypatch, suffix, denied):
    """S3 denies the reading of archived objects, each as one file's trouble, and an expired token's of all."""
    with s3_bucket(monkeypatch) as bucket:
        for number in range(15):
            archived = {"StorageClass": "GLACIER"} if 1 <= number <= denied else {}
            bucket.fs.pipe_file(f"bucket/in/{number:02}.{suffix}", b"x", **archived)
        sources = list_sources(bucket / "in")
        if denied > MAX_DENIED:
            with pytest.raises(SourceError, match=r"PermissionError: .*; start the run again"):
                list(read(sources))
            return
        found = {item.source: item for item in read(sources)}
    refused = [name for name, item in found.items() if item.transient]
    assert len(found) == 15
    assert [int(name[:2]) for name in refused] == list(range(1, denied + 1))
    assert all("PermissionError: " in found[name].error for name in refused)
