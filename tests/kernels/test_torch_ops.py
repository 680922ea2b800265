"""encode, decode, roundtrip and project against real decoders and against the formulas in float64."""

import io
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from scenes import by_libjpeg, in_colours_of, pick, scene, stack, tables_of, tensor_of
from torch import Tensor

from kernels import Coefficients, Subsampling, decode, encode, excess, project, project_exact, roundtrip
from kernels.libjpeg import compress
from pipeline.jpeg.bitstream import read_bitstream
from pipeline.outputs.verify import recompress

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
SMALL = [(1, 1), (1, 2), (2, 3), (3, 5), (5, 4), (9, 17), (17, 6), (33, 31)]
WHOLE = (48, 64)


def images(sampling: Subsampling, size: tuple[int, int], seed: int, number: int = 3) -> Tensor:
    """[N, C, H, W] uint8."""
    return torch.cat([tensor_of(in_colours_of(scene(*size, seed + i), sampling)) for i in range(number)])


def tables(sampling: Subsampling, *qualities: int) -> Tensor:
    return torch.cat([tables_of(quality, sampling) for quality in qualities])


def random_qualities(seed: int, number: int) -> list[int]:
    return [int(quality) for quality in np.random.default_rng(seed).integers(5, 101, number)]


def coefficients(sampling: Subsampling, size: tuple[int, int], seed: int, *qualities: int) -> Coefficients:
    """Of different images with different tables, by libjpeg's arithmetic."""
    return compress(images(sampling, size, seed, len(qualities)), tables(sampling, *qualities), sampling)


def blurred(x: Tensor) -> Tensor:
    """Float images near x whose coefficients mostly lie outside the intervals: what a restoration gives."""
    x = x.float()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 3, 1) + 0.3 * (x - x.mean())


def pillow_difference(pixels: np.ndarray, quality: int, sampling: Subsampling) -> tuple[Coefficients, np.ndarray]:
    """(a file's coefficients, its decoded pixels as [C, H, W])."""
    data = recompress(pixels, tables_of(quality, sampling)[0].numpy(), sampling)
    decoded = tensor_of(np.asarray(Image.open(io.BytesIO(data))))[0]
    return read_bitstream(data).coefficients, decoded.numpy().astype(np.float32)


@ALL
def test_decode_gives_pillows_pixels_but_for_their_rounding(sampling, seed):
    differences = []
    for quality in [5, 100, *random_qualities(seed, 6)]:
        pixels = in_colours_of(scene(129 + quality, 211 - quality, seed + quality), sampling)
        c, expected = pillow_difference(pixels, quality, sampling)
        differences.append(np.abs(decode(c)[0].numpy() - expected))
        assert differences[-1].max() <= 3, quality
    assert np.concatenate([difference.ravel() for difference in differences]).mean() <= 0.7


@ALL
def test_decode_gives_pillows_pixels_at_the_smallest_sizes(sampling, seed):
    differences = []
    for size in SMALL:
        for quality in random_qualities(seed + size[0], 8):
            pixels = in_colours_of(scene(*size, seed + quality), sampling)
            c, expected = pillow_difference(pixels, quality, sampling)
            differences.append(np.abs(decode(c)[0].numpy() - expected))
            assert differences[-1].max() <= 3, (size, quality)
    assert np.concatenate([difference.ravel() for difference in differences]).mean() <= 0.7


@ALL
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (33, 31), (301, 407)])
def test_several_images_at_once_give_the_same_bits_as_each_alone(sampling, size, seed):
    c = coefficients(sampling, size, seed, *random_qualities(seed, 3))
    x = blurred(images(sampling, size, seed))
    decoded, rounded, projected = decode(c), roundtrip(x, c.tables, sampling), project(x, c)
    assert decoded.shape == rounded.shape == projected.shape == (3, sampling.components, *size)
    for i in range(3):
        alone, only = pick(c, [i]), x[i : i + 1]
        assert torch.equal(decoded[i : i + 1], decode(alone))
        assert torch.equal(rounded[i : i + 1], roundtrip(only, alone.tables, sampling))
        assert torch.equal(projected[i : i + 1], project(only, alone))
        assert encode(only, alone.tables, sampling).mismatches(pick(encode(x, c.tables, sampling), [i])) == 0


