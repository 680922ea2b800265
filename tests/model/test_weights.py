"""Weights: what is saved is what is loaded, and what cannot be loaded is refused with the reason."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from model.generator import Generator, GeneratorConfig
from model.weights import FORMAT, SHIPPED, WeightsError, load, resolve, save

CONFIG = GeneratorConfig(features=8, blocks=3, inner_features=4, inner_blocks=1, embedding=6, noise=True)
FORK = multiprocessing.get_context("fork")


def generator_of(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    return Generator(config)


def metadata():
    return {"format": FORMAT, "config": json.dumps(dataclasses.asdict(CONFIG))}


def assert_equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_float32_comes_back_bit_for_bit_with_its_configuration(tmp_path):
    generator, path = generator_of(), tmp_path / "mine.v2.safetensors"
    save(generator, path, note="of a test")
    loaded = load(str(path))
    assert loaded.generator.config == CONFIG
    assert loaded.name == "mine.v2"
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert_equal(loaded.generator, generator)
    assert not loaded.generator.training
    assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shorter_numbers_are_loaded_as_float32(tmp_path, dtype):
    generator, path = generator_of(), tmp_path / "short.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in generator.state_dict().items()}, path, metadata())
    for key, tensor in load(str(path)).generator.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, generator.state_dict()[key].to(dtype).float())


def test_the_digest_changes_with_any_weight(tmp_path):
    generator, path = generator_of(), tmp_path / "w.safetensors"
    save(generator, path)
    first = load(str(path)).digest
    for _ in range(8):
        save(generator, path)
        assert load(str(path)).digest == first
    with torch.no_grad():
        generator.tail.bias[0] += 1e-6
    save(generator, path)
    assert load(str(path)).digest != first


def test_loading_draws_no_random_numbers(tmp_path):
    save(generator_of(), tmp_path / "w.safetensors")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load(str(tmp_path / "w.safetensors"))
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_name_lists_those_that_are_shipped(tmp_path):
    with pytest.raises(WeightsError, match=r"'nothing'.*safetensors file.*shipped") as caught:
        load("nothing")
    assert all(path.stem in str(caught.value) for path in SHIPPED.glob("*.safetensors"))
    for name in (str(tmp_path), str(tmp_path / "none.safetensors"), "", "../weights", "a\0b"):
        with pytest.raises(WeightsError):
            resolve(name)


def test_damaged_and_foreign_files_are_refused_with_their_path(tmp_path):
    path = tmp_path / "w.safetensors"
    save(generator_of(), path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:7], whole[:100], whole[: len(whole) // 2], whole[:-1], b"\xff" * 99):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"w\.safetensors"):
            load(str(path))
    for metadata in (None, {}, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        with pytest.raises(WeightsError, match="does not hold a generator"):
            load(str(path))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    path, tensors = tmp_path / "w.safetensors", generator_of().state_dict()
    good = str(dataclasses.asdict(CONFIG)).replace("'", '"').replace("True", "true")
    save_file(tensors, path, {"format": FORMAT, "config": good})
    load(str(path))
    configurations = ["", "[1]", "{", good.replace('"features": 8', '"features": 9'), good.replace("8", "1000000000")]
    configurations += [good.replace("blocks", "rooms"), good.replace("8", '"eight"'), good.replace("8", "-8")]
    for config in configurations:
        save_file(tensors, path, {"format": FORMAT, "config": config})
        with pytest.raises(WeightsError, match=r"w\.safetensors"):
            load(str(path))
    save_file({k: v for k, v in tensors.items() if k != "head.bias"}, path, {"format": FORMAT, "config": good})
    with pytest.raises(WeightsError, match=r"head\.bias"):
        load(str(path))


def test_samplers_with_noise_in_their_blocks_are_refused_with_what_replaced_them(tmp_path):
    """As files of noise version 2 are."""
    path, config = tmp_path / "old.safetensors", dataclasses.replace(CONFIG, noise=False)
    tensors = generator_of(config=config).state_dict()
    tensors |= {f"{name}.noise_weight": torch.zeros(8, 1, 1) for name in ("before.0", "after.0", "after.1")}
    save_file(tensors, path, metadata())
    with pytest.raises(WeightsError, match=r"old\.safetensors.*noise head.*posterior\.yaml"):
        load(str(path))


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    generators, path = [generator_of(seed) for seed in (0, 1)], tmp_path / "w.safetensors"
    save(generators[0], path)
    digests = {load(str(path)).digest}
    save(generators[1], path)
    digests.add(load(str(path)).digest)

    def save_for_ever():
        while True:
            for generator in generators:
                save(generator, path)

    for attempt in range(12):
        child = FORK.Process(target=save_for_ever)
        child.start()
        time.sleep(0.02 + 0.0037 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert load(str(path)).digest in digests
