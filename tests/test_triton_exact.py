"""The feedback search in Triton: the certificate is true, and it is no worse than the CPU's.

What descent.py does after it would take the interpreter minutes, and is left out on both sides.
"""

import pytest
import torch
from scenes import pictures, tables_of

from kernels import Subsampling, decode, encode, exact
from kernels.libjpeg import compress
from kernels.triton_ops import exact as triton_exact

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


@ALL
@pytest.mark.parametrize("size", [(18, 17), (16, 32)])
@pytest.mark.usefixtures("poisoned")
def test_the_certificate_is_true_and_as_good_as_the_cpus(sampling, size, device, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setitem(triton_exact.CONSTANTS, "TURNS", 0)
    monkeypatch.setitem(triton_exact.CONSTANTS, "PASSES", 6)
    monkeypatch.setattr(exact, "PASSES", 6)
    monkeypatch.setattr(exact, "descend", lambda image, wrong, *_: (image, wrong))
    x = 32 + 0.75 * pictures(2, sampling, size).clamp(0, 255)
    tables = torch.cat([tables_of(10, sampling), tables_of(50, sampling)])
    c = encode(x, tables, sampling)
    restored = decode(c) + 3 * torch.randn(x.shape)
    expected, at_most = exact.project_exact(restored, c)
    image, mismatches = triton_exact.project_exact(restored.to(device), c.to(device))
    assert torch.equal(compress(image.cpu(), tables, sampling).mismatches(c), mismatches.cpu())
    assert bool((mismatches.cpu() <= at_most + 1).all())  # sums in another order may round a pixel to the other side
    assert float(((image.cpu().int() - expected.int()).abs() <= 1).float().mean()) >= 0.99