@ALL
@pytest.mark.parametrize("size", [*SMALL, (70, 93)])
def test_encode_rounds_the_formulas_coefficients_to_the_nearest(sampling, size, seed):
    steps = tables(sampling, *random_qualities(seed, 3))
    x = images(sampling, size, seed).float() + torch.rand(3, sampling.components, *size)
    c = encode(x, steps, sampling)
    c.check_values()
    assert reference.outside(x, c) < 1e-3


@ALL
def test_encode_rounds_halves_away_from_zero(sampling):
    """The halves of gray images, which are exact in float32; in colours the last bit would decide."""
    x = torch.full((1, sampling.components, 16, 16), 128.0)
    steps = torch.full((1, sampling.components, 8, 8), 16, dtype=torch.int32)
    halves = {129: 1, 127: -1, 131: 2, 125: -2} if sampling is Subsampling.GRAY else {}
    for gray, expected in ({129.1: 1, 126.9: -1, 128.9: 0, 127.1: 0} | halves).items():
        assert encode(x + (gray - 128), steps, sampling).planes[0][0, 0, 0, 0, 0] == expected


@ALL
def test_encode_is_within_a_step_of_libjpegs_integers(sampling, seed):
    x, steps = images(sampling, (231, 317), seed), tables(sampling, 30, 75, 95)
    mine, theirs = encode(x, steps, sampling), compress(x, steps, sampling)
    for a, b in zip(mine.planes, theirs.planes, strict=True):
        apart = (a.int() - b.int()).abs().flatten(1).amax(1)
        assert bool((apart <= torch.tensor([1, 1, 3])).all())
    assert bool((mine.mismatches(theirs) < torch.tensor([0.005, 0.02, 0.09]) * mine.count).all())


@pytest.mark.parametrize("sampling", [Subsampling.GRAY, Subsampling.S444])
def test_encoding_a_decoded_image_gives_its_coefficients_where_nothing_was_limited(sampling, seed):
    x = images(sampling, (64, 80), seed).float() / 4 + 95
    c = encode(x, tables(sampling, 20, 60, 90), sampling)
    decoded = decode(c)
    assert decoded.min() > 0
    assert decoded.max() < 255
    assert encode(decoded, c.tables, sampling).mismatches(c).tolist() == [0, 0, 0]


@ALL
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (33, 31), (270, 333)])
def test_roundtrip_decodes_by_repetition_what_encode_gives(sampling, size, seed):
    x, steps = images(sampling, size, seed).float(), tables(sampling, *random_qualities(seed, 3))
    c, result = encode(x, steps, sampling), roundtrip(x, steps, sampling)
    assert (result - reference.decode_by_repetition(c)).abs().max() < 2e-3
    if sampling.factors == (1, 1):
        assert (result - decode(c)).abs().max() < 2e-3


@ALL
def test_operators_keep_to_their_dtypes(sampling, seed):
    exact, steps = images(sampling, (35, 43), seed), tables(sampling, 10, 50, 90)
    c = encode(exact, steps, sampling)
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = exact.to(dtype)
        assert (x.double() == exact).float().mean() > 0.2
        rounded = roundtrip(x, steps, sampling)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        assert rounded.dtype == (dtype if dtype.is_floating_point else torch.float32)
        assert torch.equal(rounded, roundtrip(x.to(wide), steps, sampling).to(rounded.dtype))
        projected = project(x, c)
        assert projected.dtype == wide
        assert torch.equal(projected, project(x.to(wide), c))
        assert encode(x, steps, sampling).mismatches(encode(x.float(), steps, sampling)).sum() == 0


