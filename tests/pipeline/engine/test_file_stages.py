"""The stages of a file, one by one: what each may rely on, and what it must leave as it was."""

import io
from pathlib import Path

import pytest
from jpegs import encode, photograph
from PIL import Image
from runs import command, tiny_weights

from pipeline.command_line import parse
from pipeline.engine.admission import bytes_of, with_memory
from pipeline.engine.file_stages import encode_images, entropy_decode, merge_decoded, merge_images, results_of
from pipeline.engine.job import Job
from pipeline.engine.memory import SharedMemory, bytes_needed
from pipeline.engine.run import make_tasks
from pipeline.engine.task import Task
from pipeline.inputs.source import Item
from pipeline.restore import make_job


def make(folder: Path, *options: str) -> Job:
    weights = tiny_weights(folder, noise=True)
    return make_job(parse(command(folder, folder / "out", "--weights", weights, *options)))


def read_task(job: Job, data: bytes) -> Task:
    (task,) = make_tasks(job, [Item("a", "a.jpg", data)])
    assert isinstance(task, Task)
    return task


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("verify", [False, True])
def test_images_can_be_encoded_again(tmp_path, samples, verify):
    """As when the process that encodes them dies: they are still there, and so is what --verify reads."""
    job = make(tmp_path, "--samples", str(samples), *(["--verify"] if verify else []))
    task = read_task(job, encode(photograph(64, 80), quality=50))
    layout = task.file.layout
    piece = SharedMemory(1 << 20).allocate(bytes_needed(layout.sampling, layout.size, samples))
    file = with_memory(task, piece).file
    task = merge_decoded(job, task, file, entropy_decode(job, file))
    task.work.deviations.extend(job.restorer.restore_tiles(task.work.tasks)())
    (result,) = results_of(task)
    first, again = (merge_images(task, result, encode_images(job, *result)).images for _ in range(2))
    assert first == again
    assert [Image.open(io.BytesIO(image)).size for image in first] == [(80, 64)] * samples


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_files_are_admitted_by_their_size_in_pixels_modelled_or_not(tmp_path, mode):
    plain = io.BytesIO()
    Image.new(mode, (1200, 1000)).save(plain, "JPEG")
    job = make(tmp_path)
    task = read_task(job, plain.getvalue())
    assert task.file.size == (1000, 1200)
    assert bytes_of(job.restorer, task) > 3 * 1200 * 1000
