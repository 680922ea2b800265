"""The generator: what it refuses, what it listens to, and that it knows pixels by their place in the MCU grid only."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kernels import Subsampling, quality_to_tables
from model.generator import (
    NOISE_LIMIT,
    Generator,
    GeneratorConfig,
    InjectedNoise,
    Noise,
    Sampled,
    initialise_from,
    noise_amplitude,
    three_tables,
)
from model.noise import gaussian
from model.rrdb import DenseBlock, NoiseConv2d, Upsampler
from model.weights import load, save

PLAIN = GeneratorConfig(features=8, blocks=3, embedding=8)
PAPER = GeneratorConfig(trunk="rrdb", blocks=23, features=64, growth=32, noise=True)
DEEP = GeneratorConfig(features=8, blocks=2, inner_features=12, inner_blocks=2, embedding=8, noise=True)
RRDB = GeneratorConfig(trunk="rrdb", features=8, blocks=1, growth=4, embedding=8, noise=True)
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


def noise_at(y, x, *seeds):
    return Noise(torch.tensor([seeds or (5,)]), torch.tensor([[y, x]]))


def first_of(output):
    """The first sample of what is drawn, or a regression's output: [N, 3, H, W]."""
    return output.samples[:, 0] if isinstance(output, Sampled) else output


def cut_off(noise):
    return noise.clamp(-NOISE_LIMIT, NOISE_LIMIT)


def run(generator, image, quality=20, sampling=S420, noise=None):
    noise = noise_at(0, 0) if noise is None and generator.config.noise else noise
    with torch.no_grad():
        return first_of(generator(image, tables_of(quality), sampling, noise))


@pytest.mark.parametrize("shape", [(1, 3, 40, 48), (1, 3, 48, 40), (1, 1, 48, 48), (3, 48, 48), (1, 4, 16, 16)])
def test_other_shapes_are_refused_with_the_shape_in_the_message(shape):
    with pytest.raises(ValueError, match=str(list(shape)).replace("[", r"\[")):
        generator_of(PLAIN)(torch.zeros(shape), tables_of(20), S420)


def test_noise_is_given_where_it_is_wanted_and_only_there():
    for config, noise in ((PLAIN, noise_at(0, 0)), (RRDB, None)):
        with pytest.raises(ValueError, match="noise"):
            generator_of(config)(picture(16, 16), tables_of(20), S420, noise)


@pytest.mark.parametrize(("config", "reach"), [(PLAIN, 32), (DEEP, 64), (RRDB, 73)])
def test_a_shift_by_one_mcu_shifts_the_output(config, reach):
    generator, image = generator_of(config), picture(144, 160)
    noise = noise_at(160, 320) if config.noise else None
    moved = noise_at(176, 336) if config.noise else None
    whole, part = run(generator, image, noise=noise), run(generator, image[:, :, 16:, 16:], noise=moved)
    assert generator.receptive_radius == reach
    assert part.shape == (1, 3, 128, 144)
    assert torch.allclose(part[:, :, reach:, reach:], whole[:, :, 16 + reach :, 16 + reach :], atol=1e-5)
    if config.noise:
        unmoved = run(generator, image[:, :, 16:, 16:], noise=noise)
        assert not torch.allclose(unmoved[:, :, reach:, reach:], whole[:, :, 16 + reach :, 16 + reach :], atol=1e-2)