@ALL
@pytest.mark.parametrize("size", [WHOLE, (37, 43), (1, 2), (2, 1), (17, 2), (18, 1), (33, 2)])
def test_gradient_of_roundtrip_passes_straight_through_the_rounding_and_stops_at_the_limits(sampling, size, seed):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 3, as 8 * 127 and 8 * 128 are not: no plane is just at a limit, where the last bit would decide.
    steps = tables(sampling, 5, 30, 90) // 3 * 3 + 3
    x = images(sampling, size, seed).double()
    x[:, :, :8, :8] = 2 * x[:, :, :8, :8] + 60  # beyond the limits for certain, whatever the scene
    x, weights = x + torch.rand(x.shape, generator=generator), torch.randn(x.shape, generator=generator).double()
    leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    unlimited = reference.roundtrip(twin, steps, sampling)
    if sampling is not Subsampling.GRAY:  # a limited luma may bring a colour just to its own limit
        weights[((unlimited - 127.5).abs() - 127.5).abs() < 1e-9] = 0
    (roundtrip(leaf, steps, sampling) * weights).sum().backward()
    (unlimited.clamp(0, 255) * weights).sum().backward()
    assert bool(((unlimited - 127.5).abs() >= 127.5).any())
    assert torch.allclose(leaf.grad, twin.grad, atol=1e-9)


@ALL
def test_luma_has_no_gradient_where_its_plane_is_limited(sampling, seed):
    steps, weights = tables(sampling, 50), torch.randn(1, sampling.components, *WHOLE)
    for level in (-40.0, 300.0):
        x = torch.full(weights.shape, level, requires_grad=True)
        (roundtrip(x, steps, sampling) * weights).sum().backward()
        assert x.grad.sum(1).abs().max() < 1e-5
        assert sampling is not Subsampling.GRAY or not x.grad.any()


@ALL
@pytest.mark.parametrize("size", [(16, 16), (11, 19)])
def test_gradient_of_project_is_that_of_its_function(sampling, size, seed):
    x = images(sampling, size, seed, 1).double()
    c = encode(x, tables(sampling, 60), sampling)
    # Half the coefficients are held at the ends of their intervals, the others are free.
    moved = (x + 8 * torch.randn(x.shape, dtype=torch.float64)).requires_grad_()
    change = project(moved, c) - moved
    assert bool((change.abs() > 1e-3).any())
    assert torch.autograd.gradcheck(lambda y: project(y, c), (moved,), eps=1e-7, atol=1e-5, fast_mode=True)


@ALL
def test_gradient_of_project_is_the_identity_inside_the_intervals_and_zero_where_all_are_held(sampling, seed):
    x, weights = images(sampling, WHOLE, seed, 1).double(), torch.randn(1, sampling.components, *WHOLE).double()
    free = encode(x, torch.full((1, sampling.components, 8, 8), 30000, dtype=torch.int32), sampling)
    held = encode(x, torch.ones_like(free.tables), sampling)
    leaf = x.clone().requires_grad_()
    (project(leaf, free) * weights).sum().backward()
    assert torch.allclose(leaf.grad, weights, atol=1e-9)
    leaf = (x + 100 * torch.randn_like(x)).requires_grad_()
    (project(leaf, held, margin=0.5) * weights).sum().backward()
    # What is held is luma and the averages of chroma, so neither has a gradient. (1, 1, 1) moves luma alone.
    assert leaf.grad.sum(1).abs().max() < 1e-9
    assert torch.nn.functional.avg_pool2d(leaf.grad, sampling.factors).abs().max() < 1e-9


@ALL
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4, 0.5])
def test_project_brings_every_coefficient_into_its_interval_and_no_further(sampling, margin, seed):
    c = coefficients(sampling, WHOLE, seed, *random_qualities(seed, 3))
    x = blurred(images(sampling, WHOLE, seed))
    projected = project(x, c, margin)
    assert reference.outside(projected, c) == pytest.approx(-margin, abs=5e-3)
    assert torch.allclose(project(projected, c, margin), projected, atol=2e-3)
    assert torch.equal(projected, torch.cat([project(x[i : i + 1], pick(c, [i]), margin) for i in range(3)]))


