"""The projection kernels give torch_ops' images and gradients, but where the last bits decide."""

import pytest
import torch
from gradients import assert_compilation_and_autocast_change_nothing
from scenes import pictures, random_tables
from torch import Tensor
from undecided import near_ends

from kernels import Coefficients, Subsampling, torch_ops, triton_ops

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
SIZES = [(1, 40), (7, 38), (42, 31), (32, 48)]
OP, OP_BACKWARD = torch.ops.jpeg_posterior.project, torch.ops.jpeg_posterior.project_backward


def problem(
    images: int, sampling: Subsampling, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Coefficients]:
    """Images, and coefficients of images near them: of some the coefficients fit, of others they do not."""
    original = pictures(images, sampling, size)
    c = torch_ops.encode(original, random_tables(images, sampling), sampling)
    noise = torch.tensor([2.0, 8.0, 32.0])[:images, None, None, None]
    x = original + noise * torch.randn(original.shape)
    return (x if dtype.is_floating_point else x.clamp(0, 255)).to(dtype), c


@ALL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("poisoned")
def test_images_and_gradients_are_those_of_torch_ops(sampling, size, device, seed):
    images, margin = (1, 0.2) if size == (7, 38) else (3, 0.0)
    x, c = problem(images, sampling, size)
    weights = torch.randn(x.shape)
    leaf, mine = x.clone().requires_grad_(), x.to(device).requires_grad_()
    expected, found = torch_ops.project(leaf, c, margin), triton_ops.project(mine, c.to(device), margin)
    expected.backward(weights)
    found.backward(weights.to(device))
    assert (found.detach().cpu() - expected.detach()).abs().max() < 1e-3
    decided = ~near_ends(x, c, margin)
    assert decided.float().mean() > 0.5 or size != SIZES[-1]
    assert ((mine.grad.cpu() - leaf.grad).abs() * decided).max() < 1e-4


@pytest.mark.parametrize("sampling", [Subsampling.GRAY, Subsampling.S420])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_results_are_float32_and_layouts_are_kept(sampling, dtype, device, seed):
    x, c = problem(3, sampling, (18, 35), dtype)
    leaf = x.clone().requires_grad_(dtype.is_floating_point)
    expected = torch_ops.project(leaf, c)
    for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
        mine = laid_out.to(device).requires_grad_(dtype.is_floating_point)
        found = triton_ops.project(mine, c.to(device))
        assert (found.dtype, found.stride()) == (torch.float32, laid_out.stride())
        assert (found.detach().cpu() - expected.detach()).abs().max() < 1e-3
    if dtype.is_floating_point:  # of channels_last
        weights = torch.randn(x.shape)
        expected.backward(weights)
        found.backward(weights.to(device))
        assert (mine.grad.dtype, mine.grad.stride()) == (dtype, mine.stride())
        difference = (mine.grad.cpu().float() - leaf.grad.float()).abs() * ~near_ends(x, c, 0.0)
        assert difference.max() <= torch.finfo(dtype).eps * leaf.grad.abs().max()


@pytest.mark.parametrize("size", [(20, 1100), (630, 16)])
def test_programs_away_from_the_edge_of_a_larger_image(size, device, seed):
    x, c = problem(1, Subsampling.S420, size)
    assert (triton_ops.project(x.to(device), c.to(device)).cpu() - torch_ops.project(x, c)).abs().max() < 1e-3


def test_operators_are_registered_in_full(device, seed):
    sampling = Subsampling.S420
    x, c = problem(1, sampling, (9, 10))
    x, c = x.to(device), c.to(device)
    planes = list(c.planes)
    torch.library.opcheck(OP, (x.clone().requires_grad_(), planes, c.tables, sampling.label, 0.0))
    torch.library.opcheck(OP_BACKWARD, (torch.randn_like(x), x, planes, c.tables, sampling.label, 0.0))


def test_compilation_and_autocast_change_nothing(device, seed):
    x, c = problem(2, Subsampling.S420, (17, 20))
    x, c = x.to(device), c.to(device)

    def loss(x: Tensor) -> Tensor:
        return triton_ops.project(x, c, 0.1).square().mean()

    assert_compilation_and_autocast_change_nothing(loss, x)


def test_a_gradient_may_be_laid_out_in_any_way(device, seed):
    x, c = problem(2, Subsampling.S422, (10, 19))
    x, c = x.to(device), c.to(device)
    weights = torch.randn(19, 10, 3, 2, device=device)
    for gradient in (weights.permute(3, 2, 1, 0), weights[:1, :1, :1, :1].expand(x.shape)):
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        triton_ops.project(leaf, c).backward(gradient)
        triton_ops.project(twin, c).backward(gradient.contiguous())
        assert torch.equal(leaf.grad, twin.grad)


def test_other_layouts_and_margins_are_errors_that_name_them(device):
    x, c = problem(2, Subsampling.S420, (40, 32))
    x, c = x.to(device), c.to(device)
    with pytest.raises(ValueError, match=r"contiguous or channels_last, got strides \[3840, 1280, 1, 40\]"):
        triton_ops.project(torch.empty(2, 3, 32, 40, device=device).transpose(2, 3), c)
    with pytest.raises(ValueError, match=r"margin: expected 0\.\.0\.5 of a step, got 0\.6"):
        triton_ops.project(x, c, 0.6)