@pytest.mark.parametrize(("config", "grid"), [(PLAIN, 4), (DEEP, 8), (RRDB, 4)])
def test_its_reach_is_no_shorter_and_no_longer_than_pixels_are_felt(config, grid):
    """`grid`: pixels a side of its coarsest places, on which a tile's border lies."""
    generator, image = generator_of(config), picture(16, 240).requires_grad_()
    output = first_of(generator(image, tables_of(20), S420, noise_at(0, 0) if config.noise else None))
    distances = []
    for column in range(112, 128):
        (gradient,) = torch.autograd.grad(output[..., column].sum(), image, retain_graph=True)
        felt = gradient.abs().amax((0, 1, 2)).nonzero().flatten()
        first, last = int(felt.min()), int(felt.max())
        distances += [column - (first // grid + 1) * grid, last // grid * grid - 1 - column]
    assert generator.receptive_radius - grid <= max(distances) < generator.receptive_radius


def test_it_sees_where_in_the_mcu_a_pixel_lies():
    flat = torch.full((1, 3, 96, 96), 0.5)
    inner = (run(generator_of(PLAIN), flat) - flat)[:, :, 32:64, 32:64]
    assert torch.allclose(inner[:, :, :16, :16], inner[:, :, 16:, 16:], atol=1e-5)
    assert not torch.allclose(inner[:, :, :8, :8], inner[:, :, :8, 8:16], atol=1e-3)


@pytest.mark.parametrize("config", [DEEP, RRDB])
def test_tables_sampling_and_noise_change_the_output(config):
    generator, image = generator_of(config), picture(32, 32)
    outputs = [
        run(generator, image),
        run(generator, image, quality=60),
        run(generator, image, sampling=GRAY),
        run(generator, image, noise=noise_at(0, 0, 6)),
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


@pytest.mark.parametrize("sampling", [S420, GRAY])
def test_finer_tables_count_as_those_of_the_finest_quality(sampling):
    generator, image = generator_of(replace(PLAIN, finest_quality=95)), picture(16, 32)
    components = 1 if torch.equal(sampling, GRAY) else 3
    with torch.no_grad():
        outputs = [generator(image, tables_of(quality, components), sampling) for quality in (94, 95, 96, 100)]
    assert torch.equal(outputs[1], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)


def test_tables_of_libjpeg_are_their_own_nearest():
    conditioning = generator_of(PLAIN).conditioning
    qualities = range(1, PLAIN.finest_quality + 1)
    tables = torch.cat([tables_of(quality) for quality in qualities])
    for component, chroma in ((0, 0), (1, 1), (2, 1)):
        assert torch.equal(conditioning.nearest(tables[:, component], chroma), tables[:, component])


def test_other_tables_count_as_libjpegs_with_about_their_mean_step():
    """Luma and chroma each by itself; gray's chroma tables, which are ones, stay."""
    generator, image = generator_of(PLAIN), picture(16, 32)
    luma, chroma = quality_to_tables(70, 1)[0], quality_to_tables(85, 3)[1]
    shuffled = [table.flatten()[torch.randperm(64)].reshape(8, 8) for table in (luma, chroma, chroma)]
    gray = [luma, torch.ones_like(luma), torch.ones_like(luma)]
    with torch.no_grad():
        for sampling, one, other in (
            (S420, shuffled, [luma, chroma, chroma]),
            (GRAY, [shuffled[0] + torch.eye(8, dtype=torch.int32), *gray[1:]], [luma]),
        ):
            found, expected = (generator(image, torch.stack(tables)[None], sampling) for tables in (one, other))
            assert torch.equal(found, expected)


@pytest.mark.parametrize("config", [DEEP, RRDB])
def test_images_of_a_batch_do_not_touch_each_other(config):
    generator, images = generator_of(config), picture(32, 48, images=3)
    tables = torch.cat([tables_of(q) for q in (10, 40, 90)])
    noise = Noise(torch.tensor([[1, 4], [2, 5], [3, 6]]), torch.tensor([[0, 0], [16, 0], [0, 32]]))
    sampling = torch.tensor([4, 0, 2])
    with torch.no_grad():
        together = generator(images, tables, sampling, noise).samples
        for i in range(3):
            one = slice(i, i + 1)
            alone = generator(images[one], tables[one], sampling[one], Noise(noise.seeds[one], noise.origins[one]))
            assert torch.allclose(together[one], alone.samples, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, DEEP, RRDB])
def test_gradients_reach_every_parameter(config):
    generator = generator_of(config)
    output = generator(picture(32, 32), tables_of(20), S420, noise_at(0, 0) if config.noise else None)
    parts = output if isinstance(output, Sampled) else [output]
    sum(part.square().sum() for part in parts if part is not None).backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("config", [GeneratorConfig(), GeneratorConfig(noise=True), replace(PAPER, blocks=6)])
def test_it_starts_near_the_decoded_image(config):
    torch.manual_seed(0)
    image = picture(64, 64)
    assert float((run(Generator(config), image) - image).square().mean()) < 0.1**2


@pytest.mark.parametrize("config", [PLAIN, DEEP, RRDB])
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


def test_the_papers_size():
    """Real-ESRGAN's at scale 1: 23 blocks of 3 dense blocks of 5 convolutions, 16.7 million parameters, and a noise
    channel for each of the 345 and for two more."""
    with torch.device("meta"):
        generator = Generator(PAPER)
    convolutions = [m for m in generator.modules() if isinstance(m, torch.nn.Conv2d)]
    plain = [c.weight.numel() + c.bias.numel() for c in convolutions]
    assert sum(plain) == 16_697_987 - 3 * 64 * 9 + 3 * 16 * 64 * 9  # its x4 network, whose head sees 3 channels
    assert len(plain) == 23 * 15 + 6
    noisy = [c for c in convolutions if isinstance(c, NoiseConv2d)]
    assert len(noisy) == 23 * 15 + 2
    assert all(c.noise_kernel.shape == (c.out_channels, 1, 3, 3) and c.noise_weight.shape == (1,) for c in noisy)
    assert sum(p.numel() for p in generator.parameters()) < 1.03 * sum(plain)


def test_the_papers_size_restores_draws_and_repeats():
    torch.manual_seed(0)
    generator, image = Generator(PAPER), picture(32, 48)
    assert all(p.item() == 1 for name, p in generator.named_parameters() if name.endswith("noise_weight"))
    one, again, other = (run(generator, image, noise=noise_at(16, 0, seed)) for seed in (1, 1, 2))
    assert one.shape == image.shape
    assert torch.equal(one, again)
    assert float((one - other).abs().max()) > 1e-4


def test_joined_noise_is_one_more_channel_of_the_convolution():
    torch.manual_seed(0)
    convolution = NoiseConv2d(7, 5, noise=True)
    with torch.no_grad():
        convolution.noise_weight.fill_(0.7)
        parts, z = [torch.randn(2, 3, 6, 8), torch.randn(2, 4, 6, 8)], torch.randn(2, 1, 6, 8)
        kernel = torch.cat((convolution.weight, convolution.noise_kernel), 1)
        expected = F.conv2d(torch.cat((*parts, 0.7 * z), 1), kernel, convolution.bias, padding=1)
        assert torch.allclose(convolution.with_noise(parts, z), expected, atol=1e-6)
        assert torch.equal(convolution.with_noise(parts, None), convolution(torch.cat(parts, 1)))


def test_a_dense_block_and_the_upsampler_are_esrgans():
    """Written out; the noise is that of the convolution of its place."""
    torch.manual_seed(0)
    block, upsampler = DenseBlock(6, 3, True), Upsampler(6, True)
    x, z = torch.randn(1, 6, 5, 4), torch.randn(1, 5, 5, 4)

    def act(y):
        return torch.where(y > 0, y, 0.2 * y)

    with torch.no_grad():
        seen = x
        for n, convolution in enumerate(block.convolutions):
            out = convolution.with_noise([seen], z[:, n : n + 1])
            seen = torch.cat((seen, act(out)), 1)
        assert torch.allclose(block(x, z), x + 0.2 * out, atol=1e-6)
        z_half, z_full = torch.randn(1, 1, 10, 8), torch.randn(1, 1, 20, 16)
        y = act(upsampler.to_half.with_noise([x.repeat_interleave(2, 2).repeat_interleave(2, 3)], z_half))
        y = act(upsampler.to_full.with_noise([y.repeat_interleave(2, 2).repeat_interleave(2, 3)], z_full))
        y = upsampler.tail(act(upsampler.fine(y)))
        assert torch.allclose(upsampler(x, z_half, z_full), y, atol=1e-6)


def test_every_layer_draws_noise_of_its_own_at_absolute_places():
    amplitude = torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1)
    layers = InjectedNoise(torch.tensor([7, 8]), torch.tensor([[32, 64], [0, 16]]), amplitude)
    several = layers.draw(3, 4, 2, (5, 6))
    for n in range(4):
        alone = gaussian(layers.seeds, 3 + n, 1, layers.origins // 2, (5, 6))
        assert torch.equal(several[:, n : n + 1], cut_off(alone) * amplitude)
    assert layers.draw(0, 8, 1, (64, 64)).abs().max() == NOISE_LIMIT
    drawn = []
    generator = generator_of(RRDB)
    for module in generator.modules():
        if isinstance(module, NoiseConv2d):
            module.with_noise = lambda x, z, call=module.with_noise: drawn.append(z) or call(x, z)
    run(generator, picture(16, 16), noise=noise_at(16, 32))
    assert len(drawn) == 17
    for layer, (z, scale) in enumerate(zip(drawn, [4] * 15 + [2, 1], strict=True)):
        place = torch.tensor([[16, 32]]) // scale
        assert torch.equal(z, cut_off(gaussian(torch.tensor([5]), layer, 1, place, (16 // scale, 16 // scale))))


def test_other_trunks_are_refused():
    for options in ({"trunk": "unet"}, {"trunk": "rrdb", "inner_blocks": 1}):
        with pytest.raises(ValueError, match="expected"):
            GeneratorConfig(**options)


@pytest.mark.parametrize("config", [DEEP, RRDB])
def test_a_sampler_starts_from_a_regression_network(config):
    """Its regression's output is the network's, or, of rrdb, what it draws where its noise is silent."""
    trained = generator_of(replace(config, noise=False), seed=1)
    sampler, image = generator_of(config, seed=2), picture(32, 32)
    initialise_from(sampler, trained)
    assert not torch.allclose(run(sampler, image), run(trained, image), atol=1e-3)
    if config.has_regression:
        assert torch.equal(sampler(image, tables_of(20), S420), trained(image, tables_of(20), S420))
    else:
        with torch.no_grad():
            for name, parameter in sampler.named_parameters():
                if name.endswith("noise_weight"):
                    assert parameter.any()
                    parameter.zero_()
        assert torch.allclose(run(sampler, image), run(trained, image), atol=1e-5)
    copied = generator_of(replace(config, finest_quality=100), seed=3)
    initialise_from(copied, sampler)
    assert torch.equal(run(copied, image), run(sampler, image))
    for other in (trained, generator_of(replace(config, blocks=3)), generator_of(replace(config, embedding=4))):
        with pytest.raises(ValueError, match="cannot be initialised"):
            initialise_from(other, sampler)


def test_a_noise_head_with_fewer_maps_gets_the_largest():
    trained, image = generator_of(replace(DEEP, noise_maps=6), seed=1), picture(32, 32)
    with torch.no_grad():
        trained.noise_head.filters.weight[[1, 4]] *= 1e-6
    smaller = generator_of(replace(DEEP, noise_maps=4), seed=2)
    initialise_from(smaller, trained)
    assert torch.allclose(run(smaller, image), run(trained, image), atol=1e-5)
    with pytest.raises(ValueError, match="noise_maps=6, not 4"):
        initialise_from(trained, smaller)


@pytest.mark.parametrize("blocks", [4, 7])
@pytest.mark.parametrize("noise", [False, True])
def test_a_deeper_generator_starts_as_the_one_it_grew_from(blocks, noise):
    trained, image = generator_of(replace(PLAIN, noise=noise), seed=1), picture(32, 32)
    deeper = generator_of(replace(PLAIN, blocks=blocks, noise=noise), seed=2)
    initialise_from(deeper, trained)
    assert torch.allclose(run(deeper, image), run(trained, image), atol=1e-6)
    with pytest.raises(ValueError, match="cannot be initialised"):
        initialise_from(trained, deeper)


@pytest.mark.parametrize("config", [PLAIN, DEEP, RRDB])
def test_weights_files_keep_the_trunk(config, tmp_path):
    generator, path = generator_of(config), tmp_path / "w.safetensors"
    save(generator, path)
    loaded = load(str(path)).generator
    assert loaded.config == config
    assert torch.equal(run(loaded, picture(32, 32)), run(generator, picture(32, 32)))


def test_the_shipped_weights_are_read_as_they_were_written():
    """The small network written out, from the tensors of the file."""
    generator = load("mmse").generator
    assert (generator.config.trunk, generator.config.inner_blocks, generator.config.noise) == ("residual", 0, False)
    w, image, tables = generator.state_dict(), picture(32, 48), tables_of(15)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def convolved(x, name):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    h = torch.cat((tables.flatten(1).log2() / 4 - 1, F.one_hot(S420, 5)), 1)
    h = F.silu(linear(F.silu(linear(h, "conditioning.layers.0")), "conditioning.layers.2"))
    x = convolved(F.pixel_unshuffle(image - 0.5, 4), "head") + w["place"].repeat(1, 1, 2, 3)
    names = [f"{part}.{n}" for part in ("before", "after") for n in range(len(getattr(generator, part)))]
    for name in names:
        gain, shift = linear(h, f"{name}.film")[:, :, None, None].chunk(2, 1)
        x = x + convolved(F.relu(convolved(x, f"{name}.first") * (1 + gain) + shift), f"{name}.second")
    change = convolved(x, "tail") * linear(h, "gain").exp()[:, :, None, None]
    assert len(names) == generator.config.blocks
    assert torch.allclose(run(generator, image, quality=15), image + F.pixel_shuffle(change, 4), atol=1e-5)


@pytest.mark.parametrize("config", [replace(PLAIN, noise=True), RRDB])
def test_noise_fades_as_the_tables_become_fine(config):
    generator, image = generator_of(config), picture(32, 32)

    def variety(quality):
        one, other = (run(generator, image, quality, noise=noise_at(0, 0, seed)) for seed in (1, 2))
        return float((one - other).abs().mean())

    whole, less, none = variety(75), variety(85), variety(90)
    assert none == 0 < less < whole
    both = torch.cat((tables_of(40), tables_of(92)))
    assert noise_amplitude(both).flatten().tolist() == [1, 0]
