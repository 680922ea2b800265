"""The roundtrip kernels give torch_ops' images and gradients, but where the last bits decide."""

import pytest
import torch
from gradients import assert_compilation_and_autocast_change_nothing
from scenes import pictures, random_tables
from torch import Tensor
from undecided import near_ties_or_limits

from kernels import Subsampling, torch_ops, triton_ops

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
SIZES = [(1, 1), (9, 26), (34, 17), (32, 48)]
OP, OP_BACKWARD = torch.ops.jpeg_posterior.roundtrip, torch.ops.jpeg_posterior.roundtrip_backward


def in_both_layouts(x: Tensor) -> list[Tensor]:
    return [x.contiguous(), x.contiguous(memory_format=torch.channels_last)]


@ALL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("poisoned")
def test_images_and_gradients_are_those_of_torch_ops(sampling, size, device, seed):
    images = 1 if size == (9, 26) else 3
    tables = random_tables(images, sampling)
    x = pictures(images, sampling, size)
    weights = torch.randn(x.shape)
    leaf, mine = x.clone().requires_grad_(), x.to(device).requires_grad_()
    expected, found = (
        torch_ops.roundtrip(leaf, tables, sampling),
        triton_ops.roundtrip(mine, tables.to(device), sampling),
    )
    expected.backward(weights)
    found.backward(weights.to(device))
    decided = ~near_ties_or_limits(x, tables, sampling)
    assert decided.float().mean() > 0.2 or size != SIZES[-1]
    assert ((found.detach().cpu() - expected.detach()).abs() * decided).max() < 1e-3
    assert ((mine.grad.cpu() - leaf.grad).abs() * decided).max() < 1e-4


@pytest.mark.parametrize("sampling", [Subsampling.GRAY, Subsampling.S420])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_dtypes_and_layouts_are_kept(sampling, dtype, device, seed):
    tables, x = random_tables(3, sampling), pictures(3, sampling, (18, 35), dtype)
    decided = ~near_ties_or_limits(x, tables, sampling)
    leaf = x.clone().requires_grad_(dtype.is_floating_point)
    expected = torch_ops.roundtrip(leaf, tables, sampling)
    weights = torch.randn(x.shape).to(expected.dtype)
    tolerance = torch.finfo(expected.dtype).eps * expected.detach().float() + 1e-3
    for laid_out in in_both_layouts(x.to(device)):
        mine = laid_out.clone().requires_grad_(dtype.is_floating_point)
        found = triton_ops.roundtrip(mine, tables.to(device), sampling)
        assert (found.dtype, found.stride()) == (expected.dtype, laid_out.stride())
        assert bool(
            ((found.detach().cpu().float() - expected.detach().float()).abs() <= tolerance)[decided.expand_as(x)].all()
        )
    if dtype.is_floating_point:  # of channels_last
        expected.backward(weights)
        found.backward(weights.to(device))
        assert (mine.grad.dtype, mine.grad.stride()) == (dtype, mine.stride())
        difference = (mine.grad.cpu().float() - leaf.grad.float()).abs() * decided
        assert difference.max() <= torch.finfo(dtype).eps * leaf.grad.abs().max()


def test_operators_are_registered_in_full(device, seed):
    sampling = Subsampling.S420
    tables, x = random_tables(1, sampling).to(device), pictures(1, sampling, (9, 10)).to(device)
    torch.library.opcheck(OP, (x.clone().requires_grad_(), tables, sampling.label))
    torch.library.opcheck(OP_BACKWARD, (torch.randn_like(x), x, tables, sampling.label))


def test_compilation_and_autocast_change_nothing(device, seed):
    sampling = Subsampling.S420
    tables, x = random_tables(2, sampling).to(device), pictures(2, sampling, (17, 20)).to(device)

    def loss(x: Tensor) -> Tensor:
        return triton_ops.roundtrip(x, tables, sampling).square().mean()

    assert_compilation_and_autocast_change_nothing(loss, x)


def test_a_gradient_may_be_laid_out_in_any_way(device, seed):
    sampling = Subsampling.S422
    tables, x = random_tables(2, sampling).to(device), pictures(2, sampling, (10, 19)).to(device)
    weights = torch.randn(19, 10, 3, 2, device=device)
    for gradient in (weights.permute(3, 2, 1, 0), weights[:1, :1, :1, :1].expand(x.shape)):
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        triton_ops.roundtrip(leaf, tables, sampling).backward(gradient)
        triton_ops.roundtrip(twin, tables, sampling).backward(gradient.contiguous())
        assert torch.equal(leaf.grad, twin.grad)


def test_what_is_not_a_number_stays_so_in_its_mcu_alone(device, seed):
    sampling = Subsampling.S420
    tables, x = random_tables(1, sampling).to(device), pictures(1, sampling, (16, 32)).to(device)
    x[0, 1, 3, 5] = torch.nan
    found = triton_ops.roundtrip(x, tables, sampling).isnan()
    assert bool(found[..., :8, :8].all())
    assert not found[..., 16:].any()


def test_another_layout_is_an_error_that_names_it(device):
    tables = random_tables(2, Subsampling.S420).to(device)
    with pytest.raises(ValueError, match=r"contiguous or channels_last, got strides \[3840, 1280, 1, 40\]"):
        triton_ops.roundtrip(torch.empty(2, 3, 32, 40, device=device).transpose(2, 3), tables, Subsampling.S420)