@ALL
def test_project_gives_the_nearest_image_in_ycbcr(sampling, seed):
    """The conditions of Karush, Kuhn and Tucker, which only the nearest point of a convex set meets."""
    c = coefficients(sampling, WHOLE, seed, 10, 50, 90)
    x = blurred(images(sampling, WHOLE, seed)).double()
    projected = project(x, c)
    assert reference.outside(projected, c) < 1e-9
    differences = reference.colour(projected - x, reference.FROM_RGB).split(1, dim=1)
    steps = reference.units(projected, c.tables, sampling)
    for component, difference in enumerate(differences):
        vertical, horizontal = sampling.factors if component else (1, 1)
        averaged = torch.nn.functional.avg_pool2d(difference, (vertical, horizontal))
        repeated = averaged.repeat_interleave(vertical, 2).repeat_interleave(horizontal, 3)
        assert torch.allclose(difference, repeated, atol=1e-9)
        moved = reference.forward(averaged[:, 0])
        offset = steps[component] - c.planes[component]
        at_an_end = torch.where(moved > 0, offset + 0.5, offset - 0.5).abs() < 1e-9
        assert bool((at_an_end | (moved.abs() < 1e-9)).all())


@ALL
def test_no_other_image_that_fits_is_nearer_than_the_projected_one(sampling, seed):
    original = images(sampling, WHOLE, seed).double()
    c = encode(original.float(), tables(sampling, 10, 50, 90), sampling)
    x = blurred(original)
    projected = project(x.double(), c)
    distance = reference.ycc_distance(projected, x)
    generator = torch.Generator().manual_seed(seed)
    for scale in (0.01, 0.1, 1, 10):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        other = project(projected + scale * noise, c)
        assert reference.outside(other, c) < 1e-9
        for share in (1.0, 0.1, 0.01):
            between = projected + share * (other - projected)
            assert bool((reference.ycc_distance(between, x) >= distance - 1e-6).all())
    assert bool((reference.ycc_distance(original, x) >= distance - 1e-6).all())


@ALL
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (17, 33), (47, 63)])
def test_project_nears_the_intervals_at_edges_and_keeps_what_fits(sampling, size, seed):
    original = images(sampling, size, seed).float()
    c = encode(original, tables(sampling, 10, 50, 90), sampling)
    assert torch.allclose(project(original, c), original, atol=1e-3)
    x = blurred(original)
    before, once = reference.outside(x, c), project(x, c)
    for _ in range(60):
        x = project(x, c)
    assert reference.outside(x, c) < 0.02
    assert reference.outside(once, c) <= before + 1e-3


@pytest.mark.parametrize(
    ("shape", "dtype", "got"),
    [
        ((1, 1, 16, 24), torch.float32, r"\[1, 3, 16, 24\].*got \[1, 1, 16, 24\]"),
        ((2, 3, 16, 24), torch.float32, r"\[1, 3, 16, 24\].*got \[2, 3, 16, 24\]"),
        ((3, 16, 24), torch.float32, r"\[1, 3, .*got \[3, 16, 24\]"),
        ((1, 3, 0, 24), torch.float32, r"\[1, 3, .*got \[1, 3, 0, 24\]"),
        ((1, 3, 16, 24), torch.int16, r"floating point or uint8, got torch\.int16"),
    ],
)
def test_images_that_do_not_go_with_the_tables_are_refused(shape, dtype, got):
    x, sampling = torch.zeros(shape, dtype=dtype), Subsampling.S420
    c = encode(torch.zeros(1, 3, 16, 24), tables(sampling, 50), sampling)
    for operator in (lambda: encode(x, c.tables, sampling), lambda: roundtrip(x, c.tables, sampling)):
        with pytest.raises(ValueError, match=got):
            operator()
    with pytest.raises(ValueError, match="expected"):
        project(x, c)


