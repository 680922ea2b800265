"""The encode kernel gives torch_ops' coefficients, but for ties."""

import pytest
import reference
import torch
from scenes import pictures, random_tables
from undecided import NEAR

from kernels import Subsampling, torch_ops, triton_ops

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)
SIZES = [(1, 1), (9, 130), (34, 50), (48, 64), (47, 33)]


@ALL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.usefixtures("poisoned")
def test_coefficients_are_those_of_torch_ops(sampling, size, images, device, seed):
    tables = random_tables(images, sampling).to(device)
    layouts = (torch.channels_last, torch.contiguous_format)
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.uint8)):
        x = pictures(images, sampling, size, dtype).to(device, memory_format=layouts[(number + images // 2) % 2])
        found = triton_ops.encode(x, tables, sampling)
        expected = torch_ops.encode(x, tables, sampling)
        units = reference.units(x.double().cpu(), tables.cpu(), sampling)
        for mine, theirs, unit in zip(found.planes, expected.planes, units, strict=True):
            assert int((mine.int() - theirs.int()).abs().max()) <= 1
            from_tie = (unit - unit.floor() - 0.5).abs()[(mine != theirs).cpu()]
            assert bool((from_tie < NEAR).all())  # only there do the last bits decide
        found.check_values()


def test_another_layout_or_shape_is_an_error_that_names_it(device):
    tables = random_tables(2, Subsampling.S420).to(device)
    x = pictures(2, Subsampling.S420, (40, 32), torch.float32).to(device)
    with pytest.raises(ValueError, match=r"contiguous or channels_last, got strides \[3840, 1280, 1, 40\]"):
        triton_ops.encode(torch.empty(2, 3, 32, 40, device=device).transpose(2, 3), tables, Subsampling.S420)
    with pytest.raises(ValueError, match=r"expected \[2, 3, 40, 32\]"):
        triton_ops.encode(x[:, :1], tables, Subsampling.S420)
