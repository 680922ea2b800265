"""The engine from Python: any size, any mode, in three lines."""

import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch
from jpegs import SAMPLINGS, edit, encode, photograph
from PIL import Image
from runs import mismatches, tiny_weights

from model.generator import Generator, GeneratorConfig
from model.noise import derive_seed
from model.weights import load, save
from pipeline import Options, Restored, Restorer
from pipeline.engine import tiling
from pipeline.engine.byte_limit import max_bytes
from pipeline.engine.device import choose_dtype, compile_network, one_thread
from pipeline.engine.memory import Buffers, SharedMemory, bytes_needed
from pipeline.engine.options import ModeError
from pipeline.engine.results import Failure
from pipeline.jpeg.errors import BitstreamError, UnsupportedJpeg

SAMPLE = Path(__file__).parents[3] / "pipeline/sample/sample.tar"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return str(tiny_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> str:
    return str(tiny_weights(tmp_path_factory.mktemp("weights"), noise=True))


def as_png(restored: Restored, sample: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(restored.pixels(sample)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (2, 3), (8, 8), (15, 17), (16, 16), (33, 5)])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
def test_any_size_and_sampling(weights, size, sampling):
    data = encode(photograph(*size), sampling, 30)
    restored = Restorer.from_pretrained(weights).restore(data)
    channels = 1 if sampling == "gray" else 3
    assert restored.images.shape == (1, channels, *size)
    assert restored.image.dtype == torch.uint8
    assert restored.pixels().shape == (size if channels == 1 else (*size, 3))
    assert [mismatches(data, as_png(restored))] == restored.sample_mismatches == [0]
    assert restored.mismatches == 0


def test_shipped_weights_by_default():
    data = encode(photograph(61, 70), quality=20)
    restored = Restorer.from_pretrained().restore(data)
    assert mismatches(data, as_png(restored)) == 0
    assert restored.bitstream.quality == 20
    assert restored.coefficients == restored.bitstream.coefficients.count


@pytest.mark.parametrize("weights", ["posterior", "mmse"])
@pytest.mark.parametrize(
    "tables",
    [{"quality": 100}, {"quality": 50, "qtables": [[6] * 64] * 2}],  # Pillow takes qtables for those of quality 50
    ids=["finer than any in training", "flat"],
)
def test_with_other_tables_than_those_of_training_files_come_out_better_than_their_plain_decode(weights, tables):
    with tarfile.open(SAMPLE) as shard:
        file = shard.extractfile("coffee-q30-420-icc.jpg")
        assert file
        original = np.asarray(Image.open(file).reduce(2))[:96, :96]
    data = encode(original, "4:2:0", **tables)
    restored = Restorer.from_pretrained(weights).restore(data).pixels()
    plain = np.asarray(Image.open(io.BytesIO(data)))
    errors = [np.square(image - original.astype(float)).mean() for image in (restored, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_samples_differ_and_come_again(noisy):
    data = encode(photograph(40, 50), quality=10)
    restorer = Restorer.from_pretrained(noisy, options=Options("sample", samples=3))
    first, again = restorer.restore(data, seed=1, key="a"), restorer.restore(data, seed=1, key="a")
    assert torch.equal(first.images, again.images)
    assert len({first.images[k].numpy().tobytes() for k in range(3)}) == 3
    assert not torch.equal(restorer.restore(data, seed=1, key="b").images, first.images)
    assert not torch.equal(restorer.restore(data, seed=2, key="a").images, first.images)
    assert [mismatches(data, as_png(first, k)) for k in range(3)] == first.sample_mismatches


def test_a_sample_is_the_same_however_many_are_drawn_and_the_trunk_runs_once_for_eight(noisy):
    data = encode(photograph(48, 64), quality=10)
    several, one = (Restorer.from_pretrained(noisy, options=Options("sample", samples=count)) for count in (9, 1))
    calls = []
    several.generator.after[0].register_forward_hook(lambda *_: calls.append(1))
    images = several.restore(data, seed=1, key="a").images
    assert len(calls) == 2
    assert torch.equal(one.restore(data, seed=1, key="a").image, images[0])


@pytest.mark.parametrize("batched", [False, True])
def test_the_regression_of_a_sampler_is_that_of_its_trunk(noisy, tmp_path, batched):
    """In mode mmse: the same image as by a regression network with the same trunk, whatever the seed."""
    sampler = load(noisy).generator
    alone = Generator(replace(sampler.config, noise=False))
    alone.load_state_dict({name: x for name, x in sampler.state_dict().items() if not name.startswith("noise_head.")})
    save(alone, tmp_path / "alone.safetensors")
    data, images = encode(photograph(60, 70), quality=20), []
    for weights, seed in ((noisy, 1), (noisy, 2), (str(tmp_path / "alone.safetensors"), 3)):
        restorer = Restorer.from_pretrained(weights, options=Options("mmse"))
        restorer.batched = batched
        restored = restorer.restore(data, seed)
        assert (restorer.mode, restored.images.shape, restored.mismatches) == ("mmse", (1, 3, 60, 70), 0)
        images.append(restored.image)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_a_sampler_without_a_regressions_output_has_no_mode_mmse(tmp_path):
    path = tmp_path / "rrdb.safetensors"
    save(Generator(GeneratorConfig(trunk="rrdb", features=8, blocks=1, growth=4, noise=True)), path)
    with pytest.raises(ModeError, match="only draw samples"):
        Restorer.from_pretrained(str(path), options=Options("mmse"))
    data = encode(photograph(24, 24), quality=10)
    assert Restorer.from_pretrained(str(path), options=Options("sample", 2, tile=512)).restore(data).mismatches == 0


def test_mean_lies_amid_the_samples(noisy):
    """The average of K draws is nearer to each than they are to one another, if it is averaged before rounding."""
    data = encode(photograph(64, 64), quality=10)
    draws = Restorer.from_pretrained(noisy, options=Options("sample", samples=8)).restore(data).images.double()
    mean = Restorer.from_pretrained(noisy, options=Options("mean", samples=8)).restore(data)
    assert mean.images.shape == (1, 3, 64, 64)
    assert mean.mismatches == 0
    distance = (mean.image.double() - draws).square().mean().sqrt()
    assert distance < 0.85 * (draws[0] - draws[1:]).square().mean().sqrt()
    assert (mean.image.double() - draws.mean(0)).square().mean().sqrt() < 0.5 * distance


@pytest.mark.parametrize(("size", "least"), [((64, 64), 38), ((100, 90), 45), ((128, 128), 50), ((300, 210), 50)])
def test_shipped_weights_make_the_same_image_in_batches(size, least):
    """To so many dB. A batch is padded to one of few shapes, as on a GPU; what differs is at the right and lower edges,
    so most in images of less than 128 pixels a side."""
    data = encode(photograph(*size), quality=20)
    single, batched = (Restorer.from_pretrained(options=Options(batch=1, tile=256)) for _ in range(2))
    batched.batched = True
    a, b = single.restore(data), batched.restore(data)
    assert a.mismatches == b.mismatches == 0
    assert mismatches(data, as_png(b)) == 0
    assert (a.image.double() - b.image.double()).square().mean() <= 255**2 / 10 ** (least / 10)


def test_a_compiled_network_makes_the_same_image(noisy):
    """As one graph for each shape, without a part that PyTorch could not trace; what compiles it for GPUs needs one."""
    plain, compiled = (Restorer.from_pretrained(noisy, "cpu", "float32", Options("sample", tile=256)) for _ in range(2))
    plain.batched = compiled.batched = True
    compile_network(compiled.generator, compiled.device, shapes=9, backend="aot_eager")
    data = encode(photograph(100, 90), quality=20)
    a, b = plain.restore(data), compiled.restore(data)
    assert a.mismatches == b.mismatches == 0
    assert (a.image.double() - b.image.double()).abs().mean() < 0.01
    with pytest.raises(ValueError, match="--compile"):
        Restorer.from_pretrained(noisy, "cpu", options=Options(compile=True))


def test_parts_draws_and_projections_make_up_a_restoration(noisy):
    """The steps that others take one by one are those of `restore`, and a part survives the way to another process."""
    restorer = Restorer.from_pretrained(noisy, options=Options("sample", samples=2, tile=208))
    bitstream = restorer.read(encode(photograph(300, 230), "4:2:2", 10))
    expected = restorer.restore_bitstream(bitstream, seed=1, key="a")
    c, seeds = bitstream.coefficients, tuple(derive_seed(1, "a", number) for number in range(2))
    memory = SharedMemory(1 << 20)
    buffers = Buffers.from_memory(memory.allocate(bytes_needed(c.sampling, c.size, 2)), c.sampling, c.size, 2)
    parts = restorer.tile_tasks(buffers.fill(c), seeds, buffers.images)
    assert len(parts) > 1
    for part in pickle.loads(memory.dumps(parts)):
        loaded = restorer.load([part])
        decoded = restorer.decode(loaded)
        (drawn,) = restorer.draw(loaded, decoded, [seeds])
        for image, x in zip(part.image.images, drawn.split(1), strict=True):
            (core,), wrong = restorer.project(loaded, [tiling.cut_core(x, part.tile)])
            assert wrong.tolist() == [0]
            tiling.paste(image, core, part.tile)
    assert torch.equal(buffers.images, expected.images)


def test_restore_many_goes_on_after_bad_files(weights):
    cmyk = io.BytesIO()
    Image.fromarray(photograph(16, 16)).convert("CMYK").save(cmyk, "JPEG")
    good = encode(photograph(20, 30))
    files = [("good", good), ("text", b"text"), ("cmyk", cmyk.getvalue()), ("again", good)]
    restorer = Restorer.from_pretrained(weights)
    results = dict(restorer.restore_many(iter(files)))
    assert list(results) == ["good", "text", "cmyk", "again"]
    good, text, cmyk, again = results.values()
    assert isinstance(text, Failure)
    assert isinstance(text.error, BitstreamError)
    assert not text.unsupported
    assert isinstance(cmyk, Failure)
    assert isinstance(cmyk.error, UnsupportedJpeg)
    assert cmyk.unsupported
    assert np.array_equal(good.pixels(), again.pixels())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_restore_many_is_restore_of_each_in_order(noisy, batched, workers):
    """Tiles of several files are one batch on a device, whose batches are complete where there is enough."""
    sizes = ((40, 50), (300, 230), (64, 64), (30, 200)) * 3
    files = [(str(n), encode(photograph(*size, n), "4:2:2", 10)) for n, size in enumerate(sizes)]
    restorer = Restorer.from_pretrained(noisy, options=Options("sample", samples=2, tile=208, batch=4))
    restorer.batched = batched
    with one_thread(restorer.device):  # on which a convolution's last bits may depend
        expected = [restorer.restore(data, 5, key) for key, data in files]
    batches, begin = [], restorer.restore_tiles
    restorer.restore_tiles = lambda parts: (batches.append(len(parts)), begin(parts))[1]
    threads = torch.get_num_threads()
    found = list(restorer.restore_many(iter(files), seed=5, workers=workers))
    assert torch.get_num_threads() == threads
    assert [key for key, _ in found] == [key for key, _ in files]
    for (_, restored), own in zip(found, expected, strict=True):
        assert restored.sample_mismatches == own.sample_mismatches
        assert torch.equal(restored.images, own.images)
    assert (max(batches) > 1) == batched


def test_a_file_is_given_by_its_bytes_its_path_or_open(weights, tmp_path):
    data = encode(photograph(24, 40), "4:2:0", 30)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    restorer = Restorer.from_pretrained(weights)
    with path.open("rb") as opened:
        sources = [bytearray(data), memoryview(data), path, str(path), opened, io.BytesIO(data)]
        files = [(str(number), source) for number, source in enumerate([data, *sources])]
        expected, *found = dict(restorer.restore_many(files)).values()
    for restored in found:
        assert torch.equal(restored.image, expected.image)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        restorer.restore(tmp_path / "none.jpg")


def test_a_copy_for_another_process_restores_the_same(noisy):
    """A DataLoader sends its dataset to workers that are not forked, Python 3.14's default."""
    restorer = Restorer.from_pretrained(noisy, device="cpu")
    data = encode(photograph(40, 56), "4:2:0", 30)
    expected = restorer.restore(data, key="a")
    copy = pickle.loads(pickle.dumps(restorer))
    assert torch.equal(copy.restore(data, key="a").image, expected.image)
    assert restorer.stopwatch.stages.keys() == copy.stopwatch.stages.keys()
    assert "bitstream" not in pickle.loads(pickle.dumps(restorer)).stopwatch.stages


def test_restore_many_reads_no_further_ahead_than_memory_permits(weights):
    """Files that say that they are so large that there is room for one, and turn out to be truncated."""
    restorer, size, taken = Restorer.from_pretrained(weights), (4200, 4000), []
    data = edit(encode(photograph(64, 96)), 0xC0, lambda frame: frame.__setitem__(slice(1, 5), pack(">HH", *size)))
    data = data[:-200]
    limit, each = max_bytes(2, restorer.batched), restorer.estimate_bytes(size, data)
    assert each < limit < 2 * each

    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(6):
            taken.append(number)
            yield str(number), data

    for number, (key, failure) in enumerate(restorer.restore_many(files(), workers=2)):
        assert key == str(number)
        assert isinstance(failure, Failure)
        assert len(taken) <= number + 2  # one that is restored, and one that waits for it to be taken
    assert len(taken) == 6


def test_restore_many_says_why_a_file_cannot_be_read(weights, tmp_path):
    ((key, failure),) = Restorer.from_pretrained(weights).restore_many([("gone", tmp_path / "gone.jpg")])
    assert key == "gone"
    assert isinstance(failure, Failure)
    assert str(failure.error) == "cannot be read: No such file or directory"


def test_restore_many_can_be_left_and_says_what_is_not_the_files(weights):
    restorer = Restorer.from_pretrained(weights)
    data = encode(photograph(20, 30))

    def endless() -> Iterator[tuple[str, bytes]]:
        while True:
            yield "again", data

    def broken() -> Iterator[tuple[str, bytes]]:
        yield "first", data
        raise OSError("the disk is gone")

    stream = restorer.restore_many(endless(), workers=2)
    assert next(stream)[1].mismatches == 0
    stream.close()
    with pytest.raises(OSError, match="the disk is gone"):
        list(restorer.restore_many(broken(), workers=2))
    restorer.restore_tiles = lambda parts: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(restorer.restore_many([("a", data)], workers=2))


def test_modes_that_the_weights_cannot_serve(weights, noisy):
    for which, options, message in (
        (weights, Options("sample"), "deterministic"),
        (weights, Options("mean", 4), "deterministic"),
        (weights, Options("mmse", 2), "one image per file"),
        (noisy, Options("mmse", 2), "one image per file"),
        (noisy, Options("sample", 0), "at least 1"),
        (noisy, Options("best"), "expected sample, mean, mmse"),
    ):
        with pytest.raises(ModeError, match=message):
            Restorer.from_pretrained(which, options=options)


def test_types_of_the_network(weights):
    with pytest.raises(ValueError, match="float16"):
        Restorer.from_pretrained(weights, dtype="float16")
    data = encode(photograph(64, 64), quality=30)
    full, half = (Restorer.from_pretrained(weights, dtype=name).restore(data) for name in ("float32", "bfloat16"))
    assert full.mismatches == half.mismatches == 0
    assert (full.image.double() - half.image.double()).square().mean() < 1
    assert choose_dtype("auto", torch.device("cuda:0")) == torch.bfloat16


def test_three_lines_of_the_docstring(tmp_path, weights):
    (tmp_path / "photo.jpg").write_bytes(encode(photograph(16, 16)))
    restorer = Restorer.from_pretrained(weights)
    restored = restorer.restore(Path(tmp_path / "photo.jpg").read_bytes())
    Image.fromarray(restored.pixels()).save(tmp_path / "photo.png")
    assert np.array_equal(Image.open(tmp_path / "photo.png"), restored.pixels())