def test_other_sizes_tables_and_margins_are_refused():
    x, sampling = torch.zeros(1, 3, 16, 24), Subsampling.S420
    c = encode(x, tables(sampling, 50), sampling)
    with pytest.raises(ValueError, match=r"expected \[1, 3, 16, 24\].*got \[1, 3, 24, 16\]"):
        project(x.transpose(2, 3), c)
    for size in ((16, 32), (32, 24), (8, 8)):
        for operator in (project, project_exact, excess):
            with pytest.raises(ValueError, match=r"expected \[1, 3, 16, 24\]"):
                operator(torch.zeros(1, 3, *size), c)
    with pytest.raises(ValueError, match="step below 1"):
        project_exact(x, replace(c, tables=c.tables * 0))
    for operator in (encode, roundtrip):
        with pytest.raises(ValueError, match=r"Subsampling\.from_label\('4:2:0'\), got '4:2:0'"):
            operator(x, c.tables, "4:2:0")
    for margin in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match=r"expected 0\.\.0\.5 of a step"):
            project(x, c, margin)
    for wrong in (c.tables[0], c.tables.float(), c.tables[:, :1], c.tables[:0], c.tables.flatten(2)):
        for operator in (encode, roundtrip):
            with pytest.raises(ValueError, match=r"tables: expected \[N, 3, 8, 8\] int32 for 4:2:0"):
                operator(x, wrong, sampling)


@ALL
@pytest.mark.parametrize("size", [WHOLE, (21, 18)])
def test_excess_is_how_far_coefficients_lie_outside_their_intervals(sampling, size, seed):
    c = coefficients(sampling, size, seed, 10, 50, 90)
    near = images(sampling, size, seed).float()
    for x in (near, blurred(near), blurred(near).requires_grad_()):
        expected = [max(0.0, reference.outside(x[i : i + 1].detach(), pick(c, [i]))) for i in range(3)]
        found = excess(x, c)
        assert found.tolist() == pytest.approx(expected, abs=1e-2)
        assert not found.requires_grad


@ALL
def test_autocast_changes_nothing(sampling, seed):
    x, steps = images(sampling, (21, 37), seed, 2), tables(sampling, 50, 90)
    c, near = compress(x, steps, sampling), blurred(x).requires_grad_()

    def results(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            changed = project(near, c) + roundtrip(near, steps, sampling)
            planes = compress(x, steps, sampling).planes + encode(near, steps, sampling).planes
            found = [*planes, decode(c), excess(near, c), changed, *project_exact(near, c)]
        return [*found, *torch.autograd.grad(changed.square().sum(), near)]

    for one, other in zip(results(autocast=True), results(autocast=False), strict=True):
        assert torch.equal(one, other)


def test_project_has_no_gradient_at_the_ends_of_an_interval():
    """As all points of a flat image: f = 0 for all but the mean, in the middle of an interval or a point."""
    x = torch.full((1, 1, 8, 8), 128.0, dtype=torch.float64, requires_grad=True)
    steps = torch.full((1, 1, 8, 8), 16, dtype=torch.int32)
    c = encode(x.detach(), steps, Subsampling.GRAY)
    for margin, passed in ((0.0, 1.0), (0.5, 0.0)):
        (gradient,) = torch.autograd.grad((project(x, c, margin) * torch.arange(64.0).view(1, 1, 8, 8)).sum(), x)
        assert torch.allclose(gradient, passed * torch.arange(64.0).double().view(1, 1, 8, 8), atol=1e-9)


def test_decode_reads_what_a_real_encoder_wrote_for_each_image_of_a_batch(seed):
    sampling = Subsampling.S422
    pixels = [scene(31, 53, seed + i) for i in range(3)]
    files = [by_libjpeg(p, tables_of(q, sampling), sampling) for p, q in zip(pixels, (10, 50, 90), strict=True)]
    assert torch.equal(decode(stack(files)), torch.cat([decode(file) for file in files]))


@pytest.mark.parametrize("size", [(41, 43), (39, 37)])
def test_gradients_are_to_be_had_after_the_same_work_in_inference_mode(size, seed):
    x, steps = images(Subsampling.S420, size, seed, 1).float(), tables(Subsampling.S420, 30)
    with torch.inference_mode():
        project(x, encode(x, steps, Subsampling.S420))
    leaf = x.requires_grad_()
    project(leaf, encode(x.detach(), steps, Subsampling.S420)).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
