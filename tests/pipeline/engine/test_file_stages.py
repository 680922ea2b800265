"""The stages of a file, one by one: what each may rely on, and what it must leave as it was."""

import io
from pathlib import Path

import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import command, tiny_weights

from pipeline.command_line import parse
from pipeline.engine.admission import estimate_bytes
from pipeline.engine.file_stages import encode_images, entropy_decode
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory, bytes_needed
from pipeline.engine.run import make_tasks
from pipeline.engine.task import DecodedFile, RawFile, Task
from pipeline.inputs.source import Item
from pipeline.jpeg.bitstream import Layout
from pipeline.restore import make_job


def make(folder: Path, *options: str) -> Job:
    weights = tiny_weights(folder, noise=True)
    return make_job(parse(command(folder, folder / "out", "--weights", weights, *options)))


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("verify", [False, True])
def test_images_can_be_encoded_again(tmp_path, samples, verify):
    """As when the process that encodes them dies: they are still there, and so is what --verify reads."""
    job = make(tmp_path, "--samples", str(samples), *(["--verify"] if verify else []))
    restorer, data = job.restorer, encode(photograph(64, 80), quality=50)
    layout = restorer.parse(data)
    assert isinstance(layout, Layout)
    piece = SharedMemory(1 << 20).allocate(bytes_needed(layout.sampling, layout.size, samples))
    found = entropy_decode(job, RawFile(data, layout, piece))
    assert isinstance(found, DecodedFile)
    work = restorer.begin(found.bitstream, images=found.images)
    work.deviations.extend(restorer.restore_tiles(work.tasks)())
    restored = work.restored()
    assert restored.images.data_ptr() == found.images.data_ptr()
    first, again = (
        [bytes(x.numpy()) if hasattr(x, "numpy") else x for x in encode_images(job, restored, piece)] for _ in "12"
    )
    assert first == again
    assert [Image.open(io.BytesIO(image)).size for image in first] == [(80, 64)] * samples


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_files_that_are_passed_through_are_admitted_by_their_size_too(tmp_path, mode):
    plain = io.BytesIO()
    Image.new(mode, (1200, 1000)).save(plain, "JPEG")
    (task,) = make_tasks(make(tmp_path), [Item("a", "a.jpg", plain.getvalue())])
    assert isinstance(task, Task)
    assert task.file.size == (1000, 1200)
    assert estimate_bytes(make(tmp_path).restorer, task) > 3 * 1200 * 1000
