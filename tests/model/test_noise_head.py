"""A generator's two outputs: what samples share, what they depend on, and where gradients go."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kernels import Subsampling, quality_to_tables
from model.generator import Generator, GeneratorConfig, Noise, noise_amplitude
from model.noise import uniform
from model.noise_head import HALO, TILE, NoiseHead, dense_filters
from model.weights import load

CONFIG = GeneratorConfig(features=8, blocks=3, embedding=8, noise=True)
S420 = list(Subsampling).index(Subsampling.S420)


def generator_of(config=CONFIG):
    """Every parameter random, also those that training starts at zero."""
    torch.manual_seed(0)
    generator = Generator(config)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def inputs(height, width, *qualities):
    """An image, tables and sampling for each quality."""
    images = torch.rand(len(qualities), 3, height, width, generator=torch.Generator().manual_seed(1))
    tables = torch.cat([quality_to_tables(quality, 3).reshape(1, 3, 8, 8) for quality in qualities])
    return images, tables, torch.full((len(qualities),), S420)


def noise_of(*seeds, origin=(0, 0)):
    return Noise(torch.tensor(seeds), torch.tensor([origin] * len(seeds)))


@pytest.fixture(scope="module")
def shipped():
    return load("posterior").generator


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_is_the_same_bit_for_bit_however_many_are_drawn(dtype):
    generator = load("posterior").generator.convolve_in(dtype)
    image = inputs(48, 64, 20)
    seeds = (5, -7, 2**62)
    together = generator(*image, noise_of(seeds))
    assert torch.equal(together.mean, generator(*image))
    for k, seed in enumerate(seeds):
        alone = generator(*image, noise_of((seed,)))
        assert torch.equal(alone.samples[:, 0], together.samples[:, k])
        assert not torch.equal(together.samples[:, k], together.samples[:, k - 1])


@torch.no_grad()
def test_the_trunk_runs_once_for_all_samples(shipped):
    calls = []
    hooks = [block.register_forward_hook(lambda *_: calls.append(1)) for block in (*shipped.before, *shipped.after)]
    shipped(*inputs(32, 32, 20, 40), noise_of((1, 2, 3, 4), (5, 6, 7, 8)))
    for hook in hooks:
        hook.remove()
    assert len(calls) == shipped.config.blocks


@torch.no_grad()
def test_where_noise_is_silent_a_sample_is_the_regression(shipped):
    image, tables, sampling = inputs(32, 48, 40, 90, 97)
    drawn = shipped(image, tables, sampling, noise_of((1, 2), (3, 4), (5, 6)))
    assert noise_amplitude(tables).flatten().tolist() == [1, 0, 0]
    assert torch.equal(drawn.mean, shipped(image, tables, sampling))
    assert torch.equal(drawn.samples[1:], drawn.mean[1:, None].expand(-1, 2, -1, -1, -1))
    assert (drawn.samples[0] - drawn.mean[0]).abs().mean() > 0.005


@torch.no_grad()
def test_in_blocks_of_a_cpu_and_whole_the_head_makes_the_same(monkeypatch):
    """Bit for bit; two images at places of their own, three blocks down and two across."""
    generator, noise = generator_of(), Noise(torch.tensor([[3, 5], [-8, 9]]), torch.tensor([[0, 0], [16, 2**33]]))
    image = inputs(2 * TILE + 16, TILE + 32, 20, 30)
    in_blocks = generator(*image, noise).samples
    monkeypatch.setattr("model.noise_head.TILE", 1 << 20)
    assert torch.equal(generator(*image, noise).samples, in_blocks)


@torch.no_grad()
def test_a_margin_is_no_wider_than_pixels_are_felt():
    head, features = NoiseHead(8, 12), torch.randn(1, 8, 8, 8)
    images = torch.rand(2, 1, 3, 32, 32)
    corner = torch.zeros(1, 2, dtype=torch.int64)
    whole = head(features, *images, torch.tensor([[1]]), corner)
    corner[:, 1] = 16
    part = head(features[..., 4:], *images[..., 16:], torch.tensor([[1]]), corner)
    differing = ((part - whole[..., 16:]).abs().amax((0, 1, 2, 3)) > 1e-6).nonzero().flatten()
    assert differing.tolist() == list(range(HALO))


@torch.no_grad()
def test_a_tile_has_the_samples_of_the_whole_image():
    generator, (image, tables, sampling) = generator_of(), inputs(160, 176, 20)
    whole = generator(image, tables, sampling, noise_of((7, -9), origin=(32, 64))).samples
    reach = generator.receptive_radius
    tile = generator(image[..., 16:, 32:], tables, sampling, noise_of((7, -9), origin=(48, 96))).samples
    assert torch.allclose(tile[..., reach:, reach:], whole[..., 16 + reach :, 32 + reach :], atol=1e-5)
    moved = generator(image[..., 16:, 32:], tables, sampling, noise_of((7, -9), origin=(32, 64))).samples
    assert (moved[..., reach:, reach:] - whole[..., 16 + reach :, 32 + reach :]).abs().mean() > 1e-3


@torch.no_grad()
def test_the_head_is_what_its_docstring_says():
    """Written out, from its weights."""
    torch.manual_seed(0)
    head, features, (decoded, change) = NoiseHead(6, 10), torch.randn(2, 6, 4, 8), torch.rand(2, 2, 3, 16, 32)
    seeds, origins, w = torch.tensor([[3], [-4]]), torch.tensor([[0, 16], [32, 0]]), head.state_dict()
    z = uniform(seeds[:, 0], origins - 2, (20, 36)).contiguous()
    amplitudes = torch.einsum("of,nfhw->nohw", w["amplitudes.weight"][..., 0, 0], F.leaky_relu(features, 0.2))
    amplitudes = amplitudes + w["amplitudes.bias"][:, None, None]
    amplitudes = F.interpolate(amplitudes, scale_factor=4, mode="bilinear")
    textured = amplitudes * F.conv2d(z, w["filters.weight"])
    seen = torch.cat((textured, decoded - 0.5, 4 * change), 1)
    hidden = F.conv2d(seen, torch.cat((w["texture.weight"], w["context.weight"]), 1), w["context.bias"], padding=1)
    expected = F.conv2d(F.leaky_relu(hidden, 0.2), w["output.weight"], w["output.bias"], padding=1)
    expected = expected + F.conv2d(textured, w["mix.weight"])
    assert torch.allclose(head(features, decoded, change, seeds, origins)[:, 0], expected, atol=1e-6)


def test_samples_leave_the_regressions_tail_alone_and_reach_all_else():
    generator = generator_of()
    drawn = generator(*inputs(32, 32, 20, 40), noise_of((1, 2), (3, 4)))
    drawn.samples.square().sum().backward()
    own = {name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()}
    assert own == {"tail.weight", "tail.bias", "gain.weight", "gain.bias"}
    generator.zero_grad()
    drawn = generator(*inputs(32, 32, 20, 40), noise_of((1, 2), (3, 4)))
    drawn.mean.square().sum().backward()
    others = {name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()}
    assert others == {f"noise_head.{name}" for name, _ in generator.noise_head.named_parameters()}


def test_noise_of_small_changes_in_the_seed_differs(shipped):
    with torch.no_grad():
        samples = shipped(*inputs(32, 32, 10), noise_of((0, 1, -1, 2**32, -(2**63)))).samples[0]
    for k in range(5):
        for other in range(k):
            assert (samples[k] - samples[other]).abs().mean() > 0.005


def test_a_regression_of_the_same_configuration_has_the_same_trunk():
    """So that its weights are those that a sampler starts from."""
    ours, theirs = (Generator(config).state_dict() for config in (CONFIG, replace(CONFIG, noise=False)))
    assert {name for name in ours if not name.startswith("noise_head.")} == set(theirs)


def test_filters_of_older_weights_give_the_same_maps():
    """They were depthwise, of the noise repeated along the channels."""
    z, filters = torch.randn(2, 8, 12, 16), torch.randn(24, 1, 5, 5)
    before = F.conv2d(z.repeat(1, 3, 1, 1), filters, padding=2, groups=24)
    assert torch.allclose(F.conv2d(z, dense_filters(filters), padding=2), before, atol=1e-5)
