"""The generator: what it refuses, what it listens to, and that it knows pixels by their place in the MCU grid only."""

import copy

import pytest
import torch

from kernels import Subsampling, quality_to_tables
from model.generator import Generator, GeneratorConfig, Noise, three_tables

PLAIN = GeneratorConfig(features=8, blocks=3, embedding=8)
DEEP = GeneratorConfig(features=8, blocks=2, inner_features=12, inner_blocks=2, embedding=8, noise=True)
GRAY, S420 = (torch.tensor([list(Subsampling).index(s)]) for s in (Subsampling.GRAY, Subsampling.S420))


def generator_of(config, seed=0):
    """Every parameter random, also those that training starts at zero."""
    torch.manual_seed(seed)
    generator = Generator(config)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def picture(height, width, images=1, seed=0):
    return torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(seed))


def tables_of(quality, components=3, images=1):
    return quality_to_tables(quality, components).expand(images, -1, -1, -1)


def noise_at(y, x, seed=5):
    return Noise(torch.tensor([seed]), torch.tensor([[y, x]]))


def run(generator, image, quality=20, sampling=S420, noise=None):
    noise = noise_at(0, 0) if noise is None and generator.config.noise else noise
    with torch.no_grad():
        return generator(image, tables_of(quality), sampling, noise)


@pytest.mark.parametrize("shape", [(1, 3, 40, 48), (1, 3, 48, 40), (1, 1, 48, 48), (3, 48, 48), (1, 4, 16, 16)])
def test_other_shapes_are_refused_with_the_shape_in_the_message(shape):
    with pytest.raises(ValueError, match=str(list(shape)).replace("[", r"\[")):
        generator_of(PLAIN)(torch.zeros(shape), tables_of(20), S420)


def test_noise_is_given_where_it_is_wanted_and_only_there():
    for config, noise in ((PLAIN, noise_at(0, 0)), (DEEP, None)):
        with pytest.raises(ValueError, match="noise"):
            generator_of(config)(picture(16, 16), tables_of(20), S420, noise)


@pytest.mark.parametrize("config", [PLAIN, DEEP])
def test_a_shift_by_one_mcu_shifts_the_output(config):
    generator, image = generator_of(config), picture(144, 160)
    noise = noise_at(160, 320) if config.noise else None
    moved = noise_at(176, 336) if config.noise else None
    whole, part = run(generator, image, noise=noise), run(generator, image[:, :, 16:, 16:], noise=moved)
    reach = 32 if config is PLAIN else 64
    assert part.shape == (1, 3, 128, 144)
    assert torch.allclose(part[:, :, reach:, reach:], whole[:, :, 16 + reach :, 16 + reach :], atol=1e-5)
    if config.noise:
        unmoved = run(generator, image[:, :, 16:, 16:], noise=noise)
        assert not torch.allclose(unmoved[:, :, reach:, reach:], whole[:, :, 16 + reach :, 16 + reach :], atol=1e-2)


def test_it_sees_where_in_the_mcu_a_pixel_lies():
    flat = torch.full((1, 3, 96, 96), 0.5)
    inner = (run(generator_of(PLAIN), flat) - flat)[:, :, 32:64, 32:64]
    assert torch.allclose(inner[:, :, :16, :16], inner[:, :, 16:, 16:], atol=1e-5)
    assert not torch.allclose(inner[:, :, :8, :8], inner[:, :, :8, 8:16], atol=1e-3)


def test_tables_sampling_and_noise_change_the_output():
    generator, image = generator_of(DEEP), picture(32, 32)
    outputs = [
        run(generator, image),
        run(generator, image, quality=60),
        run(generator, image, sampling=GRAY),
        run(generator, image, noise=noise_at(0, 0, seed=6)),
    ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert float((one - other).abs().max()) > 1e-3
    assert torch.equal(outputs[0], run(generator, image))


def test_one_gray_table_counts_as_itself_and_two_of_ones():
    generator, image = generator_of(PLAIN), picture(32, 32)
    gray = tables_of(10, components=1)
    three = torch.cat((gray, torch.ones(1, 2, 8, 8, dtype=torch.int32)), dim=1)
    assert torch.equal(three_tables(gray), three)
    with torch.no_grad():
        outputs = [generator(image, tables, GRAY) for tables in (gray, three, tables_of(10))]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_images_of_a_batch_do_not_touch_each_other():
    generator, images = generator_of(DEEP), picture(32, 48, images=3)
    tables = torch.cat([tables_of(q) for q in (10, 40, 90)])
    sampling, noise = torch.tensor([4, 0, 2]), Noise(torch.tensor([1, 2, 3]), torch.tensor([[0, 0], [16, 0], [0, 32]]))
    with torch.no_grad():
        together = generator(images, tables, sampling, noise)
        for i in range(3):
            one = slice(i, i + 1)
            alone = generator(images[one], tables[one], sampling[one], Noise(noise.seeds[one], noise.origins[one]))
            assert torch.allclose(together[one], alone, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, DEEP])
def test_gradients_reach_every_parameter(config):
    generator = generator_of(config)
    generator(picture(32, 32), tables_of(20), S420, noise_at(0, 0) if config.noise else None).square().sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_it_starts_near_the_decoded_image():
    torch.manual_seed(0)
    image = picture(64, 64)
    assert float((run(Generator(GeneratorConfig()), image) - image).square().mean()) < 0.1**2


@pytest.mark.parametrize("config", [PLAIN, DEEP])
def test_bfloat16_convolutions_stay_close_to_float32(config):
    exact, image = generator_of(config), picture(64, 64)
    fast = copy.deepcopy(exact).convolve_in(torch.bfloat16)
    assert fast.conditioning.layers[0].weight.dtype == torch.float32
    output = run(fast, image)
    assert output.dtype == torch.float32
    change = run(exact, image) - image
    assert float((output - image - change).square().mean() / change.square().mean()) < 0.02**2
    unchanged = copy.deepcopy(exact).convolve_in(torch.float32)
    assert torch.allclose(run(unchanged, image), run(exact, image), atol=1e-5)
